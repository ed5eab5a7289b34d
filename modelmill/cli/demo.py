"""`modelmill demo`: the whole line on data that needs no download."""

import sys
from pathlib import Path

import click

from modelmill.cli import options

EPILOG = "\b\nExample:\n  modelmill demo -o demo-build"


@click.command("demo", epilog=EPILOG, short_help="The whole line on data that needs no download.")
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    default=Path("demo-build"),
    show_default=True,
    help="Folder to write; an earlier demo there is replaced.",
)
@options.seed
@options.form
def demo(out: Path, seed: int, form: str) -> None:
    """Train a small network on scikit-learn's handwritten digits and build it for two engines."""
    from modelmill.cli.progress import loading, watch
    from modelmill.cli.tables import print_json, print_report

    with loading():
        from modelmill.line.demo import DemoOptions
        from modelmill.line.demo import demo as run_demo

    with watch() as show:
        report = run_demo(DemoOptions(out, seed=seed), show)
    if form == "json":
        print_json(report.to_json())
    else:
        print_report(report)
        click.echo(
            f"\nWhat was built: {out / 'digits.onnx'} with its card {out / 'digits.json'}; images "
            f"{out / 'train.npz'}, {out / 'test.npz'}\n"
            f"Next: modelmill inspect {out / 'digits.onnx'}\n"
            f"      modelmill check {out / 'digits.onnx'} -t ort_cpu --all\n"
            f"      modelmill build YOUR.onnx --card YOUR.json -d IMAGES -t ort_cpu"
        )
    sys.exit(0 if report.accepted else 1)


PLUGIN = demo
