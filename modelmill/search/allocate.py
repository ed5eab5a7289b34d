"""One option for every item, so that the cost is least under a limit of noise: a knapsack with
groups, solved for every limit at once.

Both cost and noise add up over items. A state is one way to choose for the items so far; of two
states, the one with neither less cost nor less noise can never become part of the best, so each
item joins its options to the states and what is dominated goes (Nemhauser and Ullmann, "Discrete
Dynamic Programming and Capital Allocation", Management Science 15, 1969). What is left at the end
is the Pareto front. It is exact as long as no more than `states` survive an item. Beyond that, of
every 1 / `states` of the range of costs the state of least noise survives: then a cost may be above
the best one by that much for each item, and is still the true cost of its choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

STATES = 4096


@dataclass(frozen=True)
class Option:
    """What one option of an item costs, in any unit and possibly below zero, and its noise >= 0."""

    cost: float
    noise: float


@dataclass(frozen=True)
class Allocation:
    """picks: for each item the number of the option taken. cost, noise: their sums."""

    picks: tuple[int, ...]
    cost: float
    noise: float


def front(items: Sequence[Sequence[Option]], states: int = STATES) -> tuple[Allocation, ...]:
    """Every allocation that no other beats in cost and noise, by rising cost and falling noise.

    Raises:
        ValueError: an item without options, or a number that is not finite.
    """
    cost, noise = np.zeros(1), np.zeros(1)
    steps: list[tuple[np.ndarray, np.ndarray]] = []  # (state before, option) of each state
    for item in items:
        held = np.array([(o.cost, o.noise) for o in item], np.float64).reshape(-1, 2)
        if not len(held) or not np.isfinite(held).all():
            raise ValueError(f"an item needs options with finite cost and noise, not {list(item)}")
        costs = (cost[:, None] + held[:, 0]).reshape(-1)
        noises = (noise[:, None] + held[:, 1]).reshape(-1)
        kept = _thinned(costs, _undominated(costs, noises), states)
        steps.append((kept // len(held), kept % len(held)))
        cost, noise = costs[kept], noises[kept]
    picks = np.zeros((len(cost), len(items)), np.int64)
    state = np.arange(len(cost))
    for i in reversed(range(len(items))):
        before, option = steps[i]
        picks[:, i], state = option[state], before[state]
    return tuple(
        Allocation(tuple(map(int, p)), float(c), float(n))
        for p, c, n in zip(picks, cost, noise, strict=True)
    )


def cheapest(allocations: Sequence[Allocation], limit: float) -> Allocation | None:
    """Of a front, the one of least cost whose noise is at most `limit`; None if there is none."""
    return next((a for a in allocations if a.noise <= limit), None)


def _undominated(cost: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Numbers of the states that no other beats, by rising cost; of equals the first."""
    order = np.lexsort((noise, cost))
    sorted_noise = noise[order]
    least = np.minimum.accumulate(sorted_noise)
    keep = np.ones(len(order), bool)
    keep[1:] = sorted_noise[1:] < least[:-1]
    return np.asarray(order[keep])


def _thinned(cost: np.ndarray, kept: np.ndarray, states: int) -> np.ndarray:
    """At most about `states` of the states `kept`: of each slot of costs the last, and the
    first.
    """
    if len(kept) <= states:
        return kept
    low, high = cost[kept[0]], cost[kept[-1]]
    slot = np.floor((cost[kept] - low) / (high - low) * states)
    last = np.append(slot[1:] != slot[:-1], True)
    last[0] = True
    return np.asarray(kept[last])
