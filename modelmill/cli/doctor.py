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
@options.form
def doctor(form: str) -> None:
    """Show which engines and packages work here, what to install, and what the CPU can.

    Exit code 1: no build is possible on this computer.
    """
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
        rows.append((engine.name, engine.version, engine.versions, state, engine.pip))
    print_table(("engine", "version", "made for", "state", "to install"), rows)
    packages = [(p.name, p.version or "missing", p.use, p.pip) for p in health.packages]
    print_table(("package", "version", "for", "to install"), packages)
    click.echo("A build is possible here." if health.works else "No build is possible here yet.")


PLUGIN = doctor
