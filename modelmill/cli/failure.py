"""An error as a person reads it: one message on standard error and an exit code."""

from typing import NoReturn

import click

FAULT, STOPPED = 70, 130


def leave(message: str, code: int) -> NoReturn:
    """End the program."""
    click.echo(message, err=True)
    raise SystemExit(code)
