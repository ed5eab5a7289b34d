"""What a long run tells whoever watches: steps with progress, and sentences. The line only speaks
to this protocol.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Advance = Callable[[int], None]


class Show(Protocol):
    """A watcher. `step` surrounds a piece of work of `total` units; what it yields takes the units
    done so far.
    """

    def step(self, name: str, total: int | None = None) -> AbstractContextManager[Advance]: ...

    def say(self, text: str) -> None: ...


class Silent:
    """Shows nothing."""

    @contextmanager
    def step(self, name: str, total: int | None = None) -> Iterator[Advance]:
        yield lambda done: None

    def say(self, text: str) -> None:
        return None


SILENT: Show = Silent()
