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

    out: the folder; None: NAME-audit in the working directory.
    target, runtime: an engine in place of the executor, by a target or by its own name.
    noises: names; none: all, or with a device none.
    deployed: the device's card. added: options NOISE=OPTION of the device that no card says.
    fix: write a network and card that mend what they can.
    tolerance: the largest loss accepted, a fraction.
    int8: targets, or "usual", "all", "none". calib: pictures to calibrate them with.
    limit: at most so many pictures, drawn by `seed`.
    workers: processes; more than one needs the data as a path and a guarded main module.
    db: path or URL of a database that gets the facts besides OUT/audit/records.db.
    """

    out: str | Path | None = None
    card: str | Path | Card | None = None
    target: str | None = None
    runtime: str | None = None
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


def audit_deployment(
    model: Model,
    data: DataSource,
    options: AuditOptions = AuditOptions(),
    show: Show = SILENT,
) -> AuditReport:
    """Measure what decoders, resizes, colour paths and other steps of a device cost.

    Raises:
        ValueError: wrong input; the text says what, where, why and the next command.
        DeploymentError: an engine failed.
    """
    # 1. What was asked: model, card, pictures, noises. What can be wrong is found here.
    o, out = options, Path(options.out or f"{label(model)}-audit")
    named = o.target is not None or o.runtime is not None
    engine = engine_of(o.target, o.runtime) if named else None
    wanted = noises(o.noises) if o.noises or not o.device else []
    targets = audit_precision.chosen(o.int8)
    check_database(o.db)
    source = (load_source if engine is None else load_artifact)(model, o.card)
    dataset = limited(tasks.open_data(data, source.card, o.transform), o.limit, o.seed)
    given = o.deployed
    card = tasks.load_card(given) if isinstance(given, str | Path) else given
    path = out / "audit" / "artifacts" / "float.onnx"
    network = Network(FLOAT32, path, ir.fingerprint(source.graph), engine)
    subject, pixels = _subject(source, dataset, network)
    late = [text for text in o.added if text.startswith(MADE_LATER)]
    audit_deployed.device_of(subject, card, [text for text in o.added if text not in late])
    store = _store(out, o.resume)
    ir.save(source.graph, path)
    key = _key(source, dataset, engine, o.seed)
    chunk = max(1, min(CHUNK, MEMORY // (3 * pixels), len(dataset)))
    work = Work(
        data, source.card, o.limit, o.seed, network, store.folder, source.input_name,
        source.scoring_batch(chunk), source.batch is not None, o.timeout_s, o.transform,
    )  # fmt: skip

    with Crew(work, o.workers if isinstance(data, str | Path) else 1) as crew:
        bench = Bench(crew, store, key, len(dataset), chunk, source.task.prediction, show)

        # 2. Networks in 8 bits, where precision is asked for.
        notes = []
        if targets and (late or any(noise.name == "precision" for noise in wanted)):
            images = audit_precision.calibration(o.calib, dataset, source.card, o.seed)
            made, refused = audit_precision.networks(targets, crew, store, key, images, show)
            subject = replace(subject, integer=tuple(made), refused=tuple(refused))
            notes.append(images.note(len(dataset)))
        device = audit_deployed.device_of(subject, card, o.added) if o.device else None

        # 3. The card's own pipeline, and every option alone.
        base = Pipeline(source.card)
        offered, left_out = _offers(wanted, subject, base, bench)
        first, *others = bench.try_all("each alone", [base, *(x.change(base) for _, x in offered)])
        judge = judge_for(source.card, _truths(dataset, crew), dataset.ids, first, o.seed)
        asked = [of(noise, x, a) for (noise, x), a in zip(offered, others, strict=True)]
        outcomes = judge_all(judge, asked, crew, show)
        candidates = [Candidate(*pair, got) for pair, got in zip(offered, outcomes, strict=True)]
        report = AuditReport(
            model={"name": source.name, "fingerprint": network.digest},
            task=source.task.name,
            metric=judge.metric,
            engine=engine or "executor",
            n=len(dataset),
            score=judge.score,
            seed=o.seed,
            outcomes=tuple(outcomes),
            left_out=tuple(left_out),
            tolerance=o.tolerance,
            versions=_versions(),
            folder=str(out),
        )

        # 4. All at once, and the worst case.
        if len({noise.name for noise, _ in offered}) > 1:
            combined = audit_together.combined(base, candidates, bench, judge)
            greedy = audit_together.greedy(base, candidates, bench, judge)
            report = replace(report, combined=combined, greedy=greedy)

        # 5. The device, stage by stage; and what mends it.
        if device is not None:
            stages, whole = audit_deployed.compare_stages(base, device, bench, judge)
            report = replace(report, stages=stages, device=whole)
        if o.fix:
            theirs = card or (source.card if device else audit_fix.raw(source.card))
            fix = _fix(source, device or Pipeline(theirs), theirs, bench, judge, out)
            report = replace(report, fix=fix)

    # 6. Findings, report, page, records.
    report = audit_findings.conclude(report, notes, _command(model, data, o))
    ir.write_whole(out / "audit.json", (json.dumps(report.to_json(), indent=1) + "\n").encode())
    ir.write_whole(out / "audit.html", audit_page.render(report).encode())
    audit_filing.file_records(report, store, key_of({**key, "device": repr(device)}), o.db, show)
    return report


def _command(model: Model, data: DataSource, options: AuditOptions) -> audit_findings.Asked:
    """The command as it was given, for what findings advise."""
    named = str(model) if isinstance(model, str | Path) else "MODEL"
    where = str(data) if isinstance(data, str | Path) else "DATA"
    card = options.deployed
    device = [] if card is None else ["--deployed", "DEVICE.json"]
    if isinstance(card, str | Path):
        device[1] = str(card)
    device += [word for added in options.added for word in ("--with", added)]
    return audit_findings.Asked(named, where, tuple(device), options.fix)


def _store(out: Path, resume: bool) -> Store:
    """The folder OUT/audit; the report and the page lie above it, beside those of a build.

    Raises:
        OutputError: a file, not writable, or there is an earlier audit and `resume` is False.
    """
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out} is a file; choose a folder with -o")
    if (out / "audit" / "cache").exists() and not resume:
        raise OutputError(
            f"{out} holds an earlier audit; add --resume to continue it, or choose another folder "
            "with -o"
        )
    return Store(out / "audit", resume)


def _key(source: Source, dataset: Dataset, engine: str | None, seed: int) -> Json:
    """What every result depends on beside its pipeline."""
    return {
        "modelmill": modelmill.__version__,
        "model": ir.fingerprint(source.graph),
        "card": source.card.to_json(),
        "data": dataset.fingerprint(),
        "engine": engine,
        "seed": seed,
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    return versions(("av", "simplejpeg"))


def _subject(source: Source, dataset: Dataset, network: Network) -> tuple[Subject, int]:
    """Facts of the data that decide which options apply, and the pixels of the largest picture."""
    jpegs = turned = 0
    pixels = 1
    if dataset.encoded is None:
        h, w = dataset.sample(0).size
        pixels = h * w
    else:
        for i in range(len(dataset)):
            data = dataset.encoded(i)
            orientation, size = _header(data)
            jpegs += data.startswith(JPEG)
            turned += orientation != UPRIGHT
            pixels = max(pixels, size)
    files = dataset.encoded is not None
    subject = Subject(
        source.card, source.graph, source.task, len(dataset), files, jpegs, turned, network
    )
    return subject, pixels


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
    """The options that run, and (noise, option, why) of the others. Those that change the network
    are tried on one picture.
    """
    offers = [(noise, offer) for noise in wanted for offer in noise.options(subject)]
    offered = [(noise, offer) for noise, offer in offers if isinstance(offer, Option)]
    changed = [option.change(base) for _, option in offered]
    doubtful = [i for i, p in enumerate(changed) if p.rewrites or p.precision is not None]
    with bench.show.step("try every network on one picture", len(doubtful)):
        found = dict(zip(doubtful, bench.failures([changed[i] for i in doubtful]), strict=True))
    tried = [(pair, found.get(i, "")) for i, pair in enumerate(offered)]
    left_out = [
        (n.name, offer.name, offer.why) for n, offer in offers if isinstance(offer, LeftOut)
    ]
    left_out += [(noise.name, option.name, why) for (noise, option), why in tried if why]
    return [pair for pair, why in tried if not why], left_out


def _truths(dataset: Dataset, crew: Crew) -> list[Any] | None:
    if not dataset.labelled:
        return None
    pieces = [(list(span),) for span in spans(len(dataset), CHUNK)]
    found = dict(crew.each(Sweep.truths, pieces))
    truths = [truth for i in range(len(pieces)) for truth in found[i]]
    for name, truth in zip(dataset.ids, truths, strict=True):
        if truth is None:
            raise tasks.DataError(f"{dataset.where}: {name} has no label, others have")
    return truths


def _fix(
    source: Source, device: Pipeline, card: Card, bench: Bench, judge: Judge, out: Path
) -> Fix:
    """Write the network with its preprocessing inside and its card; `card` is the device's."""
    path, card_path = out / "fixed.onnx", out / "fixed.json"
    ir.save(audit_fix.inside(source.graph, source.card.input, card.input), path)
    network = Network("fixed", path, file_hash(path), bench.crew.work.network.engine)
    base = Pipeline(source.card)
    done, left, fixed = audit_fix.mended(base, device, card, network)
    ir.write_whole(card_path, (json.dumps(fixed.card.to_json(), indent=1) + "\n").encode())
    answers = bench.try_all("what --fix wrote", [base, fixed])[1]
    words = "the device with the mended network and card"
    outcome = judge.judge(Asked("all", "fix", "fixed", words, answers))
    return Fix((path.name, card_path.name), tuple(done), tuple(left), outcome)
