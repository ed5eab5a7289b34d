"""`modelmill doctor`: what works on this computer."""

import sys
from typing import TYPE_CHECKING

import click

from modelmill.cli import options

if TYPE_CHECKING:
    from modelmill.line.doctor import Health

EPILOG = "\b\nExample:\n  modelmill doctor --format json"


@click.command(
    "doctor", epilog=EPILOG, short_help="What works on this computer, and what is missing."
)
@click.option(
    "--install",
    multiple=True,
    metavar="ENGINE[@VERSION]",
    help="Give an engine an environment of its own: beside others that its packages clash with, or "
    "in another version (then it is the platform ENGINE@VERSION). Downloads it.",
)
@click.option(
    "--remove", multiple=True, metavar="ENGINE[@VERSION]", help="Remove such an environment."
)
@options.form
def doctor(form: str, install: tuple[str, ...], remove: tuple[str, ...]) -> None:
    """Show which engines and packages work here, what to install, and what the CPU can.

    Exit code 1: no build is possible on this computer.
    """
    from modelmill import runtimes

    for name in remove:
        click.echo(f"removed {runtimes.remove(name)}", err=True)
    for name in install:
        runtimes.install(name, lambda text: click.echo(text, err=True))
    if install or remove:
        return
    from modelmill.cli.tables import print_json
    from modelmill.line.doctor import doctor as examine

    health = examine()
    print_json(health.to_json()) if form == "json" else _print(health)
    sys.exit(0 if health.works else 1)


def _print(health: "Health") -> None:
    import modelmill
    from modelmill.cli.tables import print_table

    machine = health.machine
    click.echo(f"modelmill {modelmill.__version__}, Python {machine.python}, {machine.os}")
    click.echo(f"{machine.cpu}, {machine.cores} cores, {machine.memory_mib:,} MiB")
    for sentence in health.instructions:
        click.echo(f"* {sentence}")
    rows = []
    for engine in health.engines:
        state = "works" if engine.works else engine.problem or "not installed"
        where = "here" if engine.installed and not engine.folder else engine.folder
        can = " ".join(health.precisions(engine.name))
        rows.append((engine.name, engine.version, engine.versions, can, where, state, engine.pip))
    print_table(
        ("engine", "version", "made for", "precisions", "environment", "state", "to install"), rows
    )
    packages = [(p.name, p.version or "missing", p.use, p.pip) for p in health.packages]
    print_table(("package", "version", "for", "to install"), packages)
    click.echo("A build is possible here." if health.works else "No build is possible here yet.")


PLUGIN = doctor
