"""JSON Schema of a card, the file beside a model that says how it is fed and how it is read.

Each leaf carries a `description` in the words of an error message: "found X; expected DESCRIPTION".
Rules that need two fields at once (a mean per channel, a crop not larger than the image) stand at
the types in `card.py`.
"""

from typing import Any

LAYOUTS = ("NCHW", "NHWC")
COLORS = ("RGB", "BGR", "GRAY")
PILLOW_METHODS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
OPENCV_METHODS = ("nearest", "linear", "area", "cubic", "lanczos")
METHODS = tuple(f"pillow-{m}" for m in PILLOW_METHODS) + tuple(
    f"opencv-{m}" for m in OPENCV_METHODS
)
MODES = ("stretch", "shorter-side", "letterbox")


def _choice(values: tuple[str, ...]) -> dict[str, Any]:
    return {"enum": list(values), "description": "one of " + ", ".join(values)}


def _object(required: tuple[str, ...], properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "required": list(required),
        "properties": properties,
        "additionalProperties": False,
        "description": "an object with the keys " + ", ".join(properties),
    }


_SIZE = {
    "type": "array",
    "items": {"type": "integer", "minimum": 1, "description": "an integer of at least 1"},
    "minItems": 2,
    "maxItems": 2,
    "description": "[height, width] in pixels",
}
_PER_CHANNEL = {
    "type": "array",
    "items": {"type": "number", "description": "a number"},
    "minItems": 1,
    "maxItems": 3,
    "description": "a list of one number per channel, in the card's colour order",
}
_FRACTION = {
    "type": "number",
    "minimum": 0,
    "maximum": 1,
    "description": "a number between 0 and 1",
}

_RESIZE = _object(
    ("method", "mode"),
    {
        "method": _choice(METHODS),
        "mode": _choice(MODES),
        "to": {
            "anyOf": [{"type": "integer", "minimum": 1}, {"type": "null"}, _SIZE],
            "description": "pixels of the shorter side, or [height, width] before the crop",
        },
        "crop": {"enum": ["center", None], "description": '"center" or null'},
        "fill": {
            "type": "integer",
            "minimum": 0,
            "maximum": 255,
            "description": "the grey level of a letterbox's border, 0 to 255",
        },
    },
)
_RESIZE["type"] = ["object", "null"]
_RESIZE["description"] += ", or null for images that have the input's size already"

CARD: dict[str, Any] = _object(
    ("task", "input", "output", "classes"),
    {
        "task": {"type": "string", "minLength": 1, "description": "the name of a task"},
        "input": _object(
            ("layout", "size", "color", "resize", "scale", "mean", "std"),
            {
                "layout": _choice(LAYOUTS),
                "size": _SIZE,
                "color": _choice(COLORS),
                "resize": _RESIZE,
                "scale": {"type": "number", "description": "a number such as 0.00392156862745098"},
                "mean": _PER_CHANNEL,
                "std": _PER_CHANNEL,
                "exif": {
                    "type": "boolean",
                    "description": "true (turn pictures upright by their EXIF tag) or false",
                },
            },
        ),
        "output": _object(
            ("decode",),
            {
                "decode": {
                    "type": "string",
                    "minLength": 1,
                    "description": "the name of a decoder",
                },
                "name": {"type": "string", "description": "the name of the graph's output to read"},
                "score_threshold": _FRACTION,
                "iou_threshold": _FRACTION,
                "max_boxes": {
                    "type": "integer",
                    "minimum": 1,
                    "description": "the most boxes kept per image, at least 1",
                },
            },
        ),
        "classes": {
            "anyOf": [
                {"type": "integer", "minimum": 1},
                {"const": "coco80"},
                {
                    "type": "array",
                    "items": {"type": "string", "minLength": 1},
                    "minItems": 1,
                    "uniqueItems": True,
                },
            ],
            "description": 'a number of classes, "coco80", or a list of distinct class names',
        },
        "metric": {"type": "string", "description": "the name of one of the task's metrics"},
    },
)
