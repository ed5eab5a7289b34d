"""`modelmill inspect`: what is in a model."""

from pathlib import Path

import click

from modelmill.cli import options

EPILOG = options.EXAMPLE + "modelmill inspect demo-build/digits.onnx --nodes"


@click.command(
    "inspect", epilog=EPILOG, short_help="Operators, shapes, parameters and MACs of a model."
)
@click.argument("model")
@options.card
@click.option("--nodes", is_flag=True, help="List every node.")
@options.form
def inspect(model: str, card: Path | None, nodes: bool, form: str) -> None:
    """Show what is in MODEL: inputs, outputs, operators, parameters, multiply-accumulates.

    Sizes are those of batch 1. A card is needed for a PyTorch network alone.
    """
    from modelmill.cli.tables import print_json, print_table, quantity
    from modelmill.line.inspect import inspect as look

    found = look(model, card)
    if form == "json":
        print_json(found.to_json())
        return
    click.echo(f"{found.name}: opset {found.opset}, fingerprint {found.fingerprint[:16]}")
    for what, tensors in (("input", found.inputs), ("output", found.outputs)):
        for tensor in tensors:
            click.echo(f"{what} {tensor.name}: {_dims(tensor.shape)} {tensor.dtype}")
    click.echo(
        f"{quantity(found.params)} parameters, {quantity(found.macs)} multiply-accumulates, "
        f"{len(found.nodes)} nodes"
        + (f", {found.quantized} quantized values" if found.quantized else "")
    )
    print_table(("operator", "nodes"), [(op, str(n)) for op, n in found.ops.items()])
    if nodes:
        rows = [
            (n.name, n.op, _dims(n.shape), quantity(n.params), quantity(n.macs))
            for n in found.nodes
        ]
        print_table(("node", "operator", "output", "parameters", "MACs"), rows)


def _dims(shape: tuple[int | str | None, ...] | None) -> str:
    if shape is None:
        return "?"
    return "x".join("?" if dim is None else str(dim) for dim in shape) or "scalar"


PLUGIN = inspect
