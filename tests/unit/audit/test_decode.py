"""Every decoder gives what its library gives when it is called directly."""

import io

import av
import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image

from modelmill.audit.decode import LIBRARIES, PLUGIN, by_library, ffmpeg
from modelmill.audit.pipeline import Pipeline
from modelmill.tasks import DataError

OPTIONS = {name: run for name, _, _, run in LIBRARIES}


def by_hand(name: str, data: bytes) -> np.ndarray:
    if name == "opencv":
        flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags)[..., ::-1]
    if name == "opencv-half":
        flags = cv2.IMREAD_REDUCED_COLOR_2 | cv2.IMREAD_IGNORE_ORIENTATION
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags)[..., ::-1]
    if name == "pillow-draft":
        image = Image.open(io.BytesIO(data))
        image.draft("RGB", (24, 18))  # 121x90 in proportion, shorter side 18
        return np.asarray(image)
    if name.startswith("turbojpeg"):
        dct = name in ("turbojpeg-fast", "turbojpeg-fast-dct")
        up = name in ("turbojpeg-fast", "turbojpeg-fast-upsample")
        return simplejpeg.decode_jpeg(data, fastdct=dct, fastupsample=up)
    frame = next(av.open(io.BytesIO(data), format="jpeg_pipe").decode(video=0))
    kind = av.video.reformatter.Interpolation
    flags = {
        "ffmpeg": kind.BILINEAR, "ffmpeg-point": kind.POINT,
        "ffmpeg-accurate": kind.BICUBIC | kind.FULL_CHR_H_INT | kind.ACCURATE_RND,
    }[name]  # fmt: skip
    return frame.reformat(format="rgb24", interpolation=flags).to_ndarray()


@pytest.mark.parametrize("name", OPTIONS)
def test_as_the_library_itself(name, jpeg, card):
    found = OPTIONS[name](jpeg, "x", card().input)
    assert np.array_equal(found, by_hand(name, jpeg))


def test_accurate_turbojpeg_and_opencv_are_what_pillow_gives(jpeg, card):
    pillow = np.asarray(Image.open(io.BytesIO(jpeg)))
    assert np.array_equal(simplejpeg.decode_jpeg(jpeg), pillow)
    assert np.array_equal(OPTIONS["opencv"](jpeg, "x", card().input), pillow)
    assert not np.array_equal(OPTIONS["turbojpeg-fast"](jpeg, "x", card().input), pillow)


def test_a_draft_is_no_smaller_than_what_is_cropped(jpeg, card):
    assert OPTIONS["pillow-draft"](jpeg, "x", card().input).shape == (23, 31, 3)  # 1/4, not 1/8
    whole = {"method": "pillow-bilinear", "mode": "shorter-side", "to": 60, "crop": "center"}
    assert OPTIONS["pillow-draft"](jpeg, "x", card(resize=whole).input).shape == (90, 121, 3)
    assert OPTIONS["opencv-half"](jpeg, "x", card(resize=whole).input).shape == (90, 121, 3)


KINDS = ("cmyk", "grey", "progressive", "444", "one pixel", "16 bits", "gif")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OPTIONS)
def test_every_kind_of_file_is_read_as_rgb(name, kind, card, files):
    data = files[kind]
    only = not name.startswith("opencv")
    found = by_library(data, kind, card().input, OPTIONS[name], only)
    with Image.open(io.BytesIO(data)) as image:
        w, h = image.size
    assert found.dtype == np.uint8 and found.ndim == 3 and found.shape[2] == 3
    if name not in ("pillow-draft", "opencv-half"):
        assert found.shape[:2] == (h, w)


@pytest.mark.parametrize("name", [n for n in OPTIONS if not n.startswith("pillow")])
def test_a_broken_file_is_named(name, card):
    for data in (b"\xff\xd8 no picture", b"\xff\xd8"):
        with pytest.raises(DataError, match=r"^cat\.jpg: "):
            by_library(data, "cat.jpg", card().input, OPTIONS[name], False)


def test_orientation_is_obeyed_where_the_card_asks_for_it(photo, card, encoded):
    tag = Image.Exif()
    tag[274] = 6  # turn by a quarter
    data = encoded(Image.fromarray(photo), exif=tag)
    for name, run in OPTIONS.items():
        if name not in ("pillow-draft", "opencv-half"):
            assert run(data, "x", card().input).shape == (90, 121, 3), name
            assert run(data, "x", card(exif=True).input).shape == (121, 90, 3), name
    turned = ffmpeg(data, "x", card(exif=True).input, "BILINEAR")
    assert np.array_equal(np.rot90(turned), ffmpeg(data, "x", card().input, "BILINEAR"))


def test_the_flipped_card(card, subject):
    found = {o.name: o for o in PLUGIN.options(subject(card(), turned=1))}
    assert found["exif-turned"].mistake
    assert found["exif-turned"].change(Pipeline(card())).card.input.exif
