"""Cards: reading, the words of every error, the round trip, and the comparison with a graph."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelmill.tasks import (
    Card,
    CardError,
    Input,
    Output,
    Resize,
    card_from_json,
    check_card,
    default_card_path,
    load_card,
)
from modelmill.tasks.schema import COLORS, LAYOUTS, METHODS


def test_load_gives_the_fields(tmp_path, data):
    path = tmp_path / "m.json"
    resize = {"method": "pillow-bilinear", "mode": "shorter-side", "to": 256, "crop": "center"}
    path.write_text(json.dumps(data(resize=resize, size=[224, 200], classes=1000, metric="top1")))
    card = load_card(path)
    assert card.input == Input(
        "NCHW",
        (224, 200),
        "RGB",
        Resize("pillow-bilinear", "shorter-side", 256, "center"),
        0.00392156862745098,
        (0.485, 0.456, 0.406),
        (0.229, 0.224, 0.225),
    )
    assert (card.task, card.output, card.class_count) == ("classification", Output("argmax"), 1000)
    assert card.class_names is None and card.metric == "top1"


def test_default_path_lies_beside_the_model():
    assert default_card_path("a/net.onnx") == Path("a/net.json")
    assert default_card_path("a/net.v2.onnx") == Path("a/net.v2.json")


def test_class_names(card):
    assert card(classes=["a", "b"]).class_names == ("a", "b")
    coco = card(classes="coco80")
    assert coco.class_count == 80 and coco.class_names is not None
    assert (coco.class_names[0], coco.class_names[79]) == ("person", "toothbrush")


def _stretch(**changes):
    return {"method": "opencv-area", "mode": "stretch", **changes}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"task": "clasification"}, ["task", "'clasification'", "did you mean 'classification'"]),
        ({"task": 3}, ["task: found 3"]),
        ({"output": {"decode": "argmin"}}, ["output.decode", "'argmin'", "argmax, fastestdet"]),
        ({"output": {}}, ["output.decode: missing", "decoder"]),
        ({"output": {"decode": "argmax", "score": 1}}, ["output.score: unknown key", "Allowed"]),
        ({"output": {"decode": "argmax", "iou_threshold": 45}}, ["iou_threshold: found 45"]),
        ({"output": {"decode": "argmax", "max_boxes": 0}}, ["output.max_boxes: found 0"]),
        ({"metric": "ap50"}, ["metric: found 'ap50'", "top1, top5"]),
        ({"layout": "NCWH"}, ['input.layout: found "NCWH"', "NCHW, NHWC", "did you mean"]),
        ({"color": "rgb"}, ['input.color: found "rgb"', "RGB, BGR, GRAY"]),
        ({"size": 32}, ["input.size: found 32", "[height, width]"]),
        ({"size": [32]}, ["input.size: found [32]"]),
        ({"size": [32, 0]}, ["input.size[1]: found 0", "at least 1"]),
        ({"size": [32.5, 32]}, ["input.size[0]: found 32.5"]),
        ({"scale": "1/255"}, ['input.scale: found "1/255"', "number"]),
        ({"scale": 0}, ["input.scale: found 0"]),
        ({"scale": math.nan}, ["input.scale: found nan"]),
        ({"mean": [0, 0]}, ["input.mean: found 2", "expected 3", "RGB"]),
        ({"mean": [0, 0, math.inf]}, ["input.mean", "finite"]),
        ({"mean": [0, True, 0]}, ["input.mean[1]: found true"]),
        ({"color": "GRAY"}, ["input.mean: found 3", "expected 1", "GRAY"]),
        ({"std": [1, 0, 1]}, ["input.std", "not 0"]),
        ({"exif": "yes"}, ['input.exif: found "yes"', "true"]),
        ({"classes": 0}, ["classes: found 0", "coco80"]),
        ({"classes": "coco"}, ['classes: found "coco"', "list of distinct class names"]),
        ({"classes": ["a", "a"]}, ["classes: found", "distinct"]),
        ({"resize": "stretch"}, ['input.resize: found "stretch"', "null"]),
        ({"resize": _stretch(method="area")}, ['input.resize.method: found "area"', "opencv-area"]),
        ({"resize": _stretch(method="pillow-bilnear")}, ["did you mean 'pillow-bilinear'"]),
        ({"resize": {"mode": "stretch"}}, ["input.resize.method: missing"]),
        ({"resize": _stretch(mode="strech")}, ["did you mean 'stretch'"]),
        ({"resize": _stretch(kind=1)}, ["input.resize.kind: unknown key"]),
        ({"resize": _stretch(crop="middle")}, ['input.resize.crop: found "middle"', '"center"']),
        ({"resize": _stretch(to=[9, 9])}, ["input.resize.to", "(9, 9)", "crop"]),
        ({"resize": _stretch(to=7, crop="center")}, ["input.resize.to: found 7", "smaller"]),
        ({"resize": _stretch(to="big")}, ['input.resize.to: found "big"', "shorter side"]),
        ({"resize": _stretch(fill=300)}, ["input.resize.fill: found 300", "0 to 255"]),
        ({"resize": _stretch(mode="letterbox", to=9)}, ["letterbox", "no `to`"]),
        ({"resize": _stretch(mode="letterbox", crop="center")}, ["letterbox", "no `crop`"]),
        ({"resize": _stretch(mode="shorter-side", crop="center")}, ["input.resize.to: found None"]),
        ({"resize": _stretch(mode="shorter-side", to=9)}, ["input.resize.crop: found None"]),
        (
            {"resize": _stretch(mode="shorter-side", to=7, crop="center")},
            ["input.resize.to: found 7", "at least 8"],
        ),
        ({"colour": "RGB"}, ["colour: unknown key", "Allowed keys: task"]),
        ({"clases": 4}, ["clases: unknown key", "did you mean 'classes'"]),
    ],
)
def test_errors_name_field_value_and_choices(tmp_path, data, changes, words):
    path = tmp_path / "net.json"
    path.write_text(json.dumps(data(**changes)))
    with pytest.raises(CardError) as caught:
        load_card(path)
    for word in [*words, "net.json"]:
        assert word in str(caught.value)


def test_several_faults_are_told_at_once(data):
    with pytest.raises(CardError, match=r"input\.color.*input\.layout"):
        card_from_json(data(layout="CHW", color="RBG"))


@pytest.mark.parametrize("wrong", [None, 3, [], "card"])
def test_a_card_is_an_object(wrong):
    with pytest.raises(CardError, match="the whole card: found"):
        card_from_json(wrong)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"task": ', "not JSON.*line 1"),
        (b"", "not JSON"),
        (b"\x08\x07\x12\xff\xfe\x00", "not text"),
        (b"[" * 100_000, "nested too deep"),
    ],
)
def test_unreadable_cards(tmp_path, content, words):
    path = tmp_path / "net.json"
    path.write_bytes(content)
    with pytest.raises(CardError, match=f"net.json .*{words}"):
        load_card(path)


def test_missing_card_says_what_a_card_is(tmp_path):
    with pytest.raises(CardError, match=r"net\.json does not exist.*--card"):
        load_card(tmp_path / "net.json")
    with pytest.raises(CardError, match="cannot be read"):
        load_card(tmp_path)


_finite = st.floats(-1e3, 1e3)


@st.composite
def _cards(draw):
    color = draw(st.sampled_from(COLORS))
    channels = 1 if color == "GRAY" else 3
    size = draw(st.tuples(st.integers(1, 50), st.integers(1, 50)))
    method = draw(st.sampled_from(METHODS))
    resize = draw(
        st.sampled_from(
            [
                None,
                Resize(method, "stretch"),
                Resize(method, "stretch", (60, 70), "center"),
                Resize(method, "shorter-side", 64, "center"),
                Resize(method, "letterbox", None, None, 7),
            ]
        )
    )
    std = st.floats(0.1, 10)
    spec = Input(
        draw(st.sampled_from(LAYOUTS)),
        size,
        color,
        resize,
        draw(st.floats(0.001, 2)),
        tuple(draw(_finite) for _ in range(channels)),
        tuple(draw(std) for _ in range(channels)),
        draw(st.booleans()),
    )
    return Card(
        "classification",
        spec,
        Output("argmax", draw(st.sampled_from([None, "logits"]))),
        draw(st.sampled_from([1, 12, "coco80", ("a", "b")])),
        draw(st.sampled_from([None, "top5"])),
    )


@settings(deadline=None, max_examples=50)
@given(_cards())
def test_json_round_trip(card):
    assert card_from_json(json.loads(json.dumps(card.to_json()))) == card


def test_check_accepts_fixed_and_free_dimensions(card):
    check_card(card(), (1, 3, 6, 8), {"y": (1, 3)})
    check_card(card(), ("batch", 3, None, "w"), {"y": ("batch", 3)})
    check_card(card(), (None, 3, 6, 8), {"y": (None, None)})
    check_card(card(layout="NHWC"), (4, 6, 8, 3), {"y": (4, 3, 1, 1)})
    named = card(output={"decode": "argmax", "name": "y"})
    check_card(named, (1, 3, 6, 8), {"z": (1, None), "y": (1, 3)})


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((1, 3, 32, 32), r"input\.size.*\[6, 8\].*\[32, 32\]"),
        ((1, 3, 8, 6), r"input\.size.*\[6, 8\].*\[8, 6\]"),
        ((1, 6, 8, 3), r"input\.layout.*NHWC"),
        ((1, 1, 6, 8), r"input\.color: RGB has 3.*has 1"),
        ((1, 3), "four dimensions.*1, 3"),
    ],
)
def test_check_names_what_contradicts_the_input(card, shape, words):
    with pytest.raises(CardError, match=words):
        check_card(card(), shape, {"y": (1, 3)})


@pytest.mark.parametrize(
    ("output", "outputs", "words"),
    [
        ({"decode": "argmax"}, {"y": (1, 10)}, r"classes = 3.*\(1, 10\)"),
        ({"decode": "argmax"}, {"y": (1, 3), "z": (1, 3)}, "2 outputs.*output.name.*y, z"),
        ({"decode": "argmax", "name": "w"}, {"y": (1, 3)}, "no output 'w'.*y"),
        ({"decode": "argmax"}, {"y": (2, 3)}, "2 predictions for a batch of 1"),
        ({"decode": "fastestdet"}, {"y": (1, 8, 2, 2)}, "gives Boxes.*Ranking"),
    ],
)
def test_check_names_what_contradicts_the_output(card, output, outputs, words):
    with pytest.raises(CardError, match=words):
        check_card(card(output=output), (1, 3, 6, 8), outputs)


def test_check_applies_the_schema_to_cards_made_in_python(card):
    made = card(resize=_stretch())
    wrong = dataclasses.replace(made.input, resize=Resize("opencv-magic", "stretch"))
    with pytest.raises(CardError, match="opencv-magic"):
        check_card(dataclasses.replace(made, input=wrong), (1, 3, 6, 8), {"y": (1, 3)})
