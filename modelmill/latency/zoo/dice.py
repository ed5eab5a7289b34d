"""Random choices of a network's settings, in the words the families use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")
Random = np.random.Generator


def pick(random: Random, choices: Sequence[T]) -> T:
    """One of them, all equally likely."""
    return choices[int(random.integers(len(choices)))]


def chance(random: Random, p: float) -> bool:
    """True with probability `p`."""
    return bool(random.random() < p)


def near(random: Random, number: float, factor: float = 1.5, step: int = 8) -> int:
    """A multiple of `step` within `factor` of `number`, log-uniform, at least one step."""
    drawn = number * factor ** random.uniform(-1, 1)
    return max(step, round(float(drawn) / step) * step)


def between(random: Random, low: int, high: int) -> int:
    """A whole number, both ends included."""
    return int(random.integers(low, high + 1))
