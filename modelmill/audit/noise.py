"""A noise: one step of the pipeline that devices do differently, and the ways they do it.

A noise is a file in this package with `PLUGIN = Noise(...)`. Each of its options is the real thing:
the library's own function, or a rewritten graph, not a model of it. An option that cannot apply to
a subject is left out with the reason.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from modelmill import ir, plugins
from modelmill.audit.pipeline import STAGES, Network, Pipeline
from modelmill.tasks import Card, Task


@dataclass(frozen=True, eq=False)
class Subject:
    """What is audited. pictures: how many; files: whether they are files; jpegs, turned: how many
    of them are JPEG, and have an EXIF orientation other than upright. network: the float one.
    integer: the int8 networks that there are; refused: names of others, and why they are not.
    """

    card: Card
    graph: ir.Graph
    task: Task
    pictures: int
    files: bool
    jpegs: int
    turned: int
    network: Network
    integer: tuple[Network, ...] = ()
    refused: tuple[tuple[str, str], ...] = ()

    @property
    def engine(self) -> str | None:
        """The engine of the float network; None for the executor."""
        return self.network.engine


@dataclass(frozen=True)
class Option:
    """One way of doing it. `change` puts it into a pipeline. mistake: no correct implementation
    does this, but it is often seen; such options count neither for the combination nor for the
    tolerance.
    """

    name: str
    about: str
    change: Callable[[Pipeline], Pipeline]
    mistake: bool = False


@dataclass(frozen=True)
class LeftOut:
    """An option, or with an empty name the whole noise, that does not apply, and why."""

    name: str
    why: str


Offer = Sequence[Option | LeftOut]


@dataclass(frozen=True)
class Noise:
    """`stage` is one of STAGES; `options` offers those of a subject, in a fixed order."""

    name: str
    stage: str
    about: str
    options: Callable[[Subject], Offer]

    def __post_init__(self) -> None:
        assert self.stage in STAGES, self.stage


def noises(names: Sequence[str] = ()) -> list[Noise]:
    """The noises of these names, or all, in the order of the stages.

    Raises:
        ValueError: no such noise (lists the choices).
    """
    package = "modelmill.audit"
    known = plugins.names(package)
    unknown = [name for name in names if name not in known and not name.endswith(".py")]
    if unknown:
        near = difflib.get_close_matches(unknown[0], known, 1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ValueError(f"unknown noise {unknown[0]!r}{hint} Choices: {', '.join(known)}")
    found = [plugins.load(package, name) for name in names or known]
    return sorted(found, key=lambda noise: (STAGES.index(noise.stage), noise.name))


def missing(module: str, name: str) -> LeftOut | None:
    """What to say of an option whose library is not installed; None where it is."""
    if find_spec(module) is not None:
        return None
    return LeftOut(name, f"{module} is not installed: pip install 'modelmill[audit]'")
