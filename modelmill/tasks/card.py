"""Card: how a model is fed and how its output is read, the JSON file beside the model.

A network's input is, per pixel and channel in the card's colour order,

    x = (byte * scale - mean) / std        byte in 0..255, float32 arithmetic

after the picture was resized exactly as `resize` says. `size` is [height, width] of the network's
input. A card that is wrong by one field still gives a plausible but lower score, so everything
checkable is checked: the file against its schema (`load_card`), and the card against the graph
(`check_card`).
"""

import dataclasses
import difflib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from modelmill import plugins
from modelmill.tasks import schema
from modelmill.tasks.coco import COCO80

Dim = int | str | None
Size = tuple[int, int]  # height, width


class CardError(ValueError):
    """The card is missing, malformed, or contradicts the model; the text names the field."""


@dataclass(frozen=True)
class Resize:
    """How a picture becomes the network's size; `method` is the library and its filter.

    stretch       to `to` (default: the input's size) whatever the shape, then the crop if any
    shorter-side  the shorter side to `to`, the other rounded in proportion, then the centre crop
    letterbox     as large as fits, centred on a border of grey level `fill`
    """

    method: str
    mode: str
    to: int | Size | None = None
    crop: str | None = None
    fill: int = 114


@dataclass(frozen=True)
class Input:
    """What the network's input holds, by the formula above; `resize` None: pictures fit already."""

    layout: str
    size: Size
    color: str
    resize: Resize | None
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    exif: bool = False

    @property
    def channels(self) -> int:
        return 1 if self.color == "GRAY" else 3

    def shape(self, batch: int) -> tuple[int, int, int, int]:
        """Shape of the network's input for `batch` pictures."""
        h, w = self.size
        return (
            (batch, self.channels, h, w) if self.layout == "NCHW" else (batch, h, w, self.channels)
        )


@dataclass(frozen=True)
class Output:
    """Which decoder reads the output; `name` chooses among several, None: the decoder's default."""

    decode: str
    name: str | None = None
    score_threshold: float | None = None
    iou_threshold: float | None = None
    max_boxes: int | None = None


@dataclass(frozen=True)
class Card:
    """Invariants: a finite mean and std per channel, std not 0; a resize gives the input's size."""

    task: str
    input: Input
    output: Output
    classes: int | str | tuple[str, ...]
    metric: str | None = None

    def __post_init__(self) -> None:
        _check_numbers(self.input)
        if self.input.resize is not None:
            _check_resize(self.input.resize, self.input.size)

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names in class order, None if the card gives only their number."""
        if self.classes == "coco80":
            return COCO80
        return self.classes if isinstance(self.classes, tuple) else None

    @property
    def class_count(self) -> int:
        names = self.class_names
        if names is not None:
            return len(names)
        assert isinstance(self.classes, int)
        return self.classes

    def to_json(self) -> dict[str, Any]:
        """The card as JSON data; `card_from_json` gives the equal card back."""
        data = dataclasses.asdict(self)
        optional = [(data, "metric"), *((data["output"], key) for key in list(data["output"]))]
        for holder, key in optional:
            if holder[key] is None:
                del holder[key]
        return json.loads(json.dumps(data))  # type: ignore[no-any-return]  # tuples become lists


def default_card_path(model: str | Path) -> Path:
    """The card's place when none is given: beside the model, with suffix .json."""
    return Path(model).with_suffix(".json")


