"""Which operators of a model a target runs on integers, by which rule, and what stays float.

Nothing is quantized for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from modelmill import executor, ir
from modelmill.line.inspect import Model, label, open_graph
from modelmill.line.quantize import Where, prepare_graph
from modelmill.line.report import SIMULATED
from modelmill.targets import Verdict, at_precision, load_target
from modelmill.tasks import Card

# Most of a network's work: one of them left in float defeats the purpose.
HEAVY = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class Checked:
    """What a target makes of a model.

    verdicts: one per node of the cleaned graph. notes: what the user must be told, such as narrowed
    weights. heavy: nodes with weights that would run in float unasked. unknown: (node, operator)
    that the simulation lacks, so that no build is possible. host: what runs the nodes that the chip
    itself leaves in float, such as "CPU"; empty where it runs them itself.
    """

    model: str
    target: str
    runtime: str
    precision: str
    verdicts: tuple[Verdict, ...]
    notes: tuple[str, ...]
    heavy: tuple[Verdict, ...]
    unknown: tuple[tuple[str, str], ...]
    host: str = ""

    @property
    def fallback(self) -> dict[str, int]:
        """Operators that fall back to the host, and how many nodes of each."""
        left = [v.op for v in self.verdicts if v.runs == "float"] if self.host else []
        return dict(Counter(left).most_common())

    @property
    def counts(self) -> dict[str, int]:
        """Nodes that run as integer, fused, float."""
        found = Counter(v.runs for v in self.verdicts)
        return {kind: found[kind] for kind in ("integer", "fused", "float")}

    @property
    def accepted(self) -> bool:
        """Whether everything heavy runs on integers and the simulation knows every operator."""
        return not self.heavy and not self.unknown

    def to_json(self) -> dict[str, Any]:
        """All fields, and what follows from them."""
        derived = {"counts": self.counts, "fallback": self.fallback, "accepted": self.accepted}
        return {**asdict(self), **derived}


def check(
    model: Model,
    target: str,
    *,
    precision: str = "w8a8",
    flags: Sequence[str] | None = None,
    keep_float: Sequence[str] = (),
    card: str | Path | Card | None = None,
    first_last_bits: int = 8,
) -> Checked:
    """Read a target's rules against a model.

    Args:
        model: an ONNX file, `package.module:factory[@weights]`, a .pt2 file, or a graph.
        target: name of a target, or path of a file with one; its engine need not be installed.
        precision: wXaY.
        flags: CPU flags of the machine that will run it, as in /proc/cpuinfo; None: this machine.
        keep_float: names of nodes that are to stay in float.
        card: needed for a PyTorch network alone.
        first_last_bits: of the first and the last layers; 0: as many as the others.

    Raises:
        ValueError: the model cannot be read, or no such target, precision or bits.
    """
    chosen = at_precision(load_target(target), precision)
    graph = open_graph(model, card)
    unknown = tuple(executor.unsupported(graph))
    graph = prepare_graph(graph)
    known = None if flags is None else tuple(flags)
    where = Where(precision, known, frozenset(keep_float), first_last_bits)
    planned = where.plan(graph, chosen)
    weighted = {
        node.name for node in ir.nodes(graph) if node.op_type in HEAVY and _has_weights(node)
    }
    weighted -= set(keep_float)
    heavy = tuple(v for v in planned.verdicts if v.runs == "float" and v.node in weighted)
    return Checked(
        label(model),
        chosen.name,
        chosen.runtime or SIMULATED,
        precision,
        planned.verdicts,
        planned.notes,
        heavy,
        unknown,
        chosen.host,
    )


def _has_weights(node: ir.Node) -> bool:
    return any(ir.constant(value) is not None for value in node.inputs[1:2])
