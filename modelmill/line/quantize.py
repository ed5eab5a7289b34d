"""From a clean float graph and calibration batches to a quantized graph per target.

The recipe is the order of the systems that won on the data in docs/LOG.md: equalise, observe once
for all targets, choose ranges, correct biases. What each step changed is logged as the SQNR (dB) of
every quantized value.
"""

from __future__ import annotations

import difflib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from modelmill import executor, ir, passes, targets
from modelmill.executor.codes import from_codes
from modelmill.executor.integer import IntegerModule
from modelmill.ir import Plan
from modelmill.line.rewrite import check_equal, rewritten
from modelmill.line.show import SILENT, Show
from modelmill.quant.adaround import AdaRound
from modelmill.quant.bias_correction import LAYERS, BiasCorrection
from modelmill.quant.brecq import Brecq
from modelmill.quant.calibrate import Calibrate, activation_names, encode
from modelmill.quant.equalize import Equalize
from modelmill.quant.observe import Batches, Statistics, observe, take
from modelmill.quant.protect import Protect, Protected
from modelmill.quant.qdrop import QDrop
from modelmill.quant.reconstruct import WORKPLACE, Reconstructed, Workplace
from modelmill.records.machine import this_machine
from modelmill.targets import Planned, Target, at_precision, load_target

QDQ_OPSET = 13  # per-axis DequantizeLinear
SQNR_CEILING = 200.0  # dB reported where nothing was lost at all
QUALITY_IMAGES = 8


Reconstruction = AdaRound | Brecq | QDrop
EQUALIZE, CALIBRATE, BIAS_CORRECTION = Equalize(), Calibrate(), BiasCorrection()
PROTECT = Protect()


@dataclass(frozen=True)
class Recipe:
    """Which steps run, each with its options; None leaves a step out. effort: of a reconstruction
    that the build chooses itself.
    """

    equalize: Equalize | None = EQUALIZE
    calibrate: Calibrate = CALIBRATE
    bias_correction: BiasCorrection | None = BIAS_CORRECTION
    protect: Protect | None = PROTECT
    reconstruct: Reconstruction | None = None
    effort: str = "normal"


DEFAULT = Recipe()


def default_recipe(task: str) -> Recipe:
    """The recipe that won on the models of docs/LOG.md for this task.

    Detection stands more noise at the outputs before its score falls: box positions and scores
    are many, and AP reads their order. A class is one argmax.
    """
    if task != "detection":
        return DEFAULT
    return replace(DEFAULT, calibrate=Calibrate("mse"), protect=Protect(threshold_db=12.0))


@dataclass(frozen=True)
class LayerQuality:
    """How well one quantized value follows the float model: signal to quantization noise, in dB."""

    value: str
    node: str
    op: str
    sqnr_db: float


@dataclass(frozen=True)
class Quantized:
    """A graph and its plan, ready for one target.

    graph: float graph with the weights of the recipe. plan: an encoding at every point. planned:
    verdicts and notes. protected: layers kept in float to save the rest. reference: the float
    graph before biases were corrected; sample: a few images. seconds: what calibration and
    quantization took.
    """

    graph: ir.Graph
    plan: Plan
    target: Target
    planned: Planned
    protected: tuple[Protected, ...]
    reference: ir.Graph
    sample: Mapping[str, np.ndarray]
    seconds: float = 0.0
    reconstructed: Reconstructed | None = None

    @cached_property
    def quality(self) -> tuple[LayerQuality, ...]:
        """How well each quantized value follows the float model on the sample, in graph order."""
        return layer_quality(self.reference, self.graph, self.plan, self.target, self.sample)

    def to_qdq(self) -> ir.Graph:
        """The artifact: QDQ nodes as the target wants them."""
        t = self.target
        return ir.to_qdq(self.graph, self.plan, t.on_codes, t.shield, t.packed_weights)

    def simulate(self) -> IntegerModule:
        """The executor in the target's integer arithmetic."""
        return IntegerModule(self.graph, self.plan, self.target.arithmetic)


def quantize(
    model: ir.Graph | str,
    batches: Batches,
    target: str = "ort_cpu",
    precision: str = "w8a8",
    recipe: Recipe = DEFAULT,
    flags: Sequence[str] | None = None,
) -> Quantized:
    """Quantize one model for one target, in memory.

    Args:
        model: a graph, or the path of an ONNX file.
        batches: re-iterable of {input name: float32 array}; also read for bias correction.
        target: name of a target, or path of a file with one.
        precision: wXaY.
        recipe: the steps.
        flags: CPU flags of the machine that will run it, as in /proc/cpuinfo; None: this machine.

    Raises:
        ValueError: anything wrong with the model, the data or the target; the text says what to do.
    """
    graph = ir.load(model) if isinstance(model, str) else model
    graph = prepare_graph(graph)
    chosen = at_precision(load_target(target), precision)
    where = Where(precision, None if flags is None else tuple(flags))
    return quantize_all(graph, {chosen.name: chosen}, where, batches, recipe)[chosen.name]