def load_card(path: str | Path) -> Card:
    """Read and check a card.

    Raises:
        CardError: no such file, not JSON, or a field is wrong; names file, field, value, choices.
    """
    path = Path(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CardError(
            f"card {path} does not exist. A card says how the model is fed (size, colour, scale, "
            "mean, std) and read (task, decoder, classes); write one beside the model, or give "
            "its path with --card"
        ) from None
    except OSError as error:
        raise CardError(f"card {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise CardError(f"card {path} is not text (UTF-8); is it the model itself?") from None
    except ValueError as error:
        raise CardError(f"card {path} is not JSON: {error}") from None
    except RecursionError:
        raise CardError(f"card {path} is not a card: nested too deep") from None
    try:
        return card_from_json(data)
    except CardError as error:
        raise CardError(f"card {path}: {error}") from None


def card_from_json(data: Any) -> Card:
    """The card that JSON data describes.

    Raises:
        CardError: every wrong field with what was found and what is allowed.
    """
    import jsonschema  # here, because it costs 0.1 s and most imports of this module need no file

    errors = list(jsonschema.Draft202012Validator(schema.CARD).iter_errors(data))
    if errors:
        errors.sort(key=lambda error: [str(step) for step in error.absolute_path])
        raise CardError("; ".join(_explain(error) for error in errors))
    fields = dict(data["input"])
    if fields["resize"] is not None:
        resize = dict(fields["resize"])
        to = resize.get("to")
        if to is not None:
            resize["to"] = (int(to[0]), int(to[1])) if isinstance(to, list) else int(to)
        fields["resize"] = Resize(**resize)
    fields["size"] = (int(fields["size"][0]), int(fields["size"][1]))
    fields["scale"] = float(fields["scale"])
    fields["mean"] = tuple(float(v) for v in fields["mean"])
    fields["std"] = tuple(float(v) for v in fields["std"])
    classes = data["classes"]
    card = Card(
        task=data["task"],
        input=Input(**fields),
        output=Output(**data["output"]),
        classes=tuple(classes) if isinstance(classes, list) else classes,
        metric=data.get("metric"),
    )
    _check_names(card)
    return card


def check_card(
    card: Card, input_shape: Sequence[Dim], output_shapes: Mapping[str, Sequence[Dim]]
) -> None:
    """Compare a card with the graph; unknown dimensions (None or a name) fit anything.

    The output is judged by the decoder itself, on zeros of the graph's output shapes.

    Raises:
        CardError: the first contradiction, with both sides and the field to change.
    """
    card_from_json(card.to_json())  # a card made in Python has not seen the schema yet
    _check_input(card.input, tuple(input_shape))
    batch = input_shape[0] if isinstance(input_shape[0], int) else 1
    zeros = {}
    for name, dims in output_shapes.items():
        known = [dim for dim in dims[1:] if isinstance(dim, int)]
        if len(dims) == 0 or len(known) < len(dims) - 1:
            if card.output.name in (None, name):
                return  # a free dimension besides the batch: only a run can tell
            continue
        first = dims[0] if isinstance(dims[0], int) else batch
        zeros[name] = np.zeros((first, *known), np.float32)
    _check_output(card, zeros, batch)


def _check_output(card: Card, outputs: dict[str, np.ndarray[Any, Any]], batch: int) -> None:
    task = plugins.load("modelmill.tasks", card.task)
    try:
        predictions = task.decode(outputs, card, [card.input.size] * batch)
    except ValueError as error:
        raise CardError(
            f"output.decode = {card.output.decode!r}, classes = {card.class_count}: {error}"
        ) from None
    if len(predictions) != batch:
        raise CardError(
            f"output.decode = {card.output.decode!r}: gave {len(predictions)} predictions for a "
            f"batch of {batch}"
        )
    if not isinstance(predictions[0], task.prediction):
        raise CardError(
            f"output.decode: {card.output.decode!r} gives {type(predictions[0]).__name__}, but "
            f"task {card.task!r} scores {task.prediction.__name__}; choose another decoder or "
            "another task"
        )


def _check_input(spec: Input, shape: tuple[Dim, ...]) -> None:
    if len(shape) != 4:
        raise CardError(
            f"input: the card describes pictures ({spec.layout}, four dimensions), the graph's "
            f"input has shape {_show(shape)}"
        )
    h, w = spec.size
    wanted = spec.shape(1)
    if all(_fits(have, want) for have, want in zip(shape[1:], wanted[1:], strict=True)):
        return
    other = "NHWC" if spec.layout == "NCHW" else "NCHW"
    swapped = dataclasses.replace(spec, layout=other).shape(1)
    if all(_fits(have, want) for have, want in zip(shape[1:], swapped[1:], strict=True)):
        raise CardError(
            f"input.layout: the card says {spec.layout}, the graph's input {_show(shape)} is "
            f"{other}; set input.layout to {other}"
        )
    channel, rows, columns = (1, 2, 3) if spec.layout == "NCHW" else (3, 1, 2)
    if not _fits(shape[channel], spec.channels):
        raise CardError(
            f"input.color: {spec.color} has {spec.channels} channel(s), the graph's input "
            f"{_show(shape)} has {shape[channel]} in layout {spec.layout}; choices: RGB or BGR "
            "(3), GRAY (1)"
        )
    raise CardError(
        f"input.size: the card says [{h}, {w}] (height, width), the graph's input {_show(shape)} "
        f"has [{shape[rows]}, {shape[columns]}] in layout {spec.layout}"
    )


def _fits(have: Dim, want: int) -> bool:
    return not isinstance(have, int) or have == want


def _show(shape: Sequence[Dim]) -> str:
    return "[" + ", ".join("?" if dim is None else str(dim) for dim in shape) + "]"


def _check_numbers(spec: Input) -> None:
    if not math.isfinite(spec.scale) or spec.scale == 0:
        raise CardError(f"input.scale: found {spec.scale}; expected a finite number that is not 0")
    for field, values in (("mean", spec.mean), ("std", spec.std)):
        if len(values) != spec.channels:
            raise CardError(
                f"input.{field}: found {len(values)} number(s); expected {spec.channels}, one per "
                f"channel of {spec.color}"
            )
        if not all(math.isfinite(v) for v in values) or (field == "std" and 0.0 in values):
            raise CardError(
                f"input.{field}: found {list(values)}; expected finite numbers"
                + (" that are not 0" if field == "std" else "")
            )


def _check_resize(resize: Resize, size: Size) -> None:
    to = resize.to
    if resize.mode == "letterbox":
        if (to is not None and to != size) or resize.crop is not None:
            raise CardError(
                "input.resize: mode letterbox fits the whole picture into input.size; it takes no "
                "`to` and no `crop`"
            )
    elif resize.mode == "shorter-side":
        if not isinstance(to, int):
            raise CardError(
                f"input.resize.to: found {to!r}; mode shorter-side needs the pixels of the shorter "
                "side, e.g. 256"
            )
        if resize.crop != "center":
            raise CardError(
                f"input.resize.crop: found {resize.crop!r}; mode shorter-side leaves pictures of "
                "different widths, so "
                'it needs "center"'
            )
        if to < max(size):
            raise CardError(
                f"input.resize.to: found {to}; the crop to input.size {list(size)} needs at least "
                f"{max(size)}"
            )
    else:
        stretched = (to, to) if isinstance(to, int) else to or size
        if stretched != size and resize.crop != "center":
            raise CardError(
                f"input.resize.to: found {to!r}, input.size is {list(size)}; make them equal, or "
                'set crop to "center"'
            )
        if stretched[0] < size[0] or stretched[1] < size[1]:
            raise CardError(
                f"input.resize.to: found {to!r}; smaller than the crop, input.size {list(size)}"
            )


def _check_names(card: Card) -> None:
    """Task, decoder and metric exist; the plug-ins know, the schema cannot."""
    found = {}
    for field, package, name in (
        ("task", "modelmill.tasks", card.task),
        ("output.decode", "modelmill.tasks.decoders", card.output.decode),
    ):
        try:
            found[field] = plugins.load(package, name)
        except ValueError as error:
            raise CardError(f"{field}: {error}") from None
    metrics = found["task"].metrics
    if card.metric is not None and card.metric not in metrics:
        raise CardError(
            f"metric: found {card.metric!r}; task {card.task!r} has {', '.join(metrics)}"
        )


def _explain(error: Any) -> str:
    """One schema error in words: field, what was found, what is allowed."""
    field = _field(error.absolute_path)
    if error.validator == "additionalProperties":
        allowed = list(error.schema["properties"])
        unknown = sorted(set(error.instance) - set(allowed))
        return "; ".join(
            f"{_field([*error.absolute_path, key])}: unknown key{_near(key, allowed)} Allowed "
            f"keys: {', '.join(allowed)}"
            for key in unknown
        )
    if error.validator == "required":
        missing = [key for key in error.schema["required"] if key not in error.instance]
        wanted = error.schema["properties"]
        key = next(key for key in missing if repr(key) in error.message)
        return (
            f"{_field([*error.absolute_path, key])}: missing; expected {wanted[key]['description']}"
        )
    found = json.dumps(error.instance)
    if len(found) > 80:
        found = found[:77] + "..."
    near = ""
    if error.validator == "enum" and isinstance(error.instance, str):
        near = _near(error.instance, [v for v in error.schema["enum"] if isinstance(v, str)])
    return f"{field}: found {found}; expected {error.schema['description']}{near.rstrip('.')}"


def _field(steps: Any) -> str:
    text = ""
    for step in steps:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else str(step)
    return text or "the whole card"


def _near(word: str, choices: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, choices, 1)
    return f"; did you mean {near[0]!r}?" if near else "."
