"""`modelmill build`: the main job."""

import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from modelmill.cli import options
from modelmill.cli.failure import STOPPED, leave

if TYPE_CHECKING:
    from modelmill.line.options import BuildOptions
    from modelmill.line.rehearse import Rehearsal

EPILOG = (
    options.EXAMPLE + "modelmill build demo-build/digits.onnx -d demo-build/test.npz"
    " --calib demo-build/train.npz -t ort_cpu -t openvino_cpu -o my-build"
)
# What may be said beside --manifest, which decides everything else.
BESIDE_MANIFEST = {"manifest", "out", "resume", "dry_run", "db", "form"}


@click.command("build", epilog=EPILOG, short_help="The main job: a model to verified artifacts.")
@click.argument("model", required=False)
@options.card
@click.option("-d", "--data", help="Labelled images to score with; see `modelmill eval --help`.")
@click.option("--calib", help="Images to calibrate with. Default: some of --data, not scored.")
@options.targets
@click.option(
    "--precision",
    default="w8a8",
    show_default=True,
    help="Bits of weights and activations, such as w4a8, or auto: searched for per layer within "
    "--max-drop.",
)
@click.option(
    "--objective",
    type=click.Choice(["size", "latency"]),
    default="size",
    show_default=True,
    help="What --precision auto makes small.",
)
@click.option(
    "--algorithm",
    type=click.Choice(["auto", "round", "adaround", "brecq", "qdrop"]),
    default="auto",
    show_default=True,
    help="How weights are rounded. auto: to the nearest, and where --max-drop is not met by what "
    "costs more, step by step; e.g. --precision w4a8 --algorithm qdrop.",
)
@click.option(
    "--effort",
    type=click.Choice(["quick", "normal", "high"]),
    default="normal",
    show_default=True,
    help="How long roundings are learned: a third of the time, or three times as long.",
)
@options.first_last_bits
@click.option(
    "--memory",
    default="2GiB",
    show_default=True,
    help="For tensors that a reconstruction caches, e.g. 512MiB; more is kept on disk.",
)
@click.option(
    "--calibrate", type=int, default=512, show_default=True, help="Number of calibration images."
)
@options.limit
@click.option(
    "--max-drop",
    type=float,
    default=0.01,
    show_default=True,
    help="Largest accepted loss of the metric, as a fraction.",
)
@options.seed
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    help="Folder to write. Default: NAME-build in the working directory.",
)
@click.option("--resume", is_flag=True, help="Continue the build in OUT: finished steps are kept.")
@click.option("--dry-run", is_flag=True, help="Check everything, print the plan, write nothing.")
@options.cpu_flags
@options.keep_float
@click.option(
    "--simulate",
    type=int,
    default=1000,
    show_default=True,
    help="Images on which the simulation is compared with the engine.",
)
@options.timeout
@click.option("--allow-fallback", is_flag=True, help="Accept operators that fall back to float.")
@click.option(
    "--db",
    envvar="MODELMILL_DB",
    metavar="DATABASE",
    help="Database (path or URL) that gets the facts besides OUT/records.db. Default: $MODELMILL_DB"
    " if set, else none.",
)
@click.option(
    "--manifest",
    type=click.Path(path_type=Path),
    help="Run an earlier build again, as its manifest.json says, into -o; the artifacts must get "
    "the same bytes.",
)
@options.form
def build(  # noqa: PLR0913 (a command's options)
    model: str | None,
    card: Path | None,
    data: str | None,
    calib: str | None,
    targets: tuple[str, ...],
    precision: str,
    objective: str,
    effort: str,
    algorithm: str,
    first_last_bits: int,
    memory: str,
    calibrate: int,
    limit: int | None,
    max_drop: float,
    seed: int,
    out: Path | None,
    resume: bool,
    dry_run: bool,
    cpu_flags: str | None,
    keep_float: tuple[str, ...],
    simulate: int,
    timeout: float,
    allow_fallback: bool,
    db: str | None,
    manifest: Path | None,
    form: str,
) -> None:
    """Take a trained MODEL to verified integer artifacts on real engines.

    MODEL is an ONNX file, package.module:factory[@weights.safetensors], or an exported .pt2. Every
    artifact is run on its engine: scored, compared with its simulation code by code, and timed
    against the float model. Exit code 1: not accepted.
    """
    from modelmill.cli.progress import loading

    with loading():
        from modelmill.line.entry import default_out
        from modelmill.line.options import BuildOptions

    if manifest is not None:
        return _run(_again(manifest, out, resume, db), dry_run, form, manifest)
    if model is None or data is None:
        raise click.UsageError(f"Missing {'MODEL' if model is None else '-d / --data'}.")
    wanted = BuildOptions(
        model=model,
        data=data,
        targets=targets,
        out=out or default_out(model),
        card=card,
        calib=calib,
        precision=precision,
        calibrate=calibrate,
        limit=limit,
        max_drop=max_drop,
        seed=seed,
        resume=resume,
        flags=options.parse_flags(cpu_flags),
        keep_float=keep_float,
        simulate=simulate,
        timeout_s=timeout,
        allow_fallback=allow_fallback,
        db=db,
        algorithm=algorithm,
        first_last_bits=first_last_bits,
        memory=options.parse_memory(memory),
        objective=objective,
        effort=effort,
    )
    return _run(wanted, dry_run, form, None)


