"""Cross-layer equalisation (Nagel et al. 2019, arXiv:1906.04721, section 4.1), by weights or by
activations.

For a pair y = W2 f(W1 x + b1), f positively homogeneous per channel (ReLU, LeakyReLU or nothing),
every s > 0 gives

    W2 f(W1 x + b1) = (W2 S) f(S^-1 W1 x + S^-1 b1)

so the float output stays, and s may be chosen to make both sides easy to quantize.

by="weights", the paper:   s_c = sqrt(r1_c / r2_c),  r1_c = max |W1[c]|,  r2_c = max |W2[:, c]|,
                           chains swept until nothing moves.
    Right where weights have one scale per tensor.
by="activations":          s_c = a_c^alpha / r2_c^(1 - alpha),  a_c = max |f(W1 x + b1)_c| over
                           calibration data,
    r2_c = max over rows o of |W2[o, c]| / max |W2[o]|. Where weights have a scale per output
    channel, scaling rows of W1 costs nothing, and what is left to balance is the spread of the
    activation's channels under one scale (as SmoothQuant, Xiao et al. 2023, arXiv:2211.10438, eq.
    4) against the spread within the rows of W2. A depthwise W2 has one input channel per row: then
    alpha is 1 and all channels get the same range for nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from modelmill import executor, ir
from modelmill.ir import Plan
from modelmill.quant.observe import Batches, take

HOMOGENEOUS = ("Relu", "LeakyRelu")
# A channel that is (nearly) dead on either side has no meaningful ratio; scaling it would only
# invite overflow.
SMALLEST_RANGE = 1e-8
LARGEST_SCALE = 1e4


@dataclass(frozen=True)
class Equalize:
    """The equalisation step.

    by: "activations" or "weights". alpha: see the formula. images: at most so many are run to find
    a_c. sweeps, converged: by weights, at most so many passes over all pairs, until s changes by
    less than this.
    """

    by: str = "activations"
    alpha: float = 0.3
    images: int = 32
    sweeps: int = 20
    converged: float = 1e-3

    def __post_init__(self) -> None:
        if self.by not in ("activations", "weights"):
            raise ValueError(f"unknown equalisation by {self.by!r}. Choices: activations, weights")

    def __call__(self, graph: ir.Graph, plan: Plan, batches: Batches) -> tuple[ir.Graph, Plan]:
        """A graph with equalised weights and biases, and the same plan."""
        made = ir.clone(graph)
        pairs = find_pairs(made)
        if not pairs:
            return made, plan
        weights = {
            n: a.astype(np.float64) for n, a in ir.constants(made).items() if a.dtype == np.float32
        }
        if self.by == "weights":
            self._sweep(weights, pairs)
        else:
            reach = _channel_reach(
                made, [_between(first) for first, _ in pairs], batches, self.images
            )
            for first, second in pairs:
                rescale(
                    weights,
                    first,
                    second,
                    activation_scale(weights, second, reach[_between(first)], self.alpha),
                )
        for node in dict.fromkeys(node for pair in pairs for node in pair):
            for index, value in list(enumerate(node.inputs))[1:3]:
                if value is not None:
                    ir.set_constant(made, node, index, weights[value.name or ""].astype(np.float32))
        return made, plan

    def _sweep(self, weights: dict[str, np.ndarray], pairs: list[tuple[ir.Node, ir.Node]]) -> None:
        for _ in range(self.sweeps):
            change = 0.0
            for first, second in pairs:
                scale = weight_scale(weights, first, second)
                rescale(weights, first, second, scale)
                change = max(change, float(np.abs(scale - 1).max(initial=0.0)))
            if change < self.converged:
                break


def _between(first: ir.Node) -> str:
    """Name of the value that the second node of a pair reads."""
    follower = _only_reader(first.outputs[0])
    through = follower is not None and follower.op_type in HOMOGENEOUS
    return (follower if through and follower is not None else first).outputs[0].name or ""


def _channel_reach(
    graph: ir.Graph, names: list[str], batches: Batches, images: int
) -> dict[str, np.ndarray]:
    """Largest magnitude per channel of the named values over the first images, float64, shape
    (channels,).
    """
    found: dict[str, torch.Tensor] = {}

    def look(name: str, y: torch.Tensor) -> None:
        # Ten times as fast as one reduction over all dims but the channels of a channels-last map.
        here = y.abs().contiguous().flatten(2).amax(-1) if y.dim() > 2 else y.abs()
        here = here.amax(0)
        found[name] = torch.maximum(found[name], here) if name in found else here

    module = executor.Module(graph)
    with torch.inference_mode():
        for feeds in take(graph, batches, images):
            module.visit(feeds, names, look)
    return {name: reach.double().numpy() for name, reach in found.items()}


def find_pairs(graph: ir.Graph) -> list[tuple[ir.Node, ir.Node]]:
    """Convolutions and Gemms of which the second is the only reader of the first, through an
    activation or directly.

    Weights and biases must be constants used once: scaling a shared one would change another layer.
    """
    pairs = []
    for node in ir.nodes(graph):
        if not _scalable(node):
            continue
        output = node.outputs[0]
        follower = _only_reader(output)
        if follower is not None and follower.op_type in HOMOGENEOUS:
            follower = _only_reader(follower.outputs[0])
        if follower is not None and _scalable(follower):
            pairs.append((node, follower))
    return pairs


def _only_reader(value: ir.Value) -> ir.Node | None:
    uses = list(value.uses())
    return (
        uses[0].node
        if len(uses) == 1 and uses[0].idx == 0 and not value.is_graph_output()
        else None
    )


def _scalable(node: ir.Node) -> bool:
    if node.op_type not in ("Conv", "Gemm"):
        return False
    attributes = ir.attributes(node)
    if (
        attributes.get("transA", 0)
        or attributes.get("alpha", 1.0) != 1.0
        or attributes.get("beta", 1.0) != 1.0
    ):
        return False
    parameters = [v for v in node.inputs[1:3] if v is not None]
    arrays = [ir.constant(v) for v in parameters]
    if (
        node.op_type == "Gemm"
        and len(arrays) == 2
        and arrays[1] is not None
        and arrays[1].ndim != 1
    ):
        return False
    once = all(len(list(v.uses())) == 1 and not v.is_graph_output() for v in parameters)
    return once and all(a is not None and a.dtype == np.float32 for a in arrays)


def weight_scale(weights: dict[str, np.ndarray], first: ir.Node, second: ir.Node) -> np.ndarray:
    """The paper's s of one pair, shape (channels between them,); 1 where a side is dead."""
    w1, w2 = _output_major(weights, first), _input_major(weights, second)
    r1 = np.abs(w1).reshape(len(w1), -1).max(axis=1)
    r2 = np.abs(w2).reshape(len(w2), -1).max(axis=1)
    return _ratio(np.sqrt(r1), np.sqrt(r2))


