"""A graph neural network that adds up what every node costs, on several platforms at once.

    ms(model, p) = exp(o_p) + sum over units u of exp(g_p(h_u)) * base_p(u)
    base_p(u)    = a macs + b elements moved + c weights + d       all > 0, per label and platform

`base` is the time of a machine with fixed throughputs and a fixed cost per kernel: with it alone
the model extrapolates as physics does. The network g corrects it, within a factor e^2, for what
makes kernels efficient or not: channels that fill no vector, windows, caches. h_u starts from the
unit's own features and label and takes in those of its neighbours by GraphSAGE layers (Hamilton et
al., 2017; NNLQP, Liu et al., 2022, predicts latency from a sum pooling over such layers). All units
are costs, so models much larger or smaller than those learned from are no jump. The trunk is shared
by the platforms, heads are not. The loss is smooth L1 on the logarithm: relative errors.

Training is torch and torch_geometric; what was learned runs on numpy, because torch alone takes
longer to import than a prediction may take.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from modelmill.latency.features import GraphFeatures
from modelmill.latency.table import Table

if TYPE_CHECKING:
    import torch

_TERMS = 4  # of `base`
_SCALES = (1e-6, 1e-6, 1e-6, 1.0)  # units of the terms: millions
_START = (-4.0, -0.7, -0.7, -6.5)  # log ms of a million MACs, of a million elements, of a kernel
_REACH = 2.0  # logarithm of the largest correction
_MODEL_START = -4.0  # log ms around a model's kernels


@dataclass(frozen=True)
class Settings:
    """layers: of message passing, 0 makes it a sum of kernels on their own. width: of the trunk.
    steps of Adam with models per step, from a learning rate that falls to 0 as a cosine.
    """

    layers: int = 1
    width: int = 64
    steps: int = 800
    models: int = 32
    rate: float = 5e-3
    decay: float = 1e-3


@dataclass(frozen=True)
class Network:
    """What was learned, as arrays of float32: see `_forward` for their roles."""

    labels: tuple[str, ...]
    arrays: dict[str, np.ndarray]

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
        label = _numbers(graph, self.labels)
        h = (graph.x - a["mean"]) * a["scale"] @ a["enter"] + a["label"][label]
        h = _silu(h)
        layer = 0
        while f"own{layer}" in a:
            gathered = h @ a[f"own{layer}"] + a[f"bias{layer}"]
            gathered += _neighbours(h, graph.edges) @ a[f"near{layer}"]
            h = h + _silu(gathered)
            layer += 1
        h = _silu(h @ a["hidden"] + a["hidden_bias"])
        correction = _REACH * np.tanh((h @ a["leave"] + a["leave_bias"]) / _REACH)
        base = np.einsum("nj,njp->np", _terms(graph), np.exp(a["rates"][label]))
        return np.asarray(base * np.exp(correction))


def train(
    table: Table,
    settings: Settings = Settings(),
    seed: int = 0,
    show: Callable[[int, int], None] = lambda done, total: None,
) -> Network:
    """A network fitted to the table; the same seed gives the same arrays.

    Args:
        table: at least one latency on every platform.
        settings: size and effort.
        seed: of the start and the order of models.
        show: told how many steps are done, and of how many.
    """
    import torch

    labels = tuple(sorted({label for graph in table.graphs for label in graph.labels}))
    data = _Data(table, labels)
    random = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = _net(data, settings)
        groups = [
            {"params": net.weights, "weight_decay": settings.decay},
            {"params": net.others, "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=settings.rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
        drawn = _draws(random, len(table), settings)
        for step, rows in zip(range(settings.steps), drawn, strict=False):
            optimizer.zero_grad()
            loss = net.loss(data.batch(rows))
            loss.backward()
            torch.nn.utils.clip_grad_norm_([*net.weights, *net.others], 1.0)
            optimizer.step()
            schedule.step()
            show(step + 1, settings.steps)
    return Network(labels, net.learned(data))


def _draws(random: np.random.Generator, count: int, settings: Settings) -> Iterator[np.ndarray]:
    while True:
        order = random.permutation(count)
        size = min(settings.models, count)
        for start in range(0, count - size + 1, size):
            yield order[start : start + size]


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


def _terms(graph: GraphFeatures) -> np.ndarray:
    """(N, 4) MACs, elements moved, weights, 1, in the units of `_SCALES`."""
    read, written, weights = (2.0 ** graph.x[:, column] - 1 for column in (1, 2, 3))
    terms = np.stack([graph.macs, read + written, weights, np.ones(len(graph.x))], axis=1)
    return np.asarray(terms * _SCALES, dtype=np.float32)


def _numbers(graph: GraphFeatures, labels: Sequence[str]) -> np.ndarray:
    place = {label: i for i, label in enumerate(labels)}
    unknown = sorted(set(graph.labels) - set(place))
    if unknown:
        raise ValueError(f"never learned what {', '.join(unknown)} costs")
    return np.array([place[label] for label in graph.labels], dtype=np.int64)


# ---------------------------------------------------------------- torch


class _Data:
    """The table as flat arrays, and batches of it as tensors."""

    def __init__(self, table: Table, labels: Sequence[str]) -> None:
        rows = np.concatenate([graph.x for graph in table.graphs])
        self.mean = rows.mean(axis=0)
        spread = rows.std(axis=0)
        self.scale = np.where(spread > 1e-3, 1 / np.maximum(spread, 1e-3), 0).astype(np.float32)
        self.graphs = [
            ((g.x - self.mean) * self.scale, _numbers(g, labels), _terms(g), g.edges)
            for g in table.graphs
        ]
        self.log_ms = table.log_ms.astype(np.float32)
        self.labels = len(labels)
        self.platforms = len(table.platforms)

    def batch(self, rows: np.ndarray) -> tuple[torch.Tensor, ...]:
        """x, label, terms, edges in both directions, model of each unit, log ms (nan: unknown)"""
        import torch

        chosen = [self.graphs[i] for i in rows]
        sizes = [len(x) for x, _, _, _ in chosen]
        starts = np.cumsum([0, *sizes[:-1]])
        x, label, terms = (np.concatenate([g[i] for g in chosen]) for i in range(3))
        edges = np.concatenate([g[3] + s for g, s in zip(chosen, starts, strict=True)], axis=1)
        both = np.concatenate([edges, edges[::-1]], axis=1)
        owner = np.repeat(np.arange(len(rows)), sizes)
        arrays = (x, label, terms, both, owner, self.log_ms[rows])
        return tuple(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays)


def _net(data: _Data, settings: Settings) -> Any:
    """A torch module made here, so that nothing above imports torch."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch_geometric scripts on import
        from torch_geometric.nn import SAGEConv

    width, nn = settings.width, torch.nn

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter = nn.Linear(data.mean.size, width, bias=False)
            self.label = nn.Parameter(0.1 * torch.randn(data.labels, width))
            self.near: Any = nn.ModuleList(SAGEConv(width, width) for _ in range(settings.layers))
            self.hidden = nn.Linear(width, width)
            self.leave = nn.Linear(width, data.platforms)
            nn.init.zeros_(self.leave.weight)
            nn.init.zeros_(self.leave.bias)
            start = torch.tensor(_START)[:, None].repeat(1, data.platforms)
            self.common = nn.Parameter(start)
            self.special = nn.Parameter(torch.zeros(data.labels, _TERMS, data.platforms))
            self.model = nn.Parameter(torch.full((data.platforms,), _MODEL_START))

        @property
        def weights(self) -> list[torch.nn.Parameter]:
            """What is drawn to 0 when nothing speaks against it."""
            return [p for n, p in self.named_parameters() if n not in ("common", "model")]

        @property
        def others(self) -> list[torch.nn.Parameter]:
            return [self.common, self.model]

        def loss(self, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
            x, label, terms, edges, owner, log_ms = batch
            h = nn.functional.silu(self.enter(x) + self.label[label])
            for layer in self.near:
                h = h + nn.functional.silu(layer(h, edges))
            h = nn.functional.silu(self.hidden(h))
            correction = _REACH * torch.tanh(self.leave(h) / _REACH)
            rates = (self.common + self.special).exp()
            base = torch.einsum("nj,njp->np", terms, rates[label])
            costs = base * correction.exp()
            total = self.model.exp().expand(len(log_ms), -1).index_add(0, owner, costs)
            known = ~torch.isnan(log_ms)
            off = (total.log() - torch.nan_to_num(log_ms))[known]
            return nn.functional.smooth_l1_loss(off, torch.zeros_like(off), beta=0.05)

        def learned(self, data: _Data) -> dict[str, np.ndarray]:
            found = {
                "mean": data.mean,
                "scale": data.scale,
                "enter": self.enter.weight.T,
                "label": self.label,
                "hidden": self.hidden.weight.T,
                "hidden_bias": self.hidden.bias,
                "leave": self.leave.weight.T,
                "leave_bias": self.leave.bias,
                "rates": self.common + self.special,
                "model": self.model,
            }
            for i, layer in enumerate(self.near):
                found |= {
                    f"own{i}": layer.lin_r.weight.T,
                    f"near{i}": layer.lin_l.weight.T,
                    f"bias{i}": layer.lin_l.bias,
                }
            return {
                name: np.ascontiguousarray(
                    v.detach().numpy() if isinstance(v, torch.Tensor) else v, dtype=np.float32
                )
                for name, v in found.items()
            }

    return Net()
