"""Task: what a model is for, one value made of functions, and the choice of a decoder.

A task is a file in this package with `PLUGIN = Task(...)`; how the graph's output becomes
predictions is a decoder, a file in `decoders/` with `PLUGIN = ` a function

    (outputs: {name: array}, card, sizes: (height, width) of each original picture) -> one
    prediction per picture

which raises ValueError, naming the shape it wanted, if the outputs are not what it decodes. A
decoder answers for numbers that are not finite: such a prediction counts as wrong and carries
`invalid` > 0.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from modelmill import plugins
from modelmill.tasks.card import Card, Size

Outputs = Mapping[str, npt.NDArray[Any]]
Decoder = Callable[[Outputs, Card, Sequence[Size]], Sequence[Any]]
Resampled = Callable[[npt.NDArray[np.intp]], dict[str, float]]


def decode(outputs: Outputs, card: Card, sizes: Sequence[Size]) -> Sequence[Any]:
    """Predictions by the card's decoder, one per picture.

    Raises:
        ValueError: unknown decoder, or outputs of a shape it does not decode.
    """
    return _decoder(card.output.decode)(outputs, card, sizes)


@functools.cache
def _decoder(name: str) -> Decoder:
    """Looking up a plug-in reads its folder, too slow to do for every batch."""
    function: Decoder = plugins.load("modelmill.tasks.decoders", name)
    return function


def output_of(outputs: Outputs, card: Card) -> npt.NDArray[Any]:
    """The one output that the card names, or the only one there is.

    Raises:
        ValueError: no such output, or several and the card names none.
    """
    name = card.output.name
    if name is None:
        if len(outputs) != 1:
            raise ValueError(
                f"the graph has {len(outputs)} outputs; set output.name in the card to one of "
                f"{', '.join(outputs)}"
            )
        name = next(iter(outputs))
    if name not in outputs:
        raise ValueError(f"output.name: no output {name!r}; the graph has {', '.join(outputs)}")
    return np.asarray(outputs[name])


@dataclass(frozen=True)
class Task:
    """What a model is for.

    metrics     names of the metrics, fractions between 0 and 1, the headline first
    truth       type of the truth of one picture
    prediction  type of the prediction for one picture, a dataclass of numbers, tuples of integers
                and arrays; it has `invalid`, a count
    score       (predictions, truths, card) -> {metric: value}
    correct     (predictions, truths) -> bool per picture, for paired tests; None where right is not
                yes or no
    ideal       (truth, card) -> the prediction that says exactly the truth
    example     (seed) -> a small card and truths, for the tests every task gets
    decode      (outputs, card, sizes) -> predictions; by default the card's decoder
    as_truth    (prediction, card) -> the truth it would be if it were right, which scores one model
                against another; None where an answer cannot be a truth
    changed     (prediction, prediction) of one picture -> how many statements are in one of them
                only, of how many in both: the class, or the boxes that are sure
    resample    (predictions, truths, card) -> a function (indices with repetition) -> {metric:
                value} that scores draws of the pictures faster than `score` would; None: `score`
    """

    name: str
    metrics: tuple[str, ...]
    truth: type
    prediction: type
    score: Callable[[Sequence[Any], Sequence[Any], Card], dict[str, float]]
    ideal: Callable[[Any, Card], Any]
    example: Callable[[int], tuple[Card, list[Any]]]
    correct: Callable[[Sequence[Any], Sequence[Any]], npt.NDArray[np.bool_]] | None = None
    decode: Decoder = decode
    as_truth: Callable[[Any, Card], Any] | None = None
    resample: Callable[[Sequence[Any], Sequence[Any], Card], Resampled] | None = None
    changed: Callable[[Any, Any], tuple[int, int]] | None = None

    def resampled(self, predictions: Sequence[Any], truths: Sequence[Any], card: Card) -> Resampled:
        """Scores of draws of the pictures, as a bootstrap needs them."""
        if self.resample is not None:
            return self.resample(predictions, truths, card)
        return lambda drawn: self.score(
            [predictions[i] for i in drawn], [truths[i] for i in drawn], card
        )

    def primary(self, card: Card) -> str:
        """The metric reported first: the card's choice, else the headline."""
        return card.metric or self.metrics[0]
