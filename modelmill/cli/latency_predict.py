"""`modelmill latency fit`, `predict` and `query`: the predictor and what it answers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from modelmill.cli import options

if TYPE_CHECKING:
    from modelmill.line.latency_query import Answer

START = (
    "\b\nExample (after `modelmill latency measure --zoo all --count 9 -t ort_cpu --db l.db`):\n"
)
model = click.argument("model", type=click.Path(path_type=Path), metavar="MODEL.onnx")
target = click.option("-t", "--target", required=True, help="ort_cpu, openvino_cpu, ...")
precision = click.option(
    "--precision", default="float", show_default=True, help="float, or bits as in w8a8."
)
threads = click.option(
    "--threads", type=click.IntRange(1), default=1, show_default=True, help="Of the engine."
)
batch = click.option(
    "--batch", type=click.IntRange(1), default=1, show_default=True, help="Images per inference."
)


@click.command(
    "fit",
    epilog=START + "  modelmill latency fit --db l.db",
    short_help="Learn to predict latencies from the database.",
)
@options.database
@options.seed
@click.option("--steps", type=click.IntRange(1), help="Of training. Default: as was found best.")
@options.form
def fit(db: str | None, seed: int, steps: int | None, form: str) -> None:
    """Train the predictor on everything measured; it becomes its next version in the database."""
    from dataclasses import asdict, replace

    from modelmill.cli.progress import watch
    from modelmill.line import latency_query as line

    effort = line.EFFORT
    if steps is not None:
        effort = replace(effort, settings=replace(effort.settings, steps=steps))
    with watch() as display, _Bars(display) as show:
        fitted = line.fit(_latencies(db), effort, seed, show)
    if form == "json":
        _print_json(asdict(fitted))
        return
    from modelmill.cli.tables import print_table

    rows = [
        (name, str(e.n), f"{e.mape:.2%}", f"{e.within:.1%}") for name, e in fitted.errors.items()
    ]
    print_table(("platform", "models", "MAPE, cross-validated", "within 10 %"), rows)
    for name, why in fitted.left_out.items():
        click.echo(f"{name}: not learned, {why}")
    click.echo(f"version {fitted.version}, {fitted.models} models, {fitted.seconds:.0f} s")


@click.command(
    "predict",
    epilog=START + "  modelmill latency fit --db l.db\n"
    "  modelmill latency predict model.onnx -t ort_cpu --db l.db",
    short_help="Predict a latency, with a 90 % interval.",
)
@model
@target
@precision
@threads
@batch
@options.database
@options.form
def predict(
    model: Path, target: str, precision: str, threads: int, batch: int, db: str | None, form: str
) -> None:
    """Median and 90 % interval of MODEL on a platform, the nearest measured models, and whether the
    prediction can be trusted.

    An operator that was never measured there is an error which names it.
    """
    from modelmill.line.latency_query import Place
    from modelmill.line.latency_query import predict as ask

    place = Place(target, precision, threads, batch)
    _print(ask(model, place, _latencies(db)), form)


@click.command(
    "query",
    epilog=START + "  modelmill latency query model.onnx -t ort_cpu --db l.db",
    short_help="A latency: stored, else predicted, else measured.",
)
@model
@target
@precision
@threads
@batch
@options.database
@options.form
def query(
    model: Path, target: str, precision: str, threads: int, batch: int, db: str | None, form: str
) -> None:
    """The latency of MODEL on a platform: as it was measured, else a prediction that trusts itself,
    else measured now. The answer is stored.
    """
    from modelmill.line.latency_query import Place
    from modelmill.line.latency_query import query as ask

    place = Place(target, precision, threads, batch)
    _print(ask(model, place, _latencies(db)), form)


class _Bars:
    """Tells a display of steps from calls (what, done, total)."""

    def __init__(self, display: Any) -> None:
        self.display, self.name = display, ""
        self.step: Any = None
        self.advance: Any = None

    def __enter__(self) -> Any:
        return self.show

    def show(self, what: str, done: int, total: int) -> None:
        if what != self.name:
            self._end()
            self.name, self.step = what, self.display.step(what, total)
            self.advance = self.step.__enter__()
        self.advance(done)

    def _end(self) -> None:
        if self.step is not None:
            self.step.__exit__(None, None, None)
            self.step = None

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            self._end()


def _latencies(db: str | None) -> Any:
    from modelmill.records import Database, Latencies, default_location

    return Latencies(Database(db or default_location()))


def _print(answer: Answer, form: str) -> None:
    if form == "json":
        _print_json(_to_json(answer))
        return
    at = f"{answer.platform.name} ({answer.platform.device}, {answer.platform.version})"
    if answer.prediction is not None:
        p = answer.prediction
        click.echo(
            f"{p.p50_ms:.3f} ms predicted, 90 % interval {p.low_ms:.3f} to {p.high_ms:.3f} ms, {at}"
        )
        click.echo(f"{'trusted' if p.trusted else 'not to be trusted'}: {p.why}")
        click.echo("nearest measured models (distance 1 is usual between neighbours):")
        for near in p.nearest:
            click.echo(f"  {near.name}  distance {near.distance:.2f}  {near.p50_ms:.3f} ms")
        return
    m = answer.measurement
    assert m is not None
    said = f"measured {m.when}" if answer.source == "stored" else "measured now"
    why = f"; no prediction: {answer.why_not}" if answer.why_not else ""
    click.echo(f"{m.p50_ms:.3f} ms {said}, p90 {m.p90_ms:.3f}, p99 {m.p99_ms:.3f} ms, {at}{why}")


def _to_json(answer: Answer) -> dict[str, Any]:
    from dataclasses import asdict

    found: dict[str, Any] = {
        "source": answer.source,
        "p50_ms": answer.p50_ms,
        "platform": {"name": answer.platform.name, **asdict(answer.platform)},
        "structure": answer.structure,
    }
    if answer.prediction is not None:
        return {**found, **asdict(answer.prediction), "predictor": answer.version}
    m = answer.measurement
    assert m is not None
    times = {"p90_ms": m.p90_ms, "p99_ms": m.p99_ms, "n": m.n, "noise": m.noise, "when": m.when}
    return {**found, **times, "why_not": answer.why_not}


def _print_json(value: Any) -> None:
    from modelmill.cli.tables import print_json

    print_json(_finite(value))


def _finite(value: Any) -> Any:
    """The value with None for what JSON cannot write: the end of an interval without one."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, list | tuple) else value
