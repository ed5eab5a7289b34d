"""fastestdet: a map (batch, 5 + classes, rows, columns), one box per cell.

The head of https://github.com/dog-qiuqiu/FastestDet.

With o the objectness (channel 0), t the box (1-4), p the class scores (5..), for the cell in row r,
column c of an R x C map, in fractions of the network's input:

    centre = ((c + tanh t0) / C, (r + tanh t1) / R)      width, height = sigmoid t2, sigmoid t3
    score  = o^0.6 * max(p)^0.4                          class = argmax p

then boxes above the score threshold, class-wise suppression, the best `max_boxes`.
"""

from collections.abc import Sequence

import numpy as np

from modelmill.tasks.boxes import Bools, Boxes, Floats, suppress
from modelmill.tasks.card import Card, Size
from modelmill.tasks.images import place
from modelmill.tasks.task import Outputs, output_of

SCORE_THRESHOLD = 0.01
IOU_THRESHOLD = 0.45
MAX_BOXES = 100


def decode(outputs: Outputs, card: Card, sizes: Sequence[Size]) -> list[Boxes]:
    """Boxes per picture in pixels of the original picture, best first.

    Raises:
        ValueError: the output is not (batch, 5 + classes, rows, columns).
    """
    x_NKRC = output_of(outputs, card)
    if x_NKRC.ndim != 4 or x_NKRC.shape[1] != 5 + card.class_count:
        raise ValueError(
            f"fastestdet reads (batch, {5 + card.class_count}, rows, columns): objectness, box and "
            f"{card.class_count} classes; the output has shape {x_NKRC.shape}"
        )
    n, k, rows, columns = x_NKRC.shape
    x = x_NKRC.reshape(n, k, rows * columns).astype(np.float64)
    finite: Bools = np.asarray(np.isfinite(x).all(axis=1))
    x = np.where(finite[:, None, :], x, 0.0)
    row, column = np.divmod(np.arange(rows * columns), columns)
    centre_x = (column + np.tanh(x[:, 1])) / columns
    centre_y = (row + np.tanh(x[:, 2])) / rows
    half_w, half_h = _sigmoid(x[:, 3]) / 2, _sigmoid(x[:, 4]) / 2
    height, width = card.input.size
    boxes = np.stack(
        [
            (centre_x - half_w) * width,
            (centre_y - half_h) * height,
            (centre_x + half_w) * width,
            (centre_y + half_h) * height,
        ],
        axis=2,
    )
    # Quantized or overflowing scores may fall below 0, where a power is NaN.
    scores = x[:, 0].clip(min=0) ** 0.6 * x[:, 5:].max(axis=1).clip(min=0) ** 0.4
    classes = x[:, 5:].argmax(axis=1)
    least = _given(card.output.score_threshold, SCORE_THRESHOLD)
    overlap = _given(card.output.iou_threshold, IOU_THRESHOLD)
    most = MAX_BOXES if card.output.max_boxes is None else card.output.max_boxes
    found = []
    for i, size in enumerate(sizes):
        likely = finite[i] & (scores[i] > least)
        b, s, c = boxes[i, likely], scores[i, likely], classes[i, likely]
        kept = suppress(b, s, c, overlap, most)
        b = place(card.input, size).to_picture(b[kept])
        found.append(Boxes(b, s[kept], c[kept], int((~finite[i]).sum())))
    return found


def _given(value: float | None, default: float) -> float:
    return default if value is None else value


def _sigmoid(x: Floats) -> Floats:
    y: Floats = 1 / (1 + np.exp(-x.clip(-50, 50)))
    return y


PLUGIN = decode
