"""The latency of a model that nobody measured: a median, an interval, and whether to believe it.

An ensemble of networks (see `gnn`), each trained without two of the folds of the measured models,
so that every model was left out by two of them: their errors there show what is still wrong between
similar models (`residuals`) and how wide intervals must be (`interval`). Further networks that
leave out whole families are there for the intervals alone: they say how errors grow with the
distance from all that was measured.

    median = exp(mean of the ensemble's log ms - correction by similar models)

Measurements are taken as if the machine had always been in its usual state: the networks learn how
models slow down where the reference model beside them did.

An operator that was never measured on a platform has no cost that anyone could know: that is an
error which names it, not a number.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np

from modelmill import ir
from modelmill.latency import gnn
from modelmill.latency.features import COLUMNS, WHOLE, GraphFeatures, features
from modelmill.latency.interval import Held, Interval, calibrate
from modelmill.latency.residuals import Kriging, Space, between, far, krige, space
from modelmill.latency.select import work
from modelmill.latency.table import Errors, Table, errors, folds
from modelmill.latency.transfer import adapt
from modelmill.records.measurement import Platform

LEAST = 12  # measured models without which there is nothing to fit
FEW = 200  # measured models below which what other platforms say of each counts as much
_MAGIC = b"modelmill predictor 1\n"
_NEAR = 5
_WIDE = 0.25  # an interval that reaches further than this part above the median is no answer
_FAR = 2.0  # times the distance that 95 of 100 measured models have from the others
Show = Callable[[int, int], None]


class UnknownOperatorError(ValueError):
    """An operator that was never measured on the platform; the text names it and what to run."""


@dataclass(frozen=True)
class Effort:
    """folds: of the measured models, and networks of the ensemble. groups: of families, each left
    out by two networks, 0 for none. settings: of each network. workers: processes that train.
    """

    folds: int = 8
    groups: int = 3
    settings: gnn.Settings = field(default_factory=gnn.Settings)
    workers: int = 1


@dataclass(frozen=True)
class Near:
    """A measured model. distance: 1 is usual between neighbours."""

    name: str
    structure: str
    distance: float
    p50_ms: float


@dataclass(frozen=True)
class Prediction:
    """low_ms, high_ms: ends of the 90 % interval. why: what `trusted` rests on. nearest: measured
    models on this platform, nearest first.
    """

    p50_ms: float
    low_ms: float
    high_ms: float
    trusted: bool
    why: str
    nearest: tuple[Near, ...]


@dataclass(frozen=True)
class Predictor:
    """What `fit` learned.

    platforms     it was trained on; log_ms (M, P) has their columns
    members       the ensemble
    place         where the M measured models lie, with their names and structures
    seen          (labels, P) how many measured models hold each label
    corrections   of similar models, per platform
    reach         distance from the others that 95 of 100 measured models keep
    errors        cross-validated, per platform
    """

    platforms: tuple[Platform, ...]
    members: tuple[gnn.Network, ...]
    place: Space
    names: tuple[str, ...]
    structures: tuple[str, ...]
    log_ms: np.ndarray
    labels: tuple[str, ...]
    seen: np.ndarray
    corrections: tuple[Kriging, ...]
    interval: Interval
    reach: float
    errors: tuple[Errors, ...]

    def predict(self, graph: ir.Graph | GraphFeatures, platform: Platform) -> Prediction:
        """The latency of a graph on a platform.

        Raises:
            ValueError: a platform it was not trained on (lists those), an open dimension.
            UnknownOperatorError: an operator that was never measured there.
        """
        found = graph if isinstance(graph, GraphFeatures) else features(graph)
        column = self._column(platform)
        self._check_labels(found, column)
        each = self._each(found)[:, column]
        distances = self.place.distances(self.place.place(found))
        known = np.isfinite(self.log_ms[:, column])
        away = far(distances[known])
        log_ms = float(np.nanmean(each)) - self.corrections[column](distances)
        half = self.interval.half(column, away, _disagreement(each))
        trusted, why = self._judge(half, away, int(known.sum()))
        low, middle, high = (_exp(log_ms + d) for d in (-half, 0.0, half))
        near = self._nearest(distances, column)
        return Prediction(middle, low, high, trusted, why, near)

    def log_ms_of(self, graphs: Sequence[GraphFeatures]) -> np.ndarray:
        """(M, P) logarithms of the medians; nan where an operator was never learned at all."""
        rows = []
        for graph in graphs:
            if not set(graph.labels) <= set(self.labels):
                rows.append(np.full(len(self.platforms), np.nan))
                continue
            distances = self.place.distances(self.place.place(graph))
            off = np.array([correct(distances) for correct in self.corrections])
            rows.append(np.nanmean(self._each(graph), axis=0) - off)
        return np.stack(rows)

    @property
    def slopes(self) -> np.ndarray:
        """(P,) how models follow the reference, as powers."""
        return _slopes(self.members)

    def _column(self, platform: Platform) -> int:
        for column, own in enumerate(self.platforms):
            if own == platform:
                return column
        there = "; ".join(f"{p.name} ({p.device}, {p.version})" for p in self.platforms)
        raise ValueError(
            f"no prediction for {platform.name} ({platform.device}, {platform.version}); learned: "
            f"{there}. Measure some models there and run modelmill latency fit"
        )

    def _check_labels(self, graph: GraphFeatures, column: int) -> None:
        known = {label for label, n in zip(self.labels, self.seen[:, column], strict=True) if n}
        unknown = sorted(set(graph.labels) - known)
        if unknown:
            at = self.platforms[column]
            raise UnknownOperatorError(
                f"{', '.join(unknown)}: never measured on {at.name}, so there is no prediction; "
                f"run modelmill latency query MODEL -t {at.target} --precision {at.precision}, "
                "which measures the model"
            )

    def _each(self, graph: GraphFeatures) -> np.ndarray:
        return _answers(self.members, graph, len(self.platforms))

    def _judge(self, half: float, away: float, count: int) -> tuple[bool, str]:
        """Whether to trust a prediction, and why."""
        if not math.isfinite(half):
            return False, f"{count} measured models are too few to say how wrong this may be"
        above = math.expm1(half)
        if away > _FAR * self.reach:
            return False, (
                f"unlike all measured models: {away / self.reach:.1f} times as far from them as "
                "they lie apart"
            )
        if above > _WIDE:
            return False, f"the interval reaches {above:.0%} above the median"
        return True, f"within {above:.0%}, judged by {count} models measured here"

    def _nearest(self, distances: np.ndarray, column: int) -> tuple[Near, ...]:
        known = np.isfinite(self.log_ms[:, column])
        order = np.argsort(np.where(known, distances, np.inf), kind="stable")[:_NEAR]
        return tuple(
            Near(
                self.names[i], self.structures[i], float(distances[i]), _exp(self.log_ms[i, column])
            )
            for i in order
            if known[i]
        )

    def to_bytes(self) -> bytes:
        """All of it: a header in JSON, then the numbers."""
        arrays = {
            "points": self.place.points,
            "mean": self.place.mean,
            "scale": self.place.scale,
            "log_ms": self.log_ms,
            "seen": self.seen,
            "weights": np.stack([c.weights for c in self.corrections]),
        }
        for number, member in enumerate(self.members):
            arrays |= {f"{number}/{name}": array for name, array in member.arrays.items()}
        facts = {
            "columns": [*COLUMNS, *WHOLE],
            "platforms": [asdict(p) for p in self.platforms],
            "members": [list(m.labels) for m in self.members],
            "unit": self.place.unit,
            "names": self.names,
            "structures": self.structures,
            "labels": self.labels,
            "lengths": [c.length for c in self.corrections],
            "interval": asdict(self.interval),
            "reach": self.reach,
            "errors": [asdict(e) for e in self.errors],
        }
        return _pack(facts, arrays)


def from_bytes(data: bytes) -> Predictor:
    """What `Predictor.to_bytes` wrote.

    Raises:
        ValueError: something else, or of another version of the features.
    """
    facts, arrays = _unpack(data)
    if facts["columns"] != [*COLUMNS, *WHOLE]:
        raise ValueError(
            "this predictor was fitted by another version of modelmill; run modelmill latency fit"
        )
    members = []
    for number, labels in enumerate(facts["members"]):
        start = f"{number}/"
        own = {n.removeprefix(start): a for n, a in arrays.items() if n.startswith(start)}
        members.append(gnn.Network(tuple(labels), own))
    interval = facts["interval"]
    lengths = zip(facts["lengths"], arrays["weights"], strict=True)
    return Predictor(
        platforms=tuple(Platform(**p) for p in facts["platforms"]),
        members=tuple(members),
        place=Space(arrays["points"], arrays["mean"], arrays["scale"], facts["unit"]),
        names=tuple(facts["names"]),
        structures=tuple(facts["structures"]),
        log_ms=arrays["log_ms"],
        labels=tuple(facts["labels"]),
        seen=arrays["seen"],
        corrections=tuple(Kriging(length, weights) for length, weights in lengths),
        interval=Interval(tuple(interval["factors"]), tuple(interval["quantiles"])),
        reach=facts["reach"],
        errors=tuple(Errors(**e) for e in facts["errors"]),
    )


# ---------------------------------------------------------------- fit


def fit(
    table: Table,
    platforms: Sequence[Platform],
    effort: Effort = Effort(),
    seed: int = 0,
    show: Show = lambda done, total: None,
) -> Predictor:
    """A predictor of the latencies in the table; the same seed gives the same bytes.

    Args:
        table: measured models.
        platforms: what its columns are.
        effort: how much is trained.
        seed: of folds and networks.
        show: told how many networks are done, and of how many.

    Raises:
        ValueError: too few measured models.
    """
    counts = np.isfinite(table.log_ms).sum(axis=0)
    for platform, count in zip(platforms, counts, strict=True):
        if count < LEAST:
            raise ValueError(
                f"{platform.name}: {count} measured models, {LEAST} are needed at least and some "
                f"hundreds wanted; run modelmill latency measure --zoo all -t {platform.target} "
                f"--precision {platform.precision} --count 100"
            )
    fold = folds(table, effort.folds, seed)
    left_out = [np.isin(fold, (k, (k + 1) % effort.folds)) for k in range(effort.folds)]
    families = _family_groups(table, effort.groups, seed)
    networks = _train(table, left_out + [g for g in families for _ in range(2)], effort, seed, show)
    members, others = networks[: effort.folds], networks[effort.folds :]
    place = space(table.graphs)
    labels = tuple(sorted({label for graph in table.graphs for label in graph.labels}))
    holds = np.array([[label in set(g.labels) for label in labels] for g in table.graphs])
    seen = holds.T.astype(np.int64) @ np.isfinite(table.log_ms).astype(np.int64)

    calm = table.calm(_slopes(members))
    mean, spread = _summary(_held_out(table, members, left_out))
    error = mean - calm.log_ms
    corrections, remains = _corrections(place, error, _few_measured(calm, members, place, error))
    away = _distances(place, np.eye(len(table), dtype=bool))
    held = [_held(remains * _shrink(spread, error, effort.folds), away, spread, True)]
    held += _far_errors(calm, place, families, others)
    return Predictor(
        platforms=tuple(platforms),
        members=members,
        place=place,
        names=table.names,
        structures=table.structures,
        log_ms=table.log_ms.astype(np.float32),
        labels=labels,
        seen=seen,
        corrections=corrections,
        interval=calibrate(_joined(held), len(platforms)),
        reach=float(np.quantile(away, 0.95)),
        errors=tuple(errors(e, np.zeros_like(e)) for e in remains.T),
    )


def _slopes(members: Sequence[gnn.Network]) -> np.ndarray:
    """(P,) how models follow the reference, on average."""
    return np.asarray(np.mean([member.slopes for member in members], axis=0))


def _corrections(
    place: Space, error: np.ndarray, said: np.ndarray
) -> tuple[tuple[Kriging, ...], np.ndarray]:
    """One per platform, from the errors (M, P) of measured models and what is said of others, and
    (M, P) what is left of the first.
    """
    wrong, sure = np.where(np.isfinite(error), error, said), np.isfinite(said)
    kriged = [krige(place, *column) for column in zip(wrong.T, sure.T, strict=True)]
    remains = np.stack([left for _, left in kriged], axis=1)
    remains[~np.isfinite(error)] = np.nan
    return tuple(correction for correction, _ in kriged), remains


def _few_measured(
    calm: Table, members: Sequence[gnn.Network], place: Space, error: np.ndarray
) -> np.ndarray:
    """(M, P) by how much the ensemble is off the middle between its corrected answer and what
    `transfer` makes of the other platforms, where a platform has few measured models and this is
    none of them; else nan. The two err differently.
    """
    found = np.full(calm.log_ms.shape, np.nan)
    known = np.isfinite(calm.log_ms)
    few = [p for p, count in enumerate(known.sum(axis=0)) if count < FEW <= known.sum(axis=0).max()]
    if not few:
        return found
    amounts = np.stack([work(graph) for graph in calm.graphs])
    others = np.delete(calm.log_ms, few, axis=1)
    for column in few:
        rows = np.flatnonzero(known[:, column])
        samples = dict(zip(rows.tolist(), np.exp(calm.log_ms[rows, column]).tolist(), strict=True))
        told = adapt(amounts, others, samples).log_ms
        correct, _ = krige(place, error[:, column])
        for row in np.flatnonzero(~known[:, column] & np.isfinite(others).any(axis=1)):
            own = _answers(members, calm.graphs[row], known.shape[1])[:, column]
            corrected = np.nanmean(own) - correct(place.distances(place.points[row]))
            found[row, column] = np.nanmean(own) - (corrected + told[row]) / 2
    return found


def _far_errors(
    calm: Table, place: Space, families: Sequence[np.ndarray], others: Sequence[gnn.Network]
) -> list[Held]:
    """Errors of models whose families two networks never saw."""
    found = []
    for number, group in enumerate(families):
        two = others[2 * number : 2 * number + 2]
        mean, spread = _summary(_held_out(calm, two, (group, group)))
        away = _distances(place, np.broadcast_to(group, (len(calm), len(calm))))
        found.append(_held(mean - calm.log_ms, away, spread, False))
    return found


def _family_groups(table: Table, count: int, seed: int) -> list[np.ndarray]:
    """(M,) masks of models whose families are left out together; none where families are few."""
    names = sorted(set(table.families) - {""})
    if len(names) < count + 1 or not count:
        return []
    order = np.random.default_rng(seed).permutation(len(names))
    group = {name: int(i) % count for name, i in zip(names, order, strict=True)}
    number = np.array([group.get(family, -1) for family in table.families])
    return [number == k for k in range(count)]


def _train(
    table: Table, left_out: Sequence[np.ndarray], effort: Effort, seed: int, show: Show
) -> tuple[gnn.Network, ...]:
    """A network without each of these sets of models, in processes of one thread each."""
    parts = [table.at(np.flatnonzero(~mask)) for mask in left_out]
    learn = partial(_learn, settings=effort.settings)
    seeds = [seed * 1000 + number for number in range(len(parts))]
    found = []
    if effort.workers < 2:
        for part, own in zip(parts, seeds, strict=True):
            found.append(learn(part, own))
            show(len(found), len(parts))
        return tuple(found)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(effort.workers, spawn) as pool:
        for network in pool.map(learn, parts, seeds):
            found.append(network)
            show(len(found), len(parts))
    return tuple(found)


def _learn(table: Table, seed: int, settings: gnn.Settings) -> gnn.Network:
    """One network on one thread: the matrices are small, and sums depend on how they are split."""
    import torch

    from modelmill.latency.gnn_train import train

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return train(table, settings, seed)
    finally:
        torch.set_num_threads(threads)


# ---------------------------------------------------------------- held-out answers


def _answers(members: Sequence[gnn.Network], graph: GraphFeatures, platforms: int) -> np.ndarray:
    """(members, P) log ms; nan where a member never learned a label of the graph."""
    rows = [
        m.log_ms(graph) if set(graph.labels) <= set(m.labels) else np.full(platforms, np.nan)
        for m in members
    ]
    return np.stack(rows)


def _held_out(
    table: Table, members: Sequence[gnn.Network], left_out: Sequence[np.ndarray]
) -> np.ndarray:
    """(members, M, P) log ms of what each member was not trained on, nan elsewhere."""
    found = np.full((len(members), *table.log_ms.shape), np.nan)
    for number, (member, mask) in enumerate(zip(members, left_out, strict=True)):
        for row in np.flatnonzero(mask):
            found[number, row] = _answers((member,), table.graphs[row], found.shape[2])[0]
    return found


def _summary(answers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(M, P) mean of the two answers there are, and their difference; nan where one is missing."""
    known = np.isfinite(answers).sum(axis=0) > 1
    low, high = (
        np.where(np.isfinite(answers), answers, np.inf).min(axis=0),
        np.where(np.isfinite(answers), answers, -np.inf).max(axis=0),
    )
    low, high = np.where(known, low, np.nan), np.where(known, high, np.nan)
    return (low + high) / 2, high - low


