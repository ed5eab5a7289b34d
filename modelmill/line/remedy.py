"""What to do about a layer that costs too much, as a command that exists.

A layer becomes float by `--keep-float`. A tensor between layers stays quantized as long as an
integer layer reads it or an integer kernel must write it, so those are kept in float with it; the
planner itself says when that is enough.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields

from modelmill import ir
from modelmill.ir import Plan
from modelmill.line.options import BuildOptions
from modelmill.line.twin import Built, Twin
from modelmill.quant.ablate import Layer, Part, find_layers

ROUNDS = 4
MOST = 8  # nodes in one remedy: beyond that it is none
# Options of `modelmill build` that are written where they are not the default.
OPTIONS = (
    "card", "calib", "precision", "calibrate", "limit", "max_drop", "seed", "simulate", "algorithm",
    "first_last_bits", "memory", "objective",
)  # fmt: skip


@dataclass(frozen=True)
class Remedy:
    """keep: nodes to keep in float. part: what then is still quantized."""

    keep: tuple[str, ...]
    part: Part


def keep_in_float(twin: Twin, layer: Layer, values: Sequence[str]) -> Remedy | None:
    """The nodes to keep in float so that the layer's weights and the named activations are float.

    None where the planner would not leave them, or it would take more than `MOST` nodes.
    """
    nodes = {n.name or "": n for n in ir.nodes(twin.reference)}
    keep = [layer.node] if layer.constants and layer.node in nodes else []
    for _ in range(ROUNDS):
        planned = twin.planned(frozenset(keep))
        left = {point.value for point in planned.plan} & set(values)
        if not left:
            return Remedy(tuple(keep), _still(twin, planned.plan)) if keep else None
        runs = {v.node: v.runs for v in planned.verdicts}
        near = [
            name
            for name, node in nodes.items()
            if runs.get(name) == "integer"
            and any(v is not None and v.name in left for v in (*node.inputs, *node.outputs))
        ]
        owner = [layer.node] if runs.get(layer.node) == "integer" else []
        more = [name for name in dict.fromkeys((*owner, *near)) if name not in keep]
        if not more or len(keep) + len(more) > MOST:
            return None
        keep += more
    return None


def together(twin: Twin, remedies: Iterable[Remedy]) -> Remedy | None:
    """All of them at once; None where there is none."""
    keep = tuple(dict.fromkeys(node for remedy in remedies for node in remedy.keep))
    return Remedy(keep, _still(twin, twin.planned(frozenset(keep)).plan)) if keep else None


def _still(twin: Twin, plan: Plan) -> Part:
    """What of the deployment's plan is left in another plan."""
    weights = {layer.node for layer in find_layers(twin.reference, plan) if layer.constants}
    return Part(frozenset(weights), frozenset(point.value for point in plan))


def build_again(
    built: Built, keep: Sequence[str] = (), changes: Mapping[str, object] | None = None
) -> str:
    """The command that builds this deployment once more beside the first.

    Args:
        built: the build.
        keep: further nodes to keep in float.
        changes: options (named as in BuildOptions) to set otherwise; `flags` None: of the machine.
    """
    asked = dict(built.manifest["options"])
    asked["keep_float"] = [*asked["keep_float"], *(k for k in keep if k not in asked["keep_float"])]
    asked |= changes or {}
    if asked["model"] is None or asked["data"] is None:
        return "modelmill.build(...) from Python as before, with keep_float=" + repr(
            asked["keep_float"]
        )
    words = ["modelmill", "build", asked["model"], "-d", asked["data"], "-t", built.named]
    defaults = {f.name: f.default for f in fields(BuildOptions)}
    for name in OPTIONS:
        if asked.get(name) is not None and asked[name] != defaults[name]:
            words += [f"--{name.replace('_', '-')}", str(asked[name])]
    if asked["flags"] is not None:
        words += ["--cpu-flags", _telling(built, asked["flags"])]
    for node in asked["keep_float"]:
        words += ["--keep-float", node]
    return shlex.join([*words, "-o", f"{built.folder}-mended"])


def _telling(built: Built, flags: Sequence[str]) -> str:
    """Of the flags those that decide about the plan; at least one that tells the architecture."""
    wanted = {flag for guard in built.target.guards for flag in guard.needs_one_of}
    found = [flag for flag in flags if flag in wanted]
    return ",".join(found or [next((f for f in ("asimd", "avx2") if f in flags), flags[0])])