def prepare_graph(graph: ir.Graph) -> ir.Graph:
    """Clean: fold batch norms and constants, drop identities; every layer gets an explicit bias;
    opset for QDQ.
    """
    graph = ir.at_opset(graph, max(ir.opset(graph), QDQ_OPSET))
    return passes.explicit_bias(passes.clean(graph))


@dataclass(frozen=True)
class Where:
    """What a plan is made for: precision, and the CPU flags of the machine that will run it (None:
    this machine).

    keep_float: nodes that the user wants in float. first_last: least bits of the first and the last
    layer; 0: they are like the others. layers: (node, weight bits, activation bits) of layers that
    depart from the precision, at most those of the target's formats.
    """

    precision: str = "w8a8"
    flags: tuple[str, ...] | None = None
    keep_float: frozenset[str] = frozenset()
    first_last: int = 8
    layers: tuple[tuple[str, int, int], ...] = ()

    def plan(self, graph: ir.Graph, target: Target, more: frozenset[str] = frozenset()) -> Planned:
        """The plan of the target (as `targets.at_precision` gives it) for the graph after its
        passes; `more` names further nodes to keep in float.
        """
        graph = rewritten(graph, target)
        names = {n.name for n in ir.nodes(graph)}
        unknown = sorted(self.keep_float - names)
        if unknown:
            near = difflib.get_close_matches(unknown[0], [n for n in names if n], 3)
            hint = f"; nearest: {', '.join(near)}" if near else ""
            raise ValueError(
                f"--keep-float: the model has no node {unknown[0]!r}{hint}. See "
                "'modelmill check MODEL -t TARGET --all'"
            )
        machine = this_machine()
        flags = frozenset(machine.flags if self.flags is None else self.flags)
        arch = machine.arch if self.flags is None else architecture(flags)
        kept = self.keep_float | more
        planned = targets.plan(graph, target, self.precision, arch, flags, kept)
        bits = self._bits(graph, planned.plan)
        said = targets.bits_in_words(target, bits)
        narrowed = targets.with_bits(graph, planned.plan, bits)
        return replace(planned, plan=narrowed, notes=(*planned.notes, *said))

    def _bits(self, graph: ir.Graph, plan: Plan) -> dict[str, tuple[int, int]]:
        """Bits of every quantized layer: by the precision, or its own."""
        bits = targets.layer_bits(graph, plan, self.precision, self.first_last)
        own = {name: (weight, activation) for name, weight, activation in self.layers}
        unknown = own.keys() - {node.name for node in ir.nodes(graph)}
        if unknown:
            raise ValueError(f"bits of a layer: the model has no node {min(unknown)!r}")
        return {name: own.get(name, found) for name, found in bits.items()}


def architecture(flags: frozenset[str]) -> str:
    """The architecture of a CPU by its flags: Arm's Linux kernels list asimd, x86's never do."""
    return "aarch64" if "asimd" in flags else "x86_64"


def quantize_all(
    graph: ir.Graph,
    chosen: Mapping[str, Target],
    where: Where,
    batches: Batches,
    recipe: Recipe = DEFAULT,
    show: Show = SILENT,
    workplace: Workplace | None = None,
) -> dict[str, Quantized]:
    """Quantize a clean graph for several targets; calibration data runs through the float model
    once, and once more for targets with passes of their own.

    Raises:
        ValueError: a target quantizes nothing in this model, or data or model give NaN.
    """
    start = time.perf_counter()
    planned = {name: where.plan(graph, target) for name, target in chosen.items()}
    for name, plan in planned.items():
        if not plan.plan:
            raise ValueError(
                f"target {name} quantizes nothing in this model; see 'modelmill check MODEL -t "
                f"{name}'"
            )
    if recipe.equalize is not None:
        graph, _ = recipe.equalize(graph, Plan(), batches)
    graphs = {name: rewritten(graph, target) for name, target in chosen.items()}
    statistics = _observe_all(graph, graphs, chosen, planned, batches, show)
    shared = time.perf_counter() - start
    results = {}
    for name, target in chosen.items():
        with show.step(f"quantize for {name}"):
            begun = time.perf_counter()
            own = graphs[name], target, planned[name], where, batches
            if recipe.reconstruct is None:
                made = _quantize_one(*own, recipe, statistics)
            else:
                made = _reconstruct(*own, recipe, statistics, workplace or WORKPLACE)
            results[name] = replace(made, seconds=shared + time.perf_counter() - begun)
        if made.protected:
            kept = ", ".join(f"{p.node} ({p.sqnr_db:.1f} dB alone)" for p in made.protected)
            show.say(f"{name}: kept in float, as quantizing them costs too much: {kept}")
    return results


