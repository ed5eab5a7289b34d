"""What each layer's bits cost in accuracy: the noise at the model's outputs, measured with that
layer alone at these bits and everything else in float.

    noise = mean over the float outputs of  sum (y - y_q)^2 / sum y^2

which is 10^(-SQNR / 10). Noise of different layers is nearly uncorrelated, so that of a model is
about the sum (as `quant.protect` and `quant.ablate` take it). What no layer reads or writes, such
as the operands of an Add, counts once, as the rest. A value that two layers read counts with each
of them. At 2 bits the noise may be as large as the signal; there the sum is a rank, no prediction.

Layers that share a weight have the same bits: they are one unit. All numbers are plain: a dict from
`unit w4a8` to noise, which can be written down and given back after a kill.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from modelmill import executor, ir, targets
from modelmill.ir import Plan, Point
from modelmill.quant.calibrate import Calibrate, encode
from modelmill.quant.observe import CEILING_DB, Batches, Statistics, take

Bits = tuple[int, int]  # of the weight, of the activations it reads
Unit = tuple[str, ...]  # names of layers with one weight
REST = "rest"


def key(unit: Unit, bits: Bits) -> str:
    """The name of one measurement."""
    return f"{'+'.join(unit)} w{bits[0]}a{bits[1]}"


def units(graph: ir.Graph, layers: Sequence[str]) -> tuple[Unit, ...]:
    """The layers in graph order, those that read one constant together."""
    found: dict[str, list[str]] = {}
    for node in ir.nodes(graph):
        name = node.name or ""
        if name not in layers:
            continue
        held = [v.name for v in node.inputs if v is not None and ir.constant(v) is not None]
        found.setdefault((held[0] if held else None) or name, []).append(name)
    return tuple(tuple(names) for names in found.values())


def layer_points(graph: ir.Graph, plan: Plan, layers: Sequence[str]) -> dict[str, set[Point]]:
    """The points whose noise is a layer's: what it reads, and what it, or the kernel it is fused
    into, writes where no other layer reads that.
    """
    found: dict[str, set[Point]] = {}
    for node in ir.nodes(graph):
        name = node.name or ""
        if name not in layers:
            continue
        held = set()
        for index, value in enumerate(node.inputs):
            if value is not None:
                own, whole = Point(value.name or "", name, index), Point(value.name or "")
                held |= {own} if own in plan else {whole} & set(plan)
        output = node.outputs[0]
        if not any(use.node.name in layers for use in output.uses()):
            held |= {Point(output.name or "")} & set(plan)
        found[name] = held
    return found


class Probe:
    """A float model and its outputs on a few images, against which quantized ones are held.

    Memory: the outputs of all images, and one batch through one model.
    """

    def __init__(self, graph: ir.Graph, batches: Batches, images: int) -> None:
        self.graph = graph
        self.feeds = [dict(feeds) for feeds in take(graph, batches, images)]
        module = executor.Module(graph)
        with torch.inference_mode():
            self.outputs = [
                {n: y.clone() for n, y in module(feeds).items() if y.is_floating_point()}
                for feeds in self.feeds
            ]
        self.signal = {
            name: sum(_energy(held[name]) for held in self.outputs) for name in self.outputs[0]
        }
        if not all(map(math.isfinite, self.signal.values())):
            raise ValueError(
                "the float model gives NaN or infinity on calibration data; the card's scale, mean "
                "or std may be wrong. Check the card, then run 'modelmill inspect MODEL'."
            )

    def noise(self, plan: Plan) -> float:
        """Of the model with the encodings of `plan`."""
        module = executor.Module(self.graph, plan)
        noise = dict.fromkeys(self.signal, 0.0)
        with torch.inference_mode():
            for feeds, real in zip(self.feeds, self.outputs, strict=True):
                found = module(feeds)
                for name, y in real.items():
                    noise[name] += _energy(y - found[name])
        shares = [noise[n] / signal for n, signal in self.signal.items() if signal > 0]
        return float(np.mean(shares)) if shares else 0.0


def _energy(x: torch.Tensor) -> float:
    return float(x.double().square().sum())


def in_db(noise: float) -> float:
    """Noise as an SQNR in dB."""
    return min(-10 * math.log10(noise), CEILING_DB) if noise > 0 else CEILING_DB


def as_noise(db: float) -> float:
    """An SQNR in dB as noise."""
    return float(10 ** (-db / 10))


def sensitivities(
    probe: Probe,
    plan: Plan,
    statistics: Mapping[str, Statistics],
    wanted: Mapping[Unit, Sequence[Bits]],
    calibrate: Calibrate,
    known: Mapping[str, float],
    note: Callable[[str, float], None],
) -> dict[str, float]:
    """Noise of every unit at every precision wanted of it, by `key`, and that of the rest.

    Args:
        probe: the float model and its images.
        plan: specs at the target's own bits.
        statistics: of every activation of the plan.
        wanted: the bits to measure, by unit.
        calibrate: how encodings are chosen.
        known: what was measured before; it is not measured again.
        note: told each number as soon as it is there.
    """
    graph, found = probe.graph, dict(known)
    layers = [name for unit in wanted for name in unit]
    points = layer_points(graph, plan, layers)

    def measure(name: str, encoded: Plan, kept: set[Point]) -> None:
        found[name] = probe.noise(encoded.without(set(encoded) - kept))
        note(name, found[name])

    for bits in sorted({b for held in wanted.values() for b in held}):
        left = [u for u, held in wanted.items() if bits in held and key(u, bits) not in found]
        if not left:
            continue
        narrowed = targets.with_bits(graph, plan, dict.fromkeys(layers, bits))
        encoded = encode(graph, narrowed, statistics, calibrate)
        for unit in left:
            measure(key(unit, bits), encoded, set().union(*(points[name] for name in unit)))
    if REST not in found:
        encoded = encode(graph, plan, statistics, calibrate)
        measure(REST, encoded, set(plan).difference(*points.values()))
    return found
