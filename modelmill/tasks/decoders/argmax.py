"""argmax: the classes with the highest outputs, (batch, classes) or (batch, classes, 1, 1).

The output may be logits or probabilities, float or integer: only the order counts.
"""

from collections.abc import Sequence

import numpy as np

from modelmill.tasks.card import Card, Size
from modelmill.tasks.classification import Ranking
from modelmill.tasks.task import Outputs, output_of

TOP = 5


def decode(outputs: Outputs, card: Card, sizes: Sequence[Size]) -> list[Ranking]:
    """One Ranking per row; a row with a NaN is invalid.

    Raises:
        ValueError: the output is not (batch, classes).
    """
    x = output_of(outputs, card)
    if x.ndim < 2 or x.shape[1] != card.class_count or x.size != x.shape[0] * x.shape[1]:
        raise ValueError(
            f"argmax reads (batch, {card.class_count}), the card's number of classes; the output "
            f"has shape {x.shape}"
        )
    # float64 holds every float and every int32 exactly; integers as they are could not be negated.
    x = x.reshape(x.shape[:2]).astype(np.float64)
    invalid = np.isnan(x).any(axis=1)
    ranked = np.argsort(-x, axis=1, kind="stable")[:, :TOP].tolist()
    return [
        Ranking((), 1) if bad else Ranking(tuple(row))
        for row, bad in zip(ranked, invalid, strict=True)
    ]


PLUGIN = decode
