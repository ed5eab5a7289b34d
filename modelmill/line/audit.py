"""What the deployed pipeline costs that training never saw. Read `run` from top to bottom."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

import modelmill
from modelmill import ir, tasks
from modelmill.audit import (
    FLOAT32,
    LeftOut,
    Network,
    Noise,
    Option,
    Pipeline,
    Subject,
    Sweep,
    noises,
    trained,
)
from modelmill.audit.decode import JPEG, UPRIGHT
from modelmill.line import (
    audit_deployed,
    audit_filing,
    audit_findings,
    audit_fix,
    audit_page,
    audit_precision,
    audit_together,
)
from modelmill.line.artifact import engine_of, limited, load_artifact
from modelmill.line.audit_measure import Asked, Judge, judge_all, judge_for, of
from modelmill.line.audit_report import AuditReport, Fix
from modelmill.line.audit_together import Candidate
from modelmill.line.audit_work import CHUNK, MEMORY, Bench, Crew, Work, spans
from modelmill.line.filing import check_database
from modelmill.line.inspect import Model, label
from modelmill.line.manifest import versions
from modelmill.line.show import SILENT, Show
from modelmill.line.source import DataSource, Source, load_source
from modelmill.line.store import Json, OutputError, Store, file_hash, key_of
from modelmill.tasks import Card, Dataset

ORIENTATION = 274  # the EXIF tag
MADE_LATER = "precision=int8"  # options of a device that exist only once they are quantized


@dataclass(frozen=True)
class AuditOptions:
    """What is asked for.

    noises: names; none: all, or with a device none. deployed: the device's card. added: options
    NOISE=OPTION of the device that no card says. int8: targets, or "usual", "all", "none".
    calib: pictures to calibrate int8 with; None: some of the data. workers: processes.
    """

    out: Path
    card: str | Path | Card | None = None
    engine: str | None = None
    noises: tuple[str, ...] = ()
    deployed: str | Path | Card | None = None
    added: tuple[str, ...] = ()
    fix: bool = False
    tolerance: float | None = None
    int8: tuple[str, ...] = ("usual",)
    calib: DataSource | None = None
    limit: int | None = None
    seed: int = 0
    workers: int = 1
    resume: bool = False
    timeout_s: float = 300.0
    db: str | None = None
    transform: Callable[[Any], Any] | None = None

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"--workers must be at least 1, not {self.workers}")
        if self.tolerance is not None and not 0 <= self.tolerance <= 1:
            raise ValueError(
                f"--tolerance is a fraction between 0 and 1, not {self.tolerance:g}; 0.005 is half "
                "a point"
            )

    @property
    def device(self) -> bool:
        """Whether a device's pipeline was given."""
        return self.deployed is not None or bool(self.added)


def audit_deployment(  # noqa: PLR0913 (keyword arguments are the interface)
    model: Model,
    data: DataSource,
    *,
    card: str | Path | Card | None = None,
    target: str | None = None,
    runtime: str | None = None,
    out: str | Path | None = None,
    noises: Sequence[str] = (),
    deployed: str | Path | Card | None = None,
    added: Sequence[str] = (),
    fix: bool = False,
    tolerance: float | None = None,
    int8: Sequence[str] = ("usual",),
    calib: DataSource | None = None,
    limit: int | None = None,
    seed: int = 0,
    workers: int = 1,
    resume: bool = False,
    timeout_s: float = 300.0,
    db: str | None = None,
    transform: Callable[[Any], Any] | None = None,
    show: Show = SILENT,
) -> AuditReport:
    """Measure what decoders, resizes, colour paths and other steps of a device cost.

    The arguments are those of `AuditOptions`; `target` or `runtime` name an engine in place of the
    executor. Without `out` the folder is NAME-audit in the working directory. More than one worker
    needs `data` as a path, and a script guarded by `if __name__ == "__main__"`.

    Raises:
        ValueError: wrong input; the text says what, where, why and the next command.
        DeploymentError: an engine failed.
    """
    engine = engine_of(target, runtime) if target is not None or runtime is not None else None
    options = AuditOptions(
        out=Path(out) if out is not None else Path(f"{label(model)}-audit"),
        card=card,
        engine=engine,
        noises=tuple(noises),
        deployed=deployed,
        added=tuple(added),
        fix=fix,
        tolerance=tolerance,
        int8=tuple(int8),
        calib=calib,
        limit=limit,
        seed=seed,
        workers=workers,
        resume=resume,
        timeout_s=timeout_s,
        db=db,
        transform=transform,
    )
    return run(model, data, options, show)


