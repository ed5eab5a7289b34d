"""What a long run shows: a live display on a terminal, else one line per step on standard error."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)


class Lines:
    """A line at the start of every step, with the seconds since the run began."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None

    @contextmanager
    def step(self, name: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """Say that a step begins; progress within it is not shown."""
        count = f" ({total:,})" if total is not None else ""
        click.echo(f"[{time.monotonic() - self._start:6.1f} s] {name}{count}", err=True)
        yield lambda done: None

    def say(self, text: str) -> None:
        """Print a sentence."""
        click.echo(text, err=True)


class Live:
    """Bars that move; finished steps stay with the time they took."""

    def __init__(self) -> None:
        self._progress = Progress(
            SpinnerColumn(finished_text="✓"),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    @contextmanager
    def step(self, name: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """A bar for the step; without a total it only counts."""
        task = self._progress.add_task(name, total=total)
        reached = 0

        def advance(done: int) -> None:
            nonlocal reached
            reached = done
            self._progress.update(task, completed=done)

        yield advance
        whole = total if total is not None else max(reached, 1)
        self._progress.update(task, total=whole, completed=whole)
        self._progress.stop_task(task)

    def say(self, text: str) -> None:
        """Print a sentence above the bars."""
        self._progress.console.print(text, markup=False, highlight=False)


@contextmanager
def loading() -> Iterator[None]:
    """Around imports that take seconds: a spinner on a terminal, else nothing."""
    if not _on_terminal():
        yield
        return
    with Console(stderr=True).status("loading PyTorch"):
        yield


def _on_terminal() -> bool:
    return sys.stdout.isatty() and sys.stderr.isatty()


def watch() -> Lines | Live:
    """The display that suits where the output goes; enter it around the run."""
    return Live() if _on_terminal() else Lines()
