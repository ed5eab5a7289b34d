"""How fast is this model there? From the database, else predicted, else measured; and kept.

stored     it was measured on that platform: the newest measurement
predicted  the newest predictor answers and trusts itself; kept as a record, marked as predicted
measured   now, on this machine; kept as a measurement, which the next `fit` learns from
"""

from __future__ import annotations

import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from modelmill import ir
from modelmill.latency import predictor as predictors
from modelmill.latency.features import GraphFeatures, features
from modelmill.latency.predictor import Effort, Prediction, Predictor, UnknownOperatorError
from modelmill.latency.profile import Shares, shares
from modelmill.latency.select import choose as select
from modelmill.latency.select import work
from modelmill.latency.table import Errors, Table
from modelmill.records import (
    Latencies,
    Measurement,
    ModelFacts,
    Platform,
    Record,
    Row,
    Where,
    this_machine,
    utc_now,
)
from modelmill.records.measurement import CALM, KERNELS, PREDICTED

NAME = "latency"  # of the predictor in the database
Found = dict[tuple[str, str], list[float]]
EFFORT = Effort(workers=2)
Show = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Place:
    """A platform as a person names it; device and versions are those of the database."""

    target: str
    precision: str = "float"
    threads: int = 1
    batch: int = 1

    def __str__(self) -> str:
        return Platform(self.target, "", "", "", self.threads, self.precision, self.batch).name


@dataclass(frozen=True)
class Fitted:
    """A predictor that was stored. errors: cross-validated, per platform. left_out: platforms and
    why they could not be learned.
    """

    version: int
    models: int
    errors: dict[str, Errors]
    left_out: dict[str, str]
    seconds: float


@dataclass(frozen=True)
class Answer:
    """What is known of a model on a platform. version: of the predictor; why_not: why nothing was
    predicted where a measurement was needed.
    """

    source: Literal["stored", "predicted", "measured"]
    platform: Platform
    structure: str
    prediction: Prediction | None = None
    version: int | None = None
    measurement: Measurement | None = None
    why_not: str = ""

    @property
    def p50_ms(self) -> float:
        found = self.measurement or self.prediction
        assert found is not None
        return found.p50_ms


# ---------------------------------------------------------------- fit


def fit(
    latencies: Latencies,
    effort: Effort = EFFORT,
    seed: int = 0,
    show: Show = lambda what, done, total: None,
) -> Fitted:
    """Learn from all that was measured with batch 1, and store the predictor as a new version.

    Raises:
        ValueError: nothing, or too little, was measured.
    """
    start = time.perf_counter()
    table, platforms, left_out = read_table(latencies, show)
    found = predictors.fit(table, platforms, effort, seed, lambda n, of: show("train", n, of))
    errors = {p.name: e for p, e in zip(platforms, found.errors, strict=True)}
    facts = {
        "models": len(table),
        "platforms": [p.name for p in platforms],
        "mape": {name: e.mape for name, e in errors.items()},
        "within": {name: e.within for name, e in errors.items()},
    }
    version = latencies.save_predictor(NAME, found.to_bytes(), facts)
    return Fitted(version, len(table), errors, left_out, time.perf_counter() - start)


