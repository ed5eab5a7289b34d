"""The entry point `modelmill`: finds the commands, and turns whatever goes wrong into one message.

A command is a file here whose PLUGIN is a click command; nothing heavy is imported before one runs.

    0    fine
    1    a finding: not accepted, significantly worse, not on integers
    2    wrong input
    70   a fault of modelmill itself
    130  stopped by Ctrl-C
"""

import difflib
import functools
import importlib
import os
import signal
import sys
import traceback
from typing import Any

import click

import modelmill
from modelmill import plugins
from modelmill.cli.failure import FAULT, STOPPED, leave


class Commands(click.Group):
    """The group of all commands; each is imported when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_names())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _names():
            return None
        command: click.Command = importlib.import_module(f"modelmill.cli.{cmd_name}").PLUGIN
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        near = difflib.get_close_matches(name, _names(), 1)
        if near and name not in _names() and not name.startswith("-"):
            raise click.UsageError(f"No such command {name!r}; did you mean {near[0]!r}?", ctx)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except KeyboardInterrupt:
            # A second Ctrl-C while the interpreter goes down would only add a traceback.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            leave("stopped", STOPPED)
        except Exception as error:
            if ctx.params.get("debug"):
                traceback.print_exc()
            leave(*_failure(error))


# Packages outside the light core, and the extra that brings them.
EXTRAS = {
    "torch": "torch",
    "safetensors": "torch",
    "onnxscript": "torch",
    "cv2": "detection",
    "av": "audit",
    "simplejpeg": "audit",
    "pycocotools": "detection",
    "scipy": "latency",
    "sklearn": "demo",
    "torch_geometric": "latency",
    "pyarrow": "parquet",
    "fastapi": "serve",
    "uvicorn": "serve",
}


@functools.cache
def _names() -> tuple[str, ...]:
    return tuple(plugins.names("modelmill.cli"))


def _failure(error: Exception) -> tuple[str, int]:
    """What to say of an error: wrong input in its own words, anything else as a fault of ours."""
    protocol = sys.modules.get("modelmill.runtimes.protocol")  # absent: no engine was in play
    if isinstance(error, OSError) and error.filename is not None:
        return f"Error: {error.filename}: {error.strerror}", 2
    if isinstance(error, ModuleNotFoundError) and error.name in EXTRAS:
        extra = EXTRAS[error.name]
        return f"Error: {error.name} is missing; run: pip install 'modelmill[{extra}]'", 2
    if isinstance(error, ValueError | OSError):
        return f"Error: {error}", 2
    if protocol is not None and isinstance(error, protocol.DeploymentError):
        return f"Error: {error}", 2
    words = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return (
        f"Error: modelmill failed unexpectedly: {words}. Please report it with the output of "
        "`modelmill --debug ...` and `modelmill doctor`.",
        FAULT,
    )


@click.command(cls=Commands, epilog="\b\nExample:\n  modelmill demo")
@click.version_option(modelmill.__version__)
@click.option(
    "--debug",
    is_flag=True,
    envvar="MODELMILL_DEBUG",
    help="Show the Python traceback of an error.",
)
def main(debug: bool) -> None:
    """A trained vision model in, verified low-bit artifacts on real inference engines out.

    Exit codes: 0 fine, 1 a finding (not accepted, worse, not on integers), 2 wrong input.
    """
    # PyTorch's OpenMP lets threads spin at every barrier; on a machine that is shared they wait for
    # one another's time slices, which made runs up to thirty times as long. Read when torch loads.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
