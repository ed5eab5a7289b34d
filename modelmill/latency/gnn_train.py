"""Training of the network in `gnn`: it is made here in torch, and handed back as arrays."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from modelmill.latency.gnn import REACH, Network, Settings, numbers_of, terms_of
from modelmill.latency.table import Table

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # torch_geometric scripts on import
    from torch_geometric.nn import SAGEConv

TERMS = 4  # of `base`
START = (-4.0, -0.7, -0.7, -6.5)  # log ms of a million MACs, of a million elements, of a kernel
MODEL_START = -4.0  # log ms around a model's kernels
BETA = 0.05  # errors above it count linearly
INSIDE = 0.5  # weight of kernels against whole models
SMALLEST = 1e-3  # part of a model's time below which a kernel's is not told
OTHERS = ("common", "model", "slopes")  # not drawn to 0


def train(
    table: Table,
    settings: Settings,
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
    labels = tuple(sorted({label for graph in table.graphs for label in graph.labels}))
    data = _Data(table, labels)
    random = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = _Net(data, settings)
        groups = [
            {"params": net.weights, "weight_decay": settings.decay},
            {"params": net.others, "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=settings.rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
        drawn = _draws(random, len(table), settings)
        for step, rows in zip(range(settings.steps), drawn, strict=False):
            optimizer.zero_grad()
            timed = [data.kernels(rows, p) for p in range(data.platforms)]
            loss = net.loss(data.batch(rows), timed)
            loss.backward()  # type: ignore[no-untyped-call]
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


class _Data:
    """The table as flat arrays, and batches of it as tensors."""

    def __init__(self, table: Table, labels: Sequence[str]) -> None:
        rows = np.concatenate([graph.x for graph in table.graphs])
        self.mean = rows.mean(axis=0)
        spread = rows.std(axis=0)
        self.scale = np.where(spread > 1e-3, 1 / np.maximum(spread, 1e-3), 0).astype(np.float32)
        self.graphs = [
            ((g.x - self.mean) * self.scale, numbers_of(g, labels), terms_of(g), g.edges)
            for g in table.graphs
        ]
        self.log_ms = table.log_ms.astype(np.float32)
        self.drift = table.drift.astype(np.float32)
        self.profiles = table.profiles
        self.labels = len(labels)
        self.platforms = len(table.platforms)

    def batch(self, rows: np.ndarray) -> tuple[Tensor, ...]:
        """x, label, terms, edges in both directions, model of each unit, log ms (nan: unknown), log
        drift
        """
        chosen = [self.graphs[i] for i in rows]
        sizes = [len(x) for x, _, _, _ in chosen]
        starts = np.cumsum([0, *sizes[:-1]])
        x, label, terms = (np.concatenate([g[i] for g in chosen]) for i in range(3))
        edges = np.concatenate([g[3] + s for g, s in zip(chosen, starts, strict=True)], axis=1)
        both = np.concatenate([edges, edges[::-1]], axis=1)
        owner = np.repeat(np.arange(len(rows)), sizes)
        arrays = (x, label, terms, both, owner, self.log_ms[rows], self.drift[rows])
        return tuple(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays)

    def kernels(self, rows: np.ndarray, platform: int) -> tuple[Tensor, ...] | None:
        """Units whose kernels were timed, number of their kernel in the batch, the kernel's part of
        the time and its model; None without any.
        """
        found: list[tuple[np.ndarray, ...]] = []
        at, kernels = 0, 0
        for number, row in enumerate(rows):
            units = len(self.graphs[row][0])
            held = self.profiles[row][platform] if self.profiles else None
            if held is not None and np.isfinite(self.log_ms[row, platform]):
                models = np.full(len(held.parts), number)
                parts = held.parts.astype(np.float32)
                found.append((at + np.arange(units), kernels + held.kernels, parts, models))
                kernels += len(held.parts)
            at += units
        if not found:
            return None
        return tuple(torch.from_numpy(np.concatenate(each)) for each in zip(*found, strict=True))


class _Net(nn.Module):
    def __init__(self, data: _Data, settings: Settings) -> None:
        super().__init__()
        width = settings.width
        self.enter = nn.Linear(data.mean.size, width, bias=False)
        self.label = nn.Parameter(0.1 * torch.randn(data.labels, width))
        self.near = nn.ModuleList(SAGEConv(width, width) for _ in range(settings.layers))
        self.hidden = nn.Linear(width, width)
        self.leave = nn.Linear(width, data.platforms)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)
        start = torch.tensor(START)[:, None].repeat(1, data.platforms)
        self.common = nn.Parameter(start)
        self.special = nn.Parameter(torch.zeros(data.labels, TERMS, data.platforms))
        self.slopes = nn.Parameter(torch.ones(data.platforms))
        self.model = nn.Parameter(torch.full((data.platforms,), MODEL_START))

    @property
    def weights(self) -> list[nn.Parameter]:
        """What is drawn to 0 when nothing speaks against it."""
        return [p for n, p in self.named_parameters() if n not in OTHERS]

    @property
    def others(self) -> list[nn.Parameter]:
        return [p for n, p in self.named_parameters() if n in OTHERS]

    def loss(self, batch: tuple[Tensor, ...], timed: Sequence[tuple[Tensor, ...] | None]) -> Tensor:
        x, label, terms, edges, owner, log_ms, drift = batch
        h = nn.functional.silu(self.enter(x) + self.label[label])
        for layer in self.near:
            h = h + nn.functional.silu(layer(h, edges))
        h = nn.functional.silu(self.hidden(h))
        correction = REACH * torch.tanh(self.leave(h) / REACH)
        rates = (self.common + self.special).exp()
        base = torch.einsum("nj,njp->np", terms, rates[label])
        costs = base * correction.exp()
        total = self.model.exp().expand(len(log_ms), -1).index_add(0, owner, costs)
        known = ~torch.isnan(log_ms)
        told = total.log() + self.slopes * drift
        off = (told - torch.nan_to_num(log_ms))[known]
        loss = nn.functional.smooth_l1_loss(off, torch.zeros_like(off), beta=BETA)
        calm = log_ms - self.slopes.detach() * drift
        inside = [
            _off_inside(costs[:, p], calm[:, p], *of)
            for p, of in enumerate(timed)
            if of is not None
        ]
        return loss + INSIDE * torch.stack(inside).mean() if inside else loss

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
            "slopes": self.slopes,
        }
        held = self.state_dict()
        for i in range(len(self.near)):
            found |= {
                f"own{i}": held[f"near.{i}.lin_r.weight"].T,
                f"near{i}": held[f"near.{i}.lin_l.weight"].T,
                f"bias{i}": held[f"near.{i}.lin_l.bias"],
            }
        return {
            name: np.ascontiguousarray(
                v.detach().numpy() if isinstance(v, Tensor) else v, dtype=np.float32
            )
            for name, v in found.items()
        }


def _off_inside(
    costs: Tensor, log_ms: Tensor, units: Tensor, kernels: Tensor, parts: Tensor, models: Tensor
) -> Tensor:
    """How far the kernels of one platform are off, each by its part of the time."""
    made = torch.zeros(len(parts)).index_add(0, kernels, costs[units])
    off = made.log() - log_ms[models] - parts.clamp(min=SMALLEST).log()
    loss = nn.functional.smooth_l1_loss(off, torch.zeros_like(off), beta=BETA, reduction="none")
    return (loss * parts).sum() / parts.sum()