def read_table(
    latencies: Latencies, show: Show = lambda what, done, total: None
) -> tuple[Table, list[Platform], dict[str, str]]:
    """(what can be learned from, its platforms, platforms that cannot be learned and why)

    Raises:
        ValueError: nothing, or too little, was measured.
    """
    times, references = _times(latencies)
    graphs = _graphs(latencies.models(), {structure for structure, _ in times}, show)
    chosen, left_out = [], {}
    for platform in latencies.platforms():
        count = sum(key == platform.key and s in graphs for s, key in times)
        if platform.batch != 1:
            left_out[platform.name] = "only batch 1 is predicted"
        elif count < predictors.LEAST:
            left_out[platform.name] = f"{count} models measured, {predictors.LEAST} are needed"
        else:
            chosen.append(platform)
    if not chosen:
        raise ValueError(
            f"{latencies.database.location}: too little was measured to learn from ("
            + ("; ".join(f"{name}: {why}" for name, why in left_out.items()) or "nothing")
            + "); run modelmill latency measure --zoo all --count 100 -t ort_cpu"
        )
    log_ms, log_reference = (_logs(found, tuple(graphs), chosen) for found in (times, references))
    measured = np.isfinite(log_ms).any(axis=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a platform without any reference
        usual = np.nanmedian(log_reference, axis=0)
    facts = [fact for _, fact in graphs.values()]
    table = Table(
        tuple(found for found, _ in graphs.values()),
        log_ms,
        tuple(p.name for p in chosen),
        tuple(fact.name for fact in facts),
        tuple(fact.family for fact in facts),
        tuple(fact.structure for fact in facts),
        np.nan_to_num(log_reference - usual),
        _profiles(latencies, tuple(graphs.values()), chosen),
    )
    return table.at(np.flatnonzero(measured)), chosen, left_out


def telling(latencies: Latencies, count: int, seed: int = 0) -> list[ModelFacts]:
    """The stored models whose measurements would tell most of a platform that nobody measured yet,
    the most telling first.

    Raises:
        ValueError: too little was measured to say, or fewer models than that.
    """
    table, _, _ = read_table(latencies)
    amounts = np.stack([work(graph) for graph in table.graphs])
    chosen = [table.structures[row] for row in select(amounts, table.log_ms, count, seed)]
    found = {fact.structure: fact for fact in latencies.models(structures=chosen)}
    return [found[structure] for structure in chosen]


def _times(latencies: Latencies) -> tuple[Found, Found]:
    """Milliseconds by (structure, key of the platform), and those of the reference beside them.

    A model counts with the time of its calmest inferences: what others did to the rest is no part
    of it. Of several measurements the calmest counts, with the reference beside it. Where none kept
    that time, the medians of the p50 and of the references count.
    """
    times: Found = defaultdict(list)
    references: Found = defaultdict(list)
    for row in latencies.rows():
        times[row.structure, row.platform].append(row.p50_ms)
        if row.reference_ms is not None:
            references[row.structure, row.platform].append(row.reference_ms)
    calm: dict[tuple[str, str], tuple[float, Row]] = {}
    for row, ms in latencies.told(CALM):
        at = row.structure, row.platform
        if at not in calm or ms < calm[at][0]:
            calm[at] = ms, row
    for at, (ms, row) in calm.items():
        times[at] = [ms]
        references.pop(at, None)
        if row.reference_ms is not None:
            references[at] = [row.reference_ms]
    return times, references


def _logs(
    found: Found,
    structures: Sequence[str],
    platforms: Sequence[Platform],
) -> np.ndarray:
    """(M, P) logarithms of the medians, nan where there is nothing."""
    rows = [[found.get((s, p.key), (np.nan,)) for p in platforms] for s in structures]
    return np.array([[np.log(np.median(times)) for times in row] for row in rows])


def _profiles(
    latencies: Latencies,
    graphs: Sequence[tuple[GraphFeatures, ModelFacts]],
    platforms: Sequence[Platform],
) -> tuple[tuple[Shares | None, ...], ...]:
    """(M, P) where the time went, None where nobody asked the engine."""
    told = {(row.structure, row.platform): spent for row, spent in latencies.told(KERNELS)}
    rows = [[(fact.structure, p.key) for p in platforms] for _, fact in graphs]
    return tuple(
        tuple(shares(found, told[key]) if key in told else None for key in row)
        for (found, _), row in zip(graphs, rows, strict=True)
    )


def _graphs(
    models: Sequence[ModelFacts], measured: set[str], show: Show
) -> dict[str, tuple[GraphFeatures, ModelFacts]]:
    """Features of the measured models whose graphs the database has."""
    known = [fact for fact in models if fact.structure in measured and fact.skeleton]
    found = {}
    for number, fact in enumerate(known):
        found[fact.structure] = (features(ir.outline(fact.skeleton)), fact)
        show("read models", number + 1, len(known))
    return found


# ---------------------------------------------------------------- predict


def predict(model: str | Path, place: Place, latencies: Latencies) -> Answer:
    """What the newest predictor says, trusted or not.

    Raises:
        ValueError: an unusable model; no predictor; a platform it does not know (lists those).
        UnknownOperatorError: an operator that was never measured there.
    """
    found, version = _newest(latencies)
    platform = choose(found.platforms, place)
    graph = _open(model, place)
    return Answer(
        "predicted", platform, ir.structure(graph), found.predict(graph, platform), version
    )


def query(model: str | Path, place: Place, latencies: Latencies) -> Answer:
    """The stored measurement, else a prediction that trusts itself, else a measurement made now.

    Raises:
        ValueError: an unusable model; a platform that is unknown, or not of this machine where a
            measurement is needed.
        DeploymentError: the engine failed.
    """
    known = latencies.platforms(place.target, place.precision, place.threads, place.batch)
    platform = choose(known, place) if known else None
    graph = _open(model, place)
    structure = ir.structure(graph)
    if platform is not None:  # any version of the engine will do: the answer says which
        there = latencies.find(structure, [p for p in known if p.device == platform.device])
        if there:
            return Answer("stored", there[-1].platform, structure, measurement=there[-1])
    answer, why_not = _trusted(graph, structure, place, latencies)
    if answer is not None:
        latencies.database.add([_record(answer)])
        return answer
    return _measure(model, place, platform, structure, latencies, why_not)


def choose(platforms: Sequence[Platform], place: Place) -> Platform:
    """The platform that is meant: the one of this machine, or the only one with that name.

    Raises:
        ValueError: there is none, or there are several and none of this machine.
    """
    wanted = (place.target, place.precision, place.threads, place.batch)
    named = [p for p in platforms if (p.target, p.precision, p.threads, p.batch) == wanted]
    here = [p for p in named if p.device == this_machine().cpu]
    if named and (len(here) > 0 or len(named) == 1):
        return (here or named)[-1]
    if named:
        several = "; ".join(f"{p.device} with {p.version}" for p in named)
        raise ValueError(f"{place} was measured on other machines only: {several}")
    there = ", ".join(sorted({p.name for p in platforms})) or "none"
    raise ValueError(
        f"nothing was learned of {place}; platforms there are: {there}. Next: modelmill latency "
        f"measure --zoo all --count 100 -t {place.target} --precision {place.precision}, then "
        "modelmill latency fit"
    )


def _newest(latencies: Latencies) -> tuple[Predictor, int]:
    if not latencies.platforms():
        raise ValueError(
            f"{latencies.database.location}: nothing was measured yet; run modelmill latency "
            "measure --zoo all --count 100 -t ort_cpu, then modelmill latency fit"
        )
    stored = latencies.load_predictor(NAME)
    return predictors.from_bytes(stored.data), stored.version


def _open(model: str | Path, place: Place) -> ir.Graph:
    graph = ir.load(model)
    return ir.with_batch(graph, place.batch) if ir.is_batch_dynamic(graph) else graph


def _trusted(
    graph: ir.Graph, structure: str, place: Place, latencies: Latencies
) -> tuple[Answer | None, str]:
    """A prediction that trusts itself, or why there is none."""
    if not any(p.name == NAME for p in latencies.predictors()):
        return None, "there is no predictor yet"
    found, version = _newest(latencies)
    try:
        platform = choose(found.platforms, place)
    except ValueError:
        return None, "the predictor never learned this platform"
    try:
        prediction = found.predict(graph, platform)
    except UnknownOperatorError as error:
        return None, str(error).partition(";")[0]
    if not prediction.trusted:
        return None, prediction.why
    return Answer("predicted", platform, structure, prediction, version), ""


def _record(answer: Answer) -> Record:
    prediction, at = answer.prediction, answer.platform
    assert prediction is not None
    return Record(
        what=PREDICTED,
        value=prediction.p50_ms,
        unit="ms",
        subject=answer.structure,
        where=Where(at.device, at.target, at.version, at.threads, at.isa),
        when=utc_now(),
        spread=(prediction.high_ms - prediction.low_ms) / 2,
        extra={
            "predicted": True,
            "predictor": answer.version,
            "low_ms": prediction.low_ms,
            "high_ms": prediction.high_ms,
            "precision": at.precision,
            "batch": at.batch,
            "platform": at.key,
        },
    )


def _measure(
    model: str | Path,
    place: Place,
    platform: Platform | None,
    structure: str,
    latencies: Latencies,
    why_not: str,
) -> Answer:
    # Engines and quantization load torch, which takes longer than a prediction.
    from modelmill.line.latency_measure import Asked, Subject, measure_all, platform_of
    from modelmill.runtimes import DeploymentError, SessionOptions

    options = SessionOptions(threads=place.threads, batch=place.batch)
    here = platform_of(place.target, place.precision, options)
    if platform is not None and platform.device != here.device:
        raise ValueError(
            f"no answer for {place} on {platform.device}: {why_not}; measure it there, this is "
            f"{here.device}"
        )
    asked = Asked(((place.target, place.precision),), options=options)
    for _, done in measure_all([Subject(str(model))], asked, latencies):
        if done is not None and done.measurement is not None:
            return Answer(
                "measured", here, structure, measurement=done.measurement, why_not=why_not
            )
        if done is not None:
            raise DeploymentError(done.failed)
    stored = latencies.find(structure, [here])  # of an engine newer than `platform`
    return Answer("stored", here, structure, measurement=stored[-1])
