"""`modelmill latency`: measured latencies in a database, and predictions from them.

Each subcommand is a click command in a file `cli/latency_*.py`, which is imported when it is asked
for.
"""

import importlib

import click

COMMANDS = {  # name -> (module of modelmill.cli, its click command)
    "measure": ("latency_measure", "measure"),
    "export": ("latency_data", "export"),
    "import": ("latency_data", "import_"),
    "merge": ("latency_data", "merge"),
    "fit": ("latency_predict", "fit"),
    "predict": ("latency_predict", "predict"),
    "query": ("latency_predict", "query"),
}


class _Group(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, name = COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(f"modelmill.cli.{module}"), name)
        return command


@click.command(
    "latency",
    cls=_Group,
    short_help="Measure latencies into a database, and predict others from it.",
    epilog="\b\nExample:\n  modelmill latency measure --zoo squeezenet --count 2 -t ort_cpu "
    "--db latency.db",
)
def latency() -> None:
    """How fast is this model on that platform? Measured, kept in a database, predicted."""


PLUGIN = latency
