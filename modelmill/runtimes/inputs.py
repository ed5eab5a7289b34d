"""Check an input for engines that convert, read on or abort where it does not fit."""

from collections.abc import Sequence

import numpy as np

from modelmill.runtimes.protocol import Arrays


def checked(feeds: Arrays, name: str, dtype: str, shape: Sequence[int]) -> np.ndarray:
    """The array `name` of `feeds`, in C order, if it is of that type and shape.

    Raises:
        ValueError: it is of another; the text says both.
    """
    array = np.asarray(feeds[name], order="C")
    if str(array.dtype) != dtype or array.shape != tuple(shape):
        raise ValueError(
            f"input {name!r} must be {dtype} of shape {tuple(shape)};"
            f" it is {array.dtype} of shape {array.shape}"
        )
    return array