def _disagreement(answers: np.ndarray) -> float:
    """What the difference of two members is on average, for one model and platform (members,)."""
    known = answers[np.isfinite(answers)]
    return float(np.abs(known - np.roll(known, 1)).mean()) if len(known) > 1 else math.inf


def _shrink(spread: np.ndarray, error: np.ndarray, members: int) -> float:
    """By how much the mean of all members is off less than the mean of two, as a factor.

    Half the mean square difference of two is the variance of one, of which a mean of n keeps 1 / n.
    """
    known = np.isfinite(spread) & np.isfinite(error)
    if not known.any():
        return 1.0
    variance = float((spread[known] ** 2).mean()) / 2
    saved = variance * (1 / 2 - 1 / members) / max(float((error[known] ** 2).mean()), 1e-12)
    return math.sqrt(max(1 - saved, 0.25))


def _distances(place: Space, hidden: np.ndarray) -> np.ndarray:
    """(M,) how far each model is from those that `hidden` (M, M) does not hide from it."""
    found = between(place.points, place.points) / place.unit
    return np.array([far(row[~mask]) for row, mask in zip(found, hidden, strict=True)])


def _held(error: np.ndarray, away: np.ndarray, spread: np.ndarray, at_random: bool) -> Held:
    rows, columns = np.nonzero(np.isfinite(error) & np.isfinite(spread))
    kind = np.full(len(rows), at_random)
    return Held(error[rows, columns], away[rows], spread[rows, columns], columns, kind)


