"""`modelmill targets`: read the shipped targets, or hold two against each other."""

import click

from modelmill.cli import options

EPILOG = "\b\nExample:\n  modelmill targets --diff tensorrt qnn"


@click.command("targets", epilog=EPILOG, short_help="What targets say, and how two of them differ.")
@click.argument("names", nargs=-1, metavar="[TARGET]...")
@click.option("--diff", is_flag=True, help="Show only what two targets say differently.")
@options.form
def targets(names: tuple[str, ...], diff: bool, form: str) -> None:
    """List the targets, or show formats, rules and sources of those named.

    A TARGET is a name or the path of a file, as for -t; a file of your own is checked on the way.
    """
    if diff and len(names) != 2:
        raise click.UsageError("--diff wants two targets, for example --diff tensorrt qnn.")
    from modelmill.cli.progress import loading
    from modelmill.cli.tables import print_json, print_table

    with loading():
        from modelmill.line.describe import describe, differences, shipped
    if not names:
        found = shipped()
        if form == "json":
            return print_json({target.name: describe(target.name) for target in found})
        rows = []
        for target in found:
            for scheme in target.schemes:
                kinds = (str(scheme.activation), str(scheme.weight))
                files = ", ".join(target.export)
                row = (target.name, target.runtime or "simulated", scheme.precision, *kinds, files)
                rows.append(row)
        return print_table(
            ("target", "engine", "precision", "activations", "weights", "files"), rows
        )
    if diff:
        apart = differences(*names)
        if form == "json":
            return print_json([dict(zip(("what", *names), row, strict=True)) for row in apart])
        return print_table(("what", *names), apart)
    said = {name: describe(name) for name in names}
    if form == "json":
        return print_json(said)
    for name, facts in said.items():
        print_table((name, ""), list(facts.items()))
    return None


PLUGIN = targets