def _observe_all(
    graph: ir.Graph,
    graphs: Mapping[str, ir.Graph],
    chosen: Mapping[str, Target],
    planned: Mapping[str, Planned],
    batches: Batches,
    show: Show,
) -> dict[str, Statistics]:
    """Statistics of every value that some target quantizes. Targets with the same passes share one
    look at the data; a value that passes leave under its name is the same value.
    """
    statistics: dict[str, Statistics] = {}
    for names in _alike(chosen):
        first = names[0]
        if chosen[first].passes:
            sample = next(take(graph, batches, QUALITY_IMAGES))
            check_equal(graph, graphs[first], chosen[first], sample)
        wanted = {v for name in names for v in activation_names(graphs[name], planned[name].plan)}
        missing = sorted(wanted - statistics.keys())
        if missing:
            with show.step("calibrate") as advance:
                statistics |= observe(graphs[first], missing, batches, advance)
    return statistics


def _alike(chosen: Mapping[str, Target]) -> list[list[str]]:
    """Names of targets, grouped by their passes."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, target in chosen.items():
        groups.setdefault(target.passes, []).append(name)
    return list(groups.values())


def _quantize_one(
    graph: ir.Graph,
    target: Target,
    planned: Planned,
    where: Where,
    batches: Batches,
    recipe: Recipe,
    statistics: Mapping[str, Statistics],
) -> Quantized:
    plan = encode(graph, planned.plan, statistics, recipe.calibrate)
    feeds = next(take(graph, batches, QUALITY_IMAGES))
    protected: tuple[Protected, ...] = ()
    corrected, corrected_plan, sqnr_db = _correct(graph, plan, batches, recipe)
    if recipe.protect is not None and sqnr_db < recipe.protect.threshold_db:
        layers = [v.node for v in planned.verdicts if v.runs == "integer" and v.op in LAYERS]
        protected = recipe.protect.choose(graph, plan, layers, next(iter(batches)))
        planned = where.plan(graph, target, frozenset(p.node for p in protected))
        plan = encode(graph, planned.plan, statistics, recipe.calibrate)
        corrected, corrected_plan, _ = _correct(graph, plan, batches, recipe)
    targets.check(corrected, target, where.precision, corrected_plan)
    return Quantized(
        corrected, corrected_plan, target, planned, protected, reference=graph, sample=feeds
    )


def _reconstruct(  # noqa: PLR0913 (as _quantize_one, and where it works)
    graph: ir.Graph,
    target: Target,
    planned: Planned,
    where: Where,
    batches: Batches,
    recipe: Recipe,
    statistics: Mapping[str, Statistics],
    workplace: Workplace,
) -> Quantized:
    """Learned roundings in the place of bias correction. No layer is kept in float: what the bits
    cost is what is learned against.
    """
    plan = encode(graph, planned.plan, statistics, recipe.calibrate)
    assert recipe.reconstruct is not None
    made = recipe.reconstruct.run(graph, plan, batches, workplace)
    targets.check(made.graph, target, where.precision, made.plan)
    sample = next(take(graph, batches, QUALITY_IMAGES))
    return Quantized(made.graph, made.plan, target, planned, (), graph, sample, reconstructed=made)


def _correct(
    graph: ir.Graph, plan: Plan, batches: Batches, recipe: Recipe
) -> tuple[ir.Graph, Plan, float]:
    """Corrected graph and plan, and the SQNR (dB) of the outputs, -inf where it is unknown."""
    if recipe.bias_correction is None:
        return graph, plan, -math.inf
    corrected = recipe.bias_correction.correct(graph, plan, batches)
    return corrected.graph, corrected.plan, corrected.sqnr_db


def layer_quality(
    reference: ir.Graph,
    graph: ir.Graph,
    plan: Plan,
    target: Target,
    feeds: Mapping[str, np.ndarray],
) -> tuple[LayerQuality, ...]:
    """SQNR of every quantized value on a few images: 10 log10(sum x^2 / sum (x - x_q)^2), x of the
    float model.
    """
    encodings = plan.encodings()
    producers = {o.name: n for n in ir.nodes(graph) for o in n.outputs}
    measured: dict[str, float] = {}
    real: dict[str, torch.Tensor] = {}

    def keep(name: str, codes: torch.Tensor) -> None:
        real[name] = from_codes(codes, encodings[ir.Point(name)]).real

    IntegerModule(graph, plan, target.arithmetic)(feeds, keep)

    def compare(name: str, x: torch.Tensor) -> None:
        error = float(torch.linalg.vector_norm(x - real.pop(name)))
        signal = float(torch.linalg.vector_norm(x))
        exact = SQNR_CEILING if error == 0 else -SQNR_CEILING
        here = 20 * math.log10(signal / error) if error and signal else exact
        measured[name] = max(min(here, SQNR_CEILING), -SQNR_CEILING)

    with torch.inference_mode():
        executor.Module(reference).visit(feeds, list(real), compare)
    found = []
    for name, db in measured.items():
        node = producers.get(name)
        op = node.op_type if node is not None else "input"
        found.append(
            LayerQuality(name, (node.name or "") if node is not None else name, op, round(db, 2))
        )
    return tuple(found)
