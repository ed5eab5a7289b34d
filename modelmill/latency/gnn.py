"""A graph neural network that adds up what every node costs, on several platforms at once.

    ms(model, p) = (exp(o_p) + sum over units u of exp(g_p(h_u)) * base_p(u)) * r^(s_p)
    base_p(u)    = a macs + b elements moved + c weights + d       all > 0, per label and platform

`base` is the time of a machine with fixed throughputs and a fixed cost per kernel: with it alone
the model extrapolates as physics does. The network g corrects it, within a factor e^2, for what
makes kernels efficient or not: channels that fill no vector, windows, caches. h_u starts from the
unit's own features and label and takes in those of its neighbours by GraphSAGE layers (Hamilton et
al., 2017; NNLQP, Liu et al., 2022, predicts latency from a sum pooling over such layers). All units
are costs, so models much larger or smaller than those learned from are no jump. The trunk is shared
by the platforms, heads are not. The loss is smooth L1 on the logarithm: relative errors. Where an
engine told what each of its kernels took, their parts of the time are learned as well as the sum:
a measured model then teaches some sixty kernels instead of one total.

r is how long the reference model took beside the measurement, to its usual time: a machine that
others use is slower at times, for minutes, and large models feel it more than the small reference
(s_p > 1). Predictions are for r = 1.

Training (`gnn_train`) is torch and torch_geometric; what was learned runs on numpy, because torch
alone takes longer to import than a prediction may take.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from modelmill.latency.features import GraphFeatures

SCALES = (1e-6, 1e-6, 1e-6, 1.0)  # units of the terms: millions
REACH = 2.0  # logarithm of the largest correction
_MODELSTART = -4.0  # log ms around a model's kernels


@dataclass(frozen=True)
class Settings:
    """layers: of message passing, 0 makes it a sum of kernels on their own. width: of the trunk.
    steps of Adam with models per step, from a learning rate that falls to 0 as a cosine.
    """

    layers: int = 2
    width: int = 64
    steps: int = 1000
    models: int = 32
    rate: float = 5e-3
    decay: float = 1e-3


@dataclass(frozen=True)
class Network:
    """What was learned, as arrays of float32: see `unit_ms` for their roles."""

    labels: tuple[str, ...]
    arrays: dict[str, np.ndarray]

    @property
    def slopes(self) -> np.ndarray:
        """(P,) the power of the reference's drift that models follow."""
        return self.arrays["slopes"]

    def log_ms(self, graph: GraphFeatures) -> np.ndarray:
        """(P,) logarithm of the latency in ms on each platform it learned."""
        costs = self.unit_ms(graph).sum(axis=0) + np.exp(self.arrays["model"])
        return np.asarray(np.log(costs))

    def unit_ms(self, graph: GraphFeatures) -> np.ndarray:
        """(N, P) ms that each unit adds.

        Raises:
            ValueError: a label it never saw.
        """
        a = self.arrays
        label = numbers_of(graph, self.labels)
        h = (graph.x - a["mean"]) * a["scale"] @ a["enter"] + a["label"][label]
        h = _silu(h)
        layer = 0
        while f"own{layer}" in a:
            gathered = h @ a[f"own{layer}"] + a[f"bias{layer}"]
            gathered += _neighbours(h, graph.edges) @ a[f"near{layer}"]
            h = h + _silu(gathered)
            layer += 1
        h = _silu(h @ a["hidden"] + a["hidden_bias"])
        correction = REACH * np.tanh((h @ a["leave"] + a["leave_bias"]) / REACH)
        base = np.einsum("nj,njp->np", terms_of(graph), np.exp(a["rates"][label]))
        return np.asarray(base * np.exp(correction))


# ---------------------------------------------------------------- numpy


def _silu(x: np.ndarray) -> np.ndarray:
    return np.asarray(x / (1 + np.exp(-np.clip(x, -60, 60))))


def _neighbours(h: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Mean over the neighbours of each unit, in both directions; 0 without one."""
    ends, others = np.concatenate([edges, edges[::-1]], axis=1)
    order = np.argsort(ends, kind="stable")
    sums, counts = np.zeros_like(h), np.bincount(ends, minlength=len(h))
    if len(order):
        there = np.flatnonzero(counts)
        starts = np.concatenate([[0], np.cumsum(counts[there])[:-1]])
        sums[there] = np.add.reduceat(h[others[order]], starts, axis=0) / counts[there, None]
    return sums


def terms_of(graph: GraphFeatures) -> np.ndarray:
    """(N, 4) MACs, elements moved, weights, 1, in the units of `SCALES`."""
    read, written, weights = (2.0 ** graph.x[:, column] - 1 for column in (1, 2, 3))
    terms = np.stack([graph.macs, read + written, weights, np.ones(len(graph.x))], axis=1)
    return np.asarray(terms * SCALES, dtype=np.float32)


def numbers_of(graph: GraphFeatures, labels: Sequence[str]) -> np.ndarray:
    place = {label: i for i, label in enumerate(labels)}
    unknown = sorted(set(graph.labels) - set(place))
    if unknown:
        raise ValueError(f"never learned what {', '.join(unknown)} costs")
    return np.array([place[label] for label in graph.labels], dtype=np.int64)