def _again(manifest: Path, out: Path | None, resume: bool, db: str | None) -> "BuildOptions":
    """The options of an earlier build; options that it would have to ignore are refused."""
    from modelmill.line.manifest import options_from

    context = click.get_current_context()
    source = context.get_parameter_source
    said = {name for name in context.params if source(name) == ParameterSource.COMMANDLINE}
    if said - BESIDE_MANIFEST:
        names = ", ".join(sorted(said - BESIDE_MANIFEST))
        raise click.UsageError(f"--manifest decides everything but the folder; leave out: {names}")
    if out is None:
        raise click.UsageError("Missing -o / --out: the folder for the build that is run again.")
    return replace(options_from(manifest, out), resume=resume, db=db)


def _run(wanted: "BuildOptions", dry_run: bool, form: str, manifest: Path | None) -> None:
    from modelmill.cli.progress import watch
    from modelmill.cli.tables import print_json, print_report
    from modelmill.line.rehearse import rehearse
    from modelmill.line.run import build as run_build

    if dry_run:
        rehearsal = rehearse(wanted)
        print_json(rehearsal.to_json()) if form == "json" else _print_rehearsal(rehearsal)
        return
    try:
        with watch() as show:
            report = run_build(wanted, show)
    except KeyboardInterrupt:
        again = [*sys.argv[1:], *([] if wanted.resume else ["--resume"])]
        message = f"stopped; finished steps are kept, continue with: modelmill {shlex.join(again)}"
        leave(message, STOPPED)
    print_json(report.to_json()) if form == "json" else print_report(report)
    accepted = report.accepted
    if manifest is not None:
        accepted = _reproduced(manifest, wanted.out) and accepted
    sys.exit(0 if accepted else 1)


def _reproduced(manifest: Path, out: Path) -> bool:
    """Whether the artifacts have the bytes of the earlier build; says it."""
    held, made = (json.loads(path.read_bytes()) for path in (manifest, out / "manifest.json"))
    differ = [n for n, digest in held["artifacts"].items() if made["artifacts"].get(n) != digest]
    if not differ:
        click.echo("the artifacts have the same bytes as those of the manifest", err=True)
        return True
    for recipe in (held["recipe"], made["recipe"]):
        recipe.setdefault("reconstruct", None)  # older manifests know of none
    changed = [part for part in ("inputs", "recipe", "versions") if held[part] != made[part]]
    why = (
        f"what differs: {', '.join(changed)}" if changed else "nothing that it is known to hang on"
    )
    click.echo(f"other bytes than in the manifest: {', '.join(differ)}; {why}", err=True)
    return False


def _print_rehearsal(rehearsal: "Rehearsal") -> None:
    from modelmill.cli.tables import print_table, quantity

    model, images = rehearsal.model, rehearsal.images
    shape = "x".join(map(str, model["input"]))
    click.echo(
        f"{model['name']}: {rehearsal.task}, input {shape}, {quantity(model['params'])} parameters,"
        f" {quantity(model['macs'])} multiply-accumulates"
    )
    click.echo(
        f"{images['calibration']:,} images to calibrate, {images['evaluation']:,} to score by "
        f"{rehearsal.metric}; {images['note']}"
    )
    rows = []
    for target in rehearsal.targets:
        counts = [str(count) for count in target.counts.values()]
        rows.append((target.target, target.runtime, target.precision, *counts))
    print_table(("target", "engine", "precision", "integer", "fused", "float"), rows)
    for note in (note for target in rehearsal.targets for note in target.notes):
        click.echo(f"* {note}")
    click.echo("Steps:")
    for number, step in enumerate(rehearsal.steps, 1):
        click.echo(f"{number:4}. {step}")
    click.echo(f"Nothing was written. Without --dry-run the results go to {rehearsal.folder}.")


PLUGIN = build
