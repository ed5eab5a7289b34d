"""Cross-layer equalisation (Nagel et al. 2019, arXiv:1906.04721, section 4.1).

For a pair y = W2 f(W1 x + b1), f positively homogeneous per channel (ReLU, LeakyReLU or nothing), every s > 0 gives

    W2 f(W1 x + b1) = (W2 S) f(S^-1 W1 x + S^-1 b1),     s_c = sqrt(r1_c / r2_c)

with r1_c = max |W1[c]| over output channel c and r2_c = max |W2[:, c]| over the input channel it feeds. Afterwards both
ranges are sqrt(r1_c r2_c). Chains are swept until nothing moves. The float output does not change but for rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from modelmill import ir
from modelmill.ir import Plan
from modelmill.quant.observe import Batches

HOMOGENEOUS = ("Relu", "LeakyRelu")
# A channel that is (nearly) dead on either side has no meaningful ratio; scaling it would only invite overflow.
SMALLEST_RANGE = 1e-8
LARGEST_SCALE = 1e4


@dataclass(frozen=True)
class Equalize:
    """The equalisation step. sweeps: at most so many passes over all pairs; converged: stop below this change of s."""

    sweeps: int = 20
    converged: float = 1e-3

    def __call__(self, graph: ir.Graph, plan: Plan, batches: Batches) -> tuple[ir.Graph, Plan]:
        """A graph with equalised weights and biases, and the same plan. `batches` are not read."""
        made = ir.clone(graph)
        pairs = find_pairs(made)
        weights = {n: a.astype(np.float64) for n, a in ir.constants(made).items() if a.dtype == np.float32}
        for _ in range(self.sweeps):
            change = 0.0
            for first, second in pairs:
                scale = equalize_pair(weights, first, second)
                change = max(change, float(np.abs(scale - 1).max()))
            if change < self.converged:
                break
        for node in dict.fromkeys(node for pair in pairs for node in pair):
            for index, value in list(enumerate(node.inputs))[1:3]:
                if value is not None:
                    ir.set_constant(made, node, index, weights[value.name or ""].astype(np.float32))
        return made, plan


def find_pairs(graph: ir.Graph) -> list[tuple[ir.Node, ir.Node]]:
    """Convolutions and Gemms of which the second is the only reader of the first, through an activation or directly.

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
    return uses[0].node if len(uses) == 1 and uses[0].idx == 0 and not value.is_graph_output() else None


def _scalable(node: ir.Node) -> bool:
    if node.op_type not in ("Conv", "Gemm"):
        return False
    attributes = ir.attributes(node)
    if attributes.get("transA", 0) or attributes.get("alpha", 1.0) != 1.0 or attributes.get("beta", 1.0) != 1.0:
        return False
    parameters = [v for v in node.inputs[1:3] if v is not None]
    arrays = [ir.constant(v) for v in parameters]
    if node.op_type == "Gemm" and len(arrays) == 2 and arrays[1] is not None and arrays[1].ndim != 1:
        return False
    once = all(len(list(v.uses())) == 1 and not v.is_graph_output() for v in parameters)
    return once and all(a is not None and a.dtype == np.float32 for a in arrays)


def equalize_pair(weights: dict[str, np.ndarray], first: ir.Node, second: ir.Node) -> np.ndarray:
    """Scale one pair in `weights`, in place; the scales s, shape (channels between them,)."""
    w1, w2 = _output_major(weights, first), _input_major(weights, second)
    r1 = np.abs(w1).reshape(len(w1), -1).max(axis=1)
    r2 = np.abs(w2).reshape(len(w2), -1).max(axis=1)
    if len(r1) != len(r2):
        return np.ones(1)
    alive = (r1 > SMALLEST_RANGE) & (r2 > SMALLEST_RANGE)
    scale = np.ones(len(r1))
    scale[alive] = np.clip(np.sqrt(r1[alive] / r2[alive]), 1 / LARGEST_SCALE, LARGEST_SCALE)
    w1 /= scale.reshape(-1, *[1] * (w1.ndim - 1))
    w2 *= scale.reshape(-1, *[1] * (w2.ndim - 1))
    bias = first.inputs[2] if len(first.inputs) > 2 else None
    if bias is not None:
        weights[bias.name or ""] = weights[bias.name or ""] / scale
    return scale


def _output_major(weights: dict[str, np.ndarray], node: ir.Node) -> np.ndarray:
    """A view of the weight with its output channels first."""
    weight = weights[_weight_name(node)]
    return weight if node.op_type == "Conv" or ir.attributes(node).get("transB", 0) else weight.T


def _input_major(weights: dict[str, np.ndarray], node: ir.Node) -> np.ndarray:
    """A view of the weight with the input channels first; of a grouped convolution, channel g * C/G + c."""
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