def run(model: Model, data: DataSource, options: AuditOptions, show: Show = SILENT) -> AuditReport:
    """The whole audit; raises as `audit_deployment` does."""
    # 1. What was asked: model, card, pictures, noises. What can be wrong is found here.
    o = options
    wanted = noises(o.noises) if o.noises or not o.device else []
    targets = audit_precision.chosen(o.int8)
    check_database(o.db)
    source = (load_source if o.engine is None else load_artifact)(model, o.card)
    dataset = limited(tasks.open_data(data, source.card, o.transform), o.limit, o.seed)
    device_card = None if o.deployed is None else _card(o.deployed)
    path = o.out / "audit" / "artifacts" / "float.onnx"
    network = Network(FLOAT32, path, ir.fingerprint(source.graph), o.engine)
    subject, pixels = _subject(source, dataset, network)
    late = [text for text in o.added if text.startswith(MADE_LATER)]
    audit_deployed.device_of(subject, device_card, [t for t in o.added if t not in late])
    _check_output(o)
    store = Store(o.out / "audit", o.resume)
    ir.save(source.graph, path)
    key = _key(source, dataset, o)
    workers = o.workers if isinstance(data, str | Path) else 1
    chunk = max(1, min(CHUNK, MEMORY // (3 * pixels), len(dataset)))
    batch = source.scoring_batch(chunk)
    work = Work(
        data, source.card, o.limit, o.seed, network, store.folder, source.input_name, batch,
        source.batch is not None, o.timeout_s, o.transform,
    )  # fmt: skip

    with Crew(work, workers) as crew:
        bench = Bench(crew, store, key, len(dataset), chunk, source.task.prediction, show)

        # 2. Networks in 8 bits, where precision is asked for.
        notes = []
        if targets and (late or any(noise.name == "precision" for noise in wanted)):
            images = audit_precision.calibration(o.calib, dataset, work.sweep(), o.seed)
            made, refused = audit_precision.networks(targets, crew, store, key, images, show)
            subject = replace(subject, integer=tuple(made), refused=tuple(refused))
            notes.append(images.note(len(dataset)))
        device = audit_deployed.device_of(subject, device_card, o.added) if o.device else None

        # 3. The card's own pipeline, and every option alone.
        base = trained(source.card)
        offered, left_out = _offers(wanted, subject, base, bench)
        pipelines = [base, *(option.change(base) for _, option in offered)]
        answers = bench.try_all("each alone", pipelines)
        judge = judge_for(source.card, _truths(dataset, crew), dataset.ids, answers[0], o.seed)
        asked = [
            of(noise.stage, noise.name, option, found)
            for (noise, option), found in zip(offered, answers[1:], strict=True)
        ]
        candidates = [
            Candidate(noise, option, outcome)
            for (noise, option), outcome in zip(
                offered, judge_all(judge, asked, crew, show), strict=True
            )
        ]
        report = AuditReport(
            model={"name": source.name, "fingerprint": ir.fingerprint(source.graph)},
            task=source.task.name,
            metric=judge.metric,
            engine=o.engine or "executor",
            n=len(dataset),
            score=judge.score,
            seed=o.seed,
            outcomes=tuple(c.outcome for c in candidates),
            left_out=tuple(left_out),
            tolerance=o.tolerance,
            versions=_versions(),
            folder=str(o.out),
        )

        # 4. All at once, and the worst case.
        if len({noise.name for noise, _ in offered}) > 1:
            report = replace(
                report,
                combined=audit_together.combined(base, candidates, bench, judge),
                greedy=audit_together.greedy(base, candidates, bench, judge),
            )

        # 5. The device, stage by stage; and what mends it.
        if device is not None:
            stages, whole = audit_deployed.compare_stages(base, device, bench, judge)
            report = replace(report, stages=stages, device=whole)
        if o.fix:
            given = device_card or (source.card if device else audit_fix.raw(source.card))
            report = replace(report, fix=_fix(source, base, device, given, bench, judge, o))

    # 6. Findings, report, page, records.
    report = audit_findings.conclude(report, notes, _asked(model, data, o))
    ir.write_whole(o.out / "audit.json", (json.dumps(report.to_json(), indent=1) + "\n").encode())
    ir.write_whole(o.out / "audit.html", audit_page.render(report).encode())
    audit_filing.file_records(report, store, key_of(key), o.db, show)
    return report


def _asked(model: Model, data: DataSource, options: AuditOptions) -> audit_findings.Asked:
    """The command as it was given, for what findings advise."""
    named = str(model) if isinstance(model, str | Path) else "MODEL"
    where = str(data) if isinstance(data, str | Path) else "DATA"
    card = options.deployed
    device = str(card) if isinstance(card, str | Path) else "DEVICE.json" if card else None
    return audit_findings.Asked(named, where, device, options.fix)


def _card(card: str | Path | Card) -> Card:
    return card if isinstance(card, Card) else tasks.load_card(card)


def _check_output(options: AuditOptions) -> None:
    if options.out.exists() and not options.out.is_dir():
        raise OutputError(f"{options.out} is a file; choose a folder with -o")
    if (options.out / "audit" / "cache").exists() and not options.resume:
        raise OutputError(
            f"{options.out} holds an earlier audit; add --resume to continue it, or choose another "
            "folder with -o"
        )


def _key(source: Source, dataset: Dataset, options: AuditOptions) -> Json:
    """What every result depends on beside its pipeline."""
    return {
        "modelmill": modelmill.__version__,
        "model": ir.fingerprint(source.graph),
        "card": source.card.to_json(),
        "data": dataset.fingerprint(),
        "engine": options.engine,
        "seed": options.seed,
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    return versions(("av", "simplejpeg"))


def _subject(source: Source, dataset: Dataset, network: Network) -> tuple[Subject, int]:
    """Facts of the data that decide which options apply, and the pixels of the largest picture."""
    jpegs = turned = 0
    pixels = 1
    files = dataset.encoded is not None
    if dataset.encoded is None:
        h, w = dataset.sample(0).size
        pixels = h * w
    else:
        for i in range(len(dataset)):
            data = dataset.encoded(i)
            jpegs += data.startswith(JPEG)
            orientation, size = _header(data)
            turned += orientation != UPRIGHT
            pixels = max(pixels, size)
    return (
        Subject(
            source.card, source.graph, source.task, len(dataset), files, jpegs, turned, network
        ),
        pixels,
    )


def _header(data: bytes) -> tuple[int, int]:
    """Value of the EXIF orientation, and pixels; a broken file is told of when it is decoded."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return int(image.getexif().get(ORIENTATION, UPRIGHT)), image.width * image.height
    except Exception:  # whatever a decoder raises on broken bytes
        return UPRIGHT, 1


def _offers(
    wanted: Sequence[Noise], subject: Subject, base: Pipeline, bench: Bench
) -> tuple[list[tuple[Noise, Option]], list[tuple[str, str, str]]]:
    """The options that run, each tried on one picture, and (noise, option, why) of the others."""
    offered: list[tuple[Noise, Option]] = []
    left_out: list[tuple[str, str, str]] = []
    for noise in wanted:
        for offer in noise.options(subject):
            if isinstance(offer, LeftOut):
                left_out.append((noise.name, offer.name, offer.why))
            else:
                offered.append((noise, offer))
    with bench.show.step("try every option on one picture", len(offered)):
        failures = bench.failures([option.change(base) for _, option in offered])
    kept = []
    for (noise, option), why in zip(offered, failures, strict=True):
        if why:
            left_out.append((noise.name, option.name, why))
        else:
            kept.append((noise, option))
    return kept, left_out


def _truths(dataset: Dataset, crew: Crew) -> list[Any] | None:
    if not dataset.labelled:
        return None
    chunks = [list(span) for span in spans(len(dataset), CHUNK)]
    found = dict(crew.each(Sweep.truths, [(chunk,) for chunk in chunks]))
    truths = [truth for i in range(len(chunks)) for truth in found[i]]
    for i, truth in enumerate(truths):
        if truth is None:
            raise tasks.DataError(f"{dataset.where}: {dataset.ids[i]} has no label, others have")
    return truths


def _fix(
    source: Source,
    base: Pipeline,
    device: Pipeline | None,
    card: Card,
    bench: Bench,
    judge: Judge,
    options: AuditOptions,
) -> Fix:
    """Write the network with its preprocessing inside and its card; `card` is the device's."""
    graph = audit_fix.inside(source.graph, source.card.input, card.input)
    path, card_path = options.out / "fixed.onnx", options.out / "fixed.json"
    ir.save(graph, path)
    network = Network("fixed", path, file_hash(path), options.engine)
    done, left, fixed = audit_fix.mended(base, device or trained(card), card, network)
    text = json.dumps(fixed.card.to_json(), indent=1) + "\n"
    ir.write_whole(card_path, text.encode())
    answers = bench.try_all("what --fix wrote", [base, fixed])[1]
    words = "the device with the mended network and card"
    outcome = judge.judge(Asked("all", "fix", "fixed", words, answers))
    return Fix((path.name, card_path.name), tuple(done), tuple(left), outcome)
