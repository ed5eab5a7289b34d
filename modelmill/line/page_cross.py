"""The table of the page that says how alike the deployments answer, one cell for every pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from modelmill.line.report import FLOAT, CrossAgreement

FAINT = 0.02  # a share this far below 1 has half of the full shade


@dataclass(frozen=True)
class Cell:
    """One pair: its number in words, what it says in a sentence, and its shade from 0 to 1."""

    text: str
    title: str
    heat: float


@dataclass(frozen=True)
class Matrix:
    """Rows of cells under the same names, the sentence above them, and what a cell compares."""

    names: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    words: str
    measure: str


def matrix(cross: CrossAgreement | None) -> Matrix | None:
    """The table; None where nothing was compared."""
    if cross is None:
        return None
    rows = tuple(
        tuple(_cell(cross, a, b, share) for b, share in zip(cross.names, row, strict=True))
        for a, row in zip(cross.names, cross.rows, strict=True)
    )
    return Matrix(cross.names, rows, summary(cross), _measure(cross))


def summary(cross: CrossAgreement) -> str:
    """The smallest agreement among the deployments, and of one with the float model."""
    said = []
    others = [name for name in cross.names if name != FLOAT]
    among = cross.least(*others)
    if among is not None:
        share, a, b = among
        said.append(f"any two deployments agree to {_text(cross, share)} or more ({a}, {b})")
    if FLOAT in cross.names:
        pairs = [(cross.least(FLOAT, name), name) for name in others]
        known = [(found[0], name) for found, name in pairs if found is not None]
        if known:
            share, name = min(known)
            said.append(f"with the float model to {_text(cross, share)} or more ({name})")
    return ", ".join(said)


def _cell(cross: CrossAgreement, a: str, b: str, share: float | None) -> Cell:
    if share is None:
        return Cell("–", f"{b} is sure of nothing", 0.0)
    apart = 1 - share
    text = _text(cross, share)
    return Cell(text, f"{a} with the answers of {b} as truth: {text}", apart / (apart + FAINT))


def _text(cross: CrossAgreement, share: float) -> str:
    return f"{100 * share:.2f} %" if _is_share(cross) else f"{share:.4f}"


def _measure(cross: CrossAgreement) -> str:
    if _is_share(cross):
        return f"Share of {cross.n:,} images with the same first class."
    return (
        f"{cross.metric.upper()} on {cross.n:,} images of the row's boxes, with the column's sure "
        "ones as truth."
    )


def _is_share(cross: CrossAgreement) -> bool:
    return cross.metric.startswith("top")


def lines(cross: CrossAgreement | None) -> Sequence[str]:
    """The same for a terminal: one line, or none."""
    if cross is None or not (words := summary(cross)):
        return ()
    return (f"{_measure(cross).rstrip('.')}: {words}",)
