"""The named causes of the layers that cost most, and what the engine adds to them.

Tensors are watched while the float model runs on a few images; the maths is in `quant.diagnose`.
What an engine does otherwise than its simulation is not quantization noise and is found elsewhere:
in the agreement that the build left in its details, in the kernels it ran, and, where its CPU adds
8-bit products in pairs, by counting the sums that leave 16 bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from modelmill import ir
from modelmill.line.quantize import architecture
from modelmill.line.twin import Built, Twin
from modelmill.numerics import Encoding
from modelmill.quant.ablate import BIAS, Ablation, Layer, encoding_of
from modelmill.quant.bias_correction import LAYERS
from modelmill.quant.diagnose import (
    POSITIONS,
    Cause,
    Watched,
    activation_causes,
    bias_causes,
    share_16_bit,
    weight_causes,
)
from modelmill.targets import IsaGuard
from modelmill.targets.planning import OUTPUT_CHANNEL

Feeds = Iterable[Mapping[str, np.ndarray]]
SUMS, ROUNDING = "16-bit sums", "rounding"


@dataclass(frozen=True)
class TensorCause:
    """A cause, and whether it is one of an activation (else of a weight or bias)."""

    cause: Cause
    activation: bool


def causes_of(
    twin: Twin, ablation: Ablation, layers: Sequence[Layer], batches: Feeds
) -> dict[str, list[TensorCause]]:
    """What is wrong with the tensors of each layer, by node, as the batches show activations."""
    nodes = {n.name or "": n for n in ir.nodes(twin.reference)}
    read = [v.name or "" for x in layers if x.node in nodes for v in nodes[x.node].inputs[:1] if v]
    watched = {
        value: Watched(encoding)
        for value in dict.fromkeys((*read, *(v for layer in layers for v in layer.activations)))
        if value in ablation.fakes and (encoding := encoding_of(twin.plan, value)) is not None
    }
    with torch.inference_mode():
        for feeds in batches:
            ablation.module.visit(feeds, watched, lambda name, x: watched[name].update(x))
    found: dict[str, list[TensorCause]] = {}
    for layer in layers:
        here = [
            TensorCause(cause, True)
            for value in dict.fromkeys(_first_of_each(twin, layer.activations))
            if value in watched
            for cause in activation_causes(value, watched[value])
        ]
        if layer.node in nodes:
            output = encoding_of(twin.plan, layer.activations[0]) if layer.activations else None
            step = float(output.scale.max()) if output is not None else 0.0
            constants = _constants(twin, nodes[layer.node], step, watched)
            here += [TensorCause(cause, False) for cause in constants]
        seen = [watched[v] for v in layer.activations if v in watched]
        found[layer.node] = here or [_plain(w) for w in seen[:1]]
    return found


def _plain(watched: Watched) -> TensorCause:
    """Nothing but rounding."""
    evidence = (
        f"{watched.encoding.spec.bits} bits and nothing unusual: {watched.db:.1f} dB, and as much "
        f"as {watched.effective_codes:.0f} of {len(watched.counts)} codes used"
    )
    return TensorCause(Cause(ROUNDING, "its output", evidence), True)


def _first_of_each(twin: Twin, values: Sequence[str]) -> list[str]:
    """Values with one encoding hold the same numbers, moved: the first speaks for all."""
    first: dict[Encoding, str] = {}
    for value in values:
        encoding = encoding_of(twin.plan, value)
        if encoding is not None:
            first.setdefault(encoding, value)
    return list(first.values())


def _constants(
    twin: Twin, node: ir.Node, step: float, watched: Mapping[str, Watched]
) -> list[Cause]:
    """What is wrong with the weights and the bias of a node that writes in steps of `step`."""
    found: list[Cause] = []
    arrays, name = ir.constants(twin.reference), node.name or ""
    reads = watched.get(node.inputs[0].name or "") if node.inputs[0] is not None else None
    for index, value in enumerate(node.inputs):
        key = value.name or "" if value is not None else ""
        encoding = twin.plan.at(key, name, index)
        if key not in arrays or not isinstance(encoding, Encoding):
            continue
        if index == BIAS and node.op_type in LAYERS:
            found += bias_causes(key, arrays[key], encoding, step)
        elif node.op_type in (*LAYERS, "MatMul") and arrays[key].ndim > 1:
            axis = _output_axis(node, encoding, arrays[key].ndim)
            weight_OI = np.moveaxis(arrays[key], axis, 0)
            if encoding.spec.axis is not None:
                encoding = replace(encoding, spec=replace(encoding.spec, axis=0))
            depthwise = node.op_type == "Conv" and weight_OI.shape[1] == 1 < _groups(node)
            reach = reads.reach if reads is not None and _groups(node) == 1 else None
            if reach is not None and len(reach) != weight_OI.shape[1]:
                reach = None
            found += weight_causes(key, weight_OI, encoding, depthwise, reach)
    return found


def _groups(node: ir.Node) -> int:
    return int(ir.attributes(node).get("group", 1))


def _output_axis(node: ir.Node, encoding: Encoding, rank: int) -> int:
    """The axis of a weight's output channels."""
    if encoding.spec.axis is not None:
        return encoding.spec.axis
    if node.op_type == "Gemm":
        return 0 if ir.attributes(node).get("transB", 0) else 1
    return OUTPUT_CHANNEL[node.op_type] % rank


@dataclass(frozen=True)
class EngineCause:
    """What the engine does otherwise: where (a node, or empty), which cause, and whether it is more
    than an engine may differ.
    """

    node: str
    cause: Cause
    grave: bool