def _joined(parts: Sequence[Held]) -> Held:
    names = ("error", "distance", "spread", "platform", "random")
    return Held(*(np.concatenate([getattr(p, name) for p in parts]) for name in names))


# ---------------------------------------------------------------- bytes


def _pack(facts: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> bytes:
    """Compressed: the length of the header, the header, the arrays one after the other."""
    little = {n: np.ascontiguousarray(a, a.dtype.newbyteorder("<")) for n, a in arrays.items()}
    shapes = {n: (a.dtype.str, a.shape) for n, a in little.items()}
    header = json.dumps({**facts, "arrays": shapes}).encode()
    body = b"".join(a.tobytes() for a in little.values())
    return _MAGIC + zlib.compress(len(header).to_bytes(8, "little") + header + body, 6)


def _unpack(data: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    if not data.startswith(_MAGIC):
        raise ValueError("not a predictor, or one of a newer modelmill; run modelmill latency fit")
    try:
        content = zlib.decompress(data[len(_MAGIC) :])
        at = 8 + int.from_bytes(content[:8], "little")
        facts = json.loads(content[8:at])
        arrays = {}
        for name, (kind, shape) in facts.pop("arrays").items():
            count = math.prod(shape)
            array = np.frombuffer(content, np.dtype(kind), count, at)
            arrays[name], at = array.reshape(shape), at + array.nbytes
    except (zlib.error, ValueError, KeyError) as error:
        raise ValueError(f"a damaged predictor ({error}); run modelmill latency fit") from error
    return facts, arrays


def _exp(log_ms: float) -> float:
    return math.exp(min(log_ms, 700.0))
