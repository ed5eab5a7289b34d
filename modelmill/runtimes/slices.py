"""Run a batch piece by piece on a model that was compiled for a smaller one."""

from collections.abc import Callable, Mapping

import numpy as np

from modelmill.runtimes.protocol import Arrays


def in_slices(
    call: Callable[[dict[str, np.ndarray]], Mapping[str, np.ndarray]], feeds: Arrays, size: int
) -> dict[str, np.ndarray]:
    """`call` on every `size` rows of `feeds`, and its outputs put together along the first axis.

    Raises:
        ValueError: see `slices`.
    """
    parts = slices(feeds, size)
    found: dict[str, np.ndarray] = {}
    for i, given in enumerate(parts):
        for name, part in call(given).items():
            rows = part.shape[0]
            if name not in found:
                found[name] = np.empty((len(parts) * rows, *part.shape[1:]), part.dtype)
            found[name][i * rows : (i + 1) * rows] = part
    return found


def slices(feeds: Arrays, size: int) -> list[dict[str, np.ndarray]]:
    """`feeds` cut into pieces of `size` rows, each in C order.

    Raises:
        ValueError: a batch that is empty or no multiple of `size`, or inputs of different batches.
    """
    batches = {name: array.shape[0] if array.ndim else 0 for name, array in feeds.items()}
    n = next(iter(batches.values()), 0)
    if n == 0 or n % size or set(batches.values()) != {n}:
        raise ValueError(
            f"the model takes batches of {size}; it was given {batches}, empty or no multiple of it"
        )
    return [
        {name: np.ascontiguousarray(array[i : i + size]) for name, array in feeds.items()}
        for i in range(0, n, size)
    ]
