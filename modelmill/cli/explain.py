"""`modelmill explain`: where the accuracy of a build went."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from modelmill.cli import options

if TYPE_CHECKING:
    from modelmill.line.explain import Explanation, LayerCost

SHOWN = 12  # layers in the table
EPILOG = options.EXAMPLE + "modelmill explain demo-build -t ort_cpu"


@click.command("explain", epilog=EPILOG, short_help="Where the accuracy of a build went.")
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "-t", "--target", metavar="TARGET", help="Which deployment. Default: the one that loses most."
)
@click.option("-d", "--data", help="Labelled images, if not those of the build.")
@click.option(
    "--images",
    type=int,
    help="Images of the sweep over all layers. Default: as many as keep it short, 4 to 32.",
)
@click.option(
    "--limit",
    type=int,
    default=100,
    show_default=True,
    help="Score the worst layers on at most so many images.",
)
@click.option(
    "--layers", type=int, default=3, show_default=True, help="Worst layers to score and look at."
)
@click.option("--all", "everything", is_flag=True, help="List every layer.")
@options.form
def explain(  # noqa: PLR0913 (a command's options)
    out: Path,
    target: str | None,
    data: str | None,
    images: int | None,
    limit: int,
    layers: int,
    everything: bool,
    form: str,
) -> None:
    """Say which layers of the build in OUT cost its accuracy, why, and what mends them.

    Every layer is quantized alone and left out alone; the worst are scored, their tensors looked
    at, and the remedies tried. Exit code 1: the deployment failed, loses more than the build
    allows, fell back to float, or is not what its simulation says.
    """
    from modelmill.cli.progress import loading, watch
    from modelmill.cli.tables import print_json

    with loading():
        from modelmill.line.explain import explain as explain_build

    with watch() as show:
        found = explain_build(
            out, target, data=data, images=images, limit=limit, layers=layers, show=show
        )
    print_json(found.to_json()) if form == "json" else _print(found, everything)
    sys.exit(0 if found.accepted else 1)


def _print(found: "Explanation", everything: bool) -> None:
    from modelmill.cli.tables import print_finding, print_table

    click.echo(f"{found.target} in {found.folder}: {found.metric} {_scores(found)}")
    if found.parts:
        click.echo(
            f"\nWhat is quantized, on {found.images} images (SQNR of the outputs) and on "
            f"{found.scored} (score)"
        )
        print_table(
            ("quantized", "SQNR dB", found.metric, "as float"),
            [(p.what, _db(p.sqnr_db), _four(p.score), _four(p.same_as_float)) for p in found.parts],
        )
        shown = found.layers if everything else found.layers[:SHOWN]
        click.echo(f"Layers by what they cost, {len(shown)} of {len(found.layers)}")
        columns = ("layer", "operator", "alone dB", "all but it dB", "% of noise", "gain", "why")
        print_table(columns, map(_row, shown))
    for note in found.notes:
        click.echo(f"* note: {note}")
    for finding in found.findings:
        print_finding(finding)
    verdict = "nothing must be mended" if found.accepted else "SOMETHING TO MEND"
    click.echo(f"{verdict}   {found.seconds:.0f} s")


def _scores(found: "Explanation") -> str:
    """Float and deployed; then simulated, with what the engine gives on the same images."""
    said = [f"float {found.float_score:.4f}"]
    if found.deployed is not None:
        said.append(f"deployed {found.deployed:.4f}")
    if found.simulated is not None:
        same = found.deployed_same
        engine = "" if same is None else f" (the engine on these images {same:.4f})"
        said.append(f"simulated {found.simulated:.4f}{engine}")
    return ", ".join(said)


def _row(layer: "LayerCost") -> tuple[str, ...]:
    return (
        layer.node,
        layer.op,
        _db(layer.alone_db),
        _db(layer.without_db),
        f"{100 * layer.share:.1f}",
        "" if layer.gain is None else f"{layer.gain:+.4f}",
        ", ".join(dict.fromkeys(cause.name for cause in layer.causes)),
    )


def _db(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _four(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


PLUGIN = explain