def activation_scale(
    weights: dict[str, np.ndarray], second: ir.Node, reach: np.ndarray, alpha: float
) -> np.ndarray:
    """S of one pair by activation ranges `reach`, shape (channels between them,); 1 where a side is
    dead.
    """
    w2 = np.abs(_input_major(weights, second))
    if _is_depthwise(second):
        return _ratio(reach, np.full(len(reach), max(reach.max(), SMALLEST_RANGE)))
    rows = w2.reshape(len(w2), w2.shape[1], -1).max(axis=2)  # (input channel, output channel)
    share = (rows / np.maximum(rows.max(axis=0), SMALLEST_RANGE)).max(axis=1)
    scale = _ratio(reach**alpha, share ** (1 - alpha))
    return np.asarray(scale / np.exp(np.log(scale).mean()))  # the overall magnitude stays


def _ratio(over: np.ndarray, under: np.ndarray) -> np.ndarray:
    alive = (
        (over > SMALLEST_RANGE) & (under > SMALLEST_RANGE)
        if len(over) == len(under)
        else np.zeros(len(over), bool)
    )
    scale = np.ones(len(over))
    scale[alive] = np.clip(over[alive] / under[alive], 1 / LARGEST_SCALE, LARGEST_SCALE)
    return scale


def rescale(
    weights: dict[str, np.ndarray], first: ir.Node, second: ir.Node, scale: np.ndarray
) -> None:
    """Apply s to one pair in `weights`, in place; pairs whose channels cannot be matched stay as
    they are.
    """
    w1, w2 = _output_major(weights, first), _input_major(weights, second)
    if not len(w1) == len(w2) == len(scale):
        return
    w1 /= scale.reshape(-1, *[1] * (w1.ndim - 1))
    w2 *= scale.reshape(-1, *[1] * (w2.ndim - 1))
    bias = first.inputs[2] if len(first.inputs) > 2 else None
    if bias is not None:
        weights[bias.name or ""] = weights[bias.name or ""] / scale


def _is_depthwise(node: ir.Node) -> bool:
    return node.op_type == "Conv" and int(ir.attributes(node).get("group", 1)) > 1


def _output_major(weights: dict[str, np.ndarray], node: ir.Node) -> np.ndarray:
    """A view of the weight with its output channels first."""
    weight = weights[_weight_name(node)]
    return weight if node.op_type == "Conv" or ir.attributes(node).get("transB", 0) else weight.T


def _input_major(weights: dict[str, np.ndarray], node: ir.Node) -> np.ndarray:
    """A view of the weight with the input channels first; of a grouped convolution, channel g * C/G
    + c.
    """
    weight = weights[_weight_name(node)]
    if node.op_type == "Gemm":
        return weight.T if ir.attributes(node).get("transB", 0) else weight
    groups = int(ir.attributes(node).get("group", 1))
    if groups == 1:
        return np.swapaxes(weight, 0, 1)
    if weight.shape[1] == 1:  # depthwise: output channels o*m .. belong to input channel o
        return weight.reshape(groups, -1, *weight.shape[2:])
    return np.zeros((0, 1))  # other grouped convolutions are left alone


def _weight_name(node: ir.Node) -> str:
    assert node.inputs[1] is not None
    return node.inputs[1].name or ""


PLUGIN = Equalize