STILL_SAME = 1e-4  # share of codes in which engine and simulation may differ, by one code


def engine_causes(
    twin: Twin, ablation: Ablation, feeds: Mapping[str, np.ndarray]
) -> list[EngineCause]:
    """The layer where engine and simulation part first, kernels in float, sums that saturate."""
    built = twin.built
    found = _saturating(twin, ablation, feeds)
    parted = _parted(built)
    if parted is not None:
        found.append(parted)
    ops = built.deployment.fallback_ops
    if ops:
        evidence = f"planned on integers, run in float: {', '.join(ops[:5])}"
        grave = not built.options.allow_fallback
        found.append(EngineCause("", Cause("float fallback", built.target.name, evidence), grave))
    return found


def _parted(built: Built) -> EngineCause | None:
    """The first tensor whose codes differ on the engine's own inputs: there the layer computes
    otherwise than its simulation.
    """
    own = [t for t in built.details.get("tensors", ()) if t["own_mismatched"]]
    if not own:
        return None
    first = own[0]
    total = sum(t["own_mismatched"] for t in own)
    elements = sum(t["own_elements"] for t in built.details["tensors"])
    most = max(t["own_max_codes"] for t in own)
    evidence = (
        f"given the engine's own inputs {first['own_mismatched']:,} of {first['own_elements']:,} "
        f"codes differ there, by at most {first['own_max_codes']}; in all layers {total:,} of "
        f"{elements:,}, by at most {most}"
    )
    grave = total > STILL_SAME * elements or most > 1
    return EngineCause(first["node"], Cause("engine parts", first["value"], evidence), grave)


def _lacking(built: Built) -> IsaGuard | None:
    """The guard that holds for the CPU it ran on and that the plan, made for another, left out."""
    flags = frozenset(built.details.get("cpu", {}).get("flags", built.flags))
    bits = built.target.scheme(built.options.precision).weight.bits
    for guard in built.target.guards:
        concerned = architecture(flags) in guard.architectures
        if concerned and not flags & set(guard.needs_one_of) and bits > guard.weight_bits:
            return guard
    return None


def _saturating(
    twin: Twin, ablation: Ablation, feeds: Mapping[str, np.ndarray]
) -> list[EngineCause]:
    """Layers whose pairs of products leave 16 bits, on a CPU whose kernels add such pairs."""
    guard = _lacking(twin.built)
    if guard is None:
        return []
    layers = {
        (node.inputs[0].name or "", node.name or ""): node
        for node in ir.nodes(twin.reference)
        if node.op_type in ("Conv", "Gemm") and node.inputs[0] is not None
    }
    shares: dict[str, float] = {}

    def look(name: str, x: torch.Tensor) -> None:
        for (value, node_name), node in layers.items():
            if value == name:
                shares[node_name] = _share_of(twin, node, x[:1].numpy())

    with torch.inference_mode():
        ablation.module.visit(feeds, {value for value, _ in layers}, look)
    return [
        EngineCause(
            node,
            Cause(
                SUMS,
                node,
                f"{100 * share:.2g} % of its sums of two products leave 16 bits: {guard.why}",
            ),
            True,
        )
        for node, share in sorted(shares.items(), key=lambda item: -item[1])
        if share
    ]


def _share_of(twin: Twin, node: ir.Node, x: np.ndarray) -> float:
    """Share of pair sums beyond 16 bits at a few positions of one picture."""
    name = node.name or ""
    data, weight = node.inputs[0], node.inputs[1]
    assert data is not None and weight is not None
    into, by = twin.plan.at(data.name or "", name, 0), twin.plan.at(weight.name or "", name, 1)
    array = ir.constant(weight)
    attributes = ir.attributes(node)
    if not isinstance(into, Encoding) or not isinstance(by, Encoding) or array is None:
        return 0.0
    codes, w = into.quantize(x), by.quantize(array)
    if codes.dtype != np.uint8 or by.spec.bits > 8 or int(attributes.get("group", 1)) != 1:
        return 0.0
    if node.op_type == "Gemm":
        return share_16_bit(codes, w if attributes.get("transB", 0) else w.T)
    if codes.ndim != 4:
        return 0.0
    rows = _columns(codes, int(into.zero_point), array.shape[2:], attributes)
    return share_16_bit(rows, np.moveaxis(w, 1, -1).reshape(len(w), -1))


def _columns(
    codes_NCHW: np.ndarray, zero: int, kernel: tuple[int, ...], attributes: Mapping[str, object]
) -> np.ndarray:
    """What `POSITIONS` places of the output of a convolution read, channels innermost, (P, K)."""

    def listed(name: str, default: tuple[int, ...]) -> tuple[int, ...]:
        held = attributes.get(name, default)
        assert isinstance(held, Sequence)
        return tuple(int(v) for v in held)

    top, left, bottom, right = listed("pads", (0, 0, 0, 0))
    pads = ((0, 0), (0, 0), (top, bottom), (left, right))
    padded = np.pad(codes_NCHW, pads, constant_values=zero)
    unfold = torch.nn.functional.unfold(
        torch.from_numpy(padded.astype(np.float32)),
        tuple(int(k) for k in kernel),
        listed("dilations", (1, 1)),
        0,
        listed("strides", (1, 1)),
    )
    places = unfold[0].T.numpy().astype(np.uint8)  # (P, C * kernel)
    few = places[:: max(len(places) // POSITIONS, 1)][:POSITIONS]
    channels = codes_NCHW.shape[1]
    return few.reshape(len(few), channels, -1).transpose(0, 2, 1).reshape(len(few), -1)
