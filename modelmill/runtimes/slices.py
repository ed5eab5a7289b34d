"""Run a batch piece by piece on a model that was compiled for a smaller one."""

from collections.abc import Callable, Mapping

import numpy as np

Arrays = Mapping[str, np.ndarray]


def in_slices(
    call: Callable[[dict[str, np.ndarray]], Mapping[str, np.ndarray]], feeds: Arrays, size: int
) -> dict[str, np.ndarray]:
    """`call` on every `size` rows of `feeds`, and its outputs put together along the first axis.

    Raises:
        ValueError: a batch that is empty or no multiple of `size`, or inputs of different batches.
    """
    batches = {name: array.shape[0] if array.ndim else 0 for name, array in feeds.items()}
    n = next(iter(batches.values()), 0)
    if n == 0 or n % size or set(batches.values()) != {n}:
        raise ValueError(
            f"the model takes batches of {size}; it was given {batches}, empty or no multiple of it"
        )
    found: dict[str, np.ndarray] = {}
    for start in range(0, n, size):
        given = {
            name: np.ascontiguousarray(array[start : start + size]) for name, array in feeds.items()
        }
        for name, part in call(given).items():
            if name not in found:
                found[name] = np.empty((n // size * part.shape[0], *part.shape[1:]), part.dtype)
            rows = part.shape[0]
            found[name][start // size * rows : (start // size + 1) * rows] = part
    return found
