"""Decoding and preparing pictures, against Pillow and OpenCV called directly."""

import io
import sys

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from modelmill.tasks import Card, DataError, Input, Output, Resize, prepare
from modelmill.tasks.images import decode, place, resize
from modelmill.tasks.schema import METHODS, OPENCV_METHODS, PILLOW_METHODS

OPENCV = {
    "nearest": cv2.INTER_NEAREST,
    "linear": cv2.INTER_LINEAR,
    "area": cv2.INTER_AREA,
    "cubic": cv2.INTER_CUBIC,
    "lanczos": cv2.INTER_LANCZOS4,
}
SIZES = [(5, 9), (40, 23), (20, 30)]


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _card(resize_as: Resize | None, size=(6, 8), color="RGB", layout="NCHW") -> Card:
    channels = 1 if color == "GRAY" else 3
    spec = Input(layout, size, color, resize_as, 1.0, (0.0,) * channels, (1.0,) * channels)
    return Card("classification", spec, Output("argmax"), 3)


def _bytes(card: Card, image: np.ndarray) -> np.ndarray:
    """What the network sees with scale 1, mean 0, std 1: the bytes, (H, W, c)."""
    return prepare(card)(image).transpose(1, 2, 0)


# ------------------------------------------------------------------------------------------ decode


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "JPEG"])
def test_rgb_is_what_pillow_reads(picture, kind):
    data = _saved(Image.fromarray(picture(1)), kind)
    expected = np.asarray(Image.open(io.BytesIO(data)))
    assert np.array_equal(decode(data, "x"), expected)
    assert decode(data, "x").dtype == np.uint8


def test_jpeg_is_what_opencv_reads(picture):
    data = _saved(Image.fromarray(picture(1, (37, 51))), "JPEG")
    expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    assert np.array_equal(decode(data, "x"), expected)


def test_grey_is_repeated(picture):
    grey = picture(2)[..., 0]
    for image in (Image.fromarray(grey), Image.merge("LA", [Image.fromarray(grey)] * 2)):
        assert np.array_equal(decode(_saved(image, "PNG"), "x"), np.repeat(grey[..., None], 3, 2))


def test_one_bit_is_black_and_white(picture):
    bits = picture(2)[..., 0] > 127
    image = decode(_saved(Image.fromarray(bits), "PNG"), "x")
    assert np.array_equal(image[..., 1], np.where(bits, 255, 0))


def test_palette_is_looked_up_with_and_without_transparency(picture):
    image = Image.fromarray(picture(3)).quantize(16)
    expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(decode(_saved(image, "PNG"), "x"), expected)
    see_through = _saved(image, "PNG", transparency=bytes(range(16)))
    assert np.array_equal(decode(see_through, "x"), expected)


def test_alpha_is_dropped_not_blended(picture):
    rgb = picture(4)
    rgba = np.dstack([rgb, np.zeros(rgb.shape[:2], np.uint8)])
    assert np.array_equal(decode(_saved(Image.fromarray(rgba), "PNG"), "x"), rgb)


def test_cmyk_is_converted(picture):
    image = Image.fromarray(picture(5)).convert("CMYK")
    lossless = decode(_saved(image, "TIFF"), "x")
    assert np.array_equal(lossless, np.asarray(image.convert("RGB")))
    jpeg = _saved(
        Image.fromarray(np.full((16, 16, 3), [250, 20, 30], np.uint8)).convert("CMYK"), "JPEG"
    )
    assert np.abs(decode(jpeg, "x").astype(int) - [250, 20, 30]).max() <= 4


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_keep_the_high_byte(kind):
    grey = np.linspace(0, 65535, 48).astype(np.uint16).reshape(6, 8)
    image = decode(_saved(Image.fromarray(grey), kind), "x")
    assert np.array_equal(image, np.repeat((grey >> 8).astype(np.uint8)[..., None], 3, 2))


def test_sixteen_bits_of_both_byte_orders():
    grey = np.arange(48, dtype=np.uint16).reshape(6, 8) * 1000
    little = Image.fromarray(grey)
    big = Image.frombytes("I;16B", (8, 6), grey.astype(">u2").tobytes())
    assert np.array_equal(decode(_saved(little, "TIFF"), "x"), decode(_saved(big, "TIFF"), "x"))


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pixels_without_a_range_are_refused(dtype):
    data = _saved(Image.fromarray(np.zeros((4, 4), dtype)), "TIFF")
    with pytest.raises(DataError, match=r"scan\.tif.*no fixed range"):
        decode(data, "scan.tif")


def test_first_frame_of_an_animation(picture):
    frames = [Image.fromarray(picture(n)).quantize(64) for n in range(2)]
    data = _saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.array_equal(decode(data, "x"), np.asarray(frames[0].convert("RGB")))


def test_exif_orientation_only_if_asked(picture):
    exif = Image.Exif()
    exif[274] = 6  # stored turned a quarter counterclockwise
    data = _saved(Image.fromarray(picture(6)), "PNG", exif=exif)
    assert np.array_equal(decode(data, "x"), picture(6))
    assert np.array_equal(decode(data, "x", exif=True), np.rot90(picture(6), -1))


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (lambda data: b"", "empty"),
        (lambda data: b"not a picture", "not a picture"),
        (lambda data: data[: len(data) // 2], "broken picture"),
    ],
)
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_broken_files_are_named(picture, kind, broken, words):
    data = broken(_saved(Image.fromarray(picture(1, (64, 64))), kind))
    with pytest.raises(DataError, match=f"dog.jpg: .*{words}"):
        decode(data, "dog.jpg")


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"]),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4),
    st.floats(0, 1),
)
def test_any_damage_gives_a_picture_or_a_data_error(kind, changes, kept):
    data = bytearray(_saved(Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)), kind))
    for place_of, value in changes:
        data[int(place_of * len(data))] = value
    try:
        image = decode(bytes(data[: int(kept * len(data)) + 1]), "x")
    except DataError as error:
        assert str(error).startswith("x: ")
    else:
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3


# ------------------------------------------------------------------------------------------ resize


@pytest.mark.parametrize("to", SIZES)
@pytest.mark.parametrize("method", PILLOW_METHODS)
def test_pillow_methods(picture, method, to):
    image = picture(1, (24, 31))
    expected = Image.fromarray(image).resize(to[::-1], Image.Resampling[method.upper()])
    assert np.array_equal(resize(image, to, f"pillow-{method}"), np.asarray(expected))
    prepared = _bytes(_card(Resize(f"pillow-{method}", "stretch"), to), image)
    assert np.array_equal(prepared, np.asarray(expected))


@pytest.mark.parametrize("to", SIZES)
@pytest.mark.parametrize("method", OPENCV_METHODS)
def test_opencv_methods(picture, method, to):
    image = picture(1, (24, 31))
    bgr = np.ascontiguousarray(image[..., ::-1])
    expected = cv2.resize(bgr, to[::-1], interpolation=OPENCV[method])
    prepared = _bytes(_card(Resize(f"opencv-{method}", "stretch"), to, "BGR"), image)
    assert np.array_equal(prepared, expected)


@pytest.mark.parametrize("size", [(60, 41), (41, 60), (45, 45), (20, 97)])
def test_shorter_side_then_centre_crop(picture, size):
    image = picture(1, size)
    h, w = size
    ratio = 32 / min(h, w)
    to = (round(h * ratio), round(w * ratio))
    resized = np.asarray(Image.fromarray(image).resize(to[::-1], Image.Resampling.BILINEAR))
    top, left = (to[0] - 24) // 2, (to[1] - 28) // 2
    card = _card(Resize("pillow-bilinear", "shorter-side", 32, "center"), (24, 28))
    expected = resized[top : top + 24, left : left + 28]
    assert min(to) == 32 and np.array_equal(_bytes(card, image), expected)


def test_stretch_then_centre_crop(picture):
    image = picture(1, (30, 50))
    resized = np.asarray(Image.fromarray(image).resize((20, 16), Image.Resampling.BICUBIC))
    card = _card(Resize("pillow-bicubic", "stretch", (16, 20), "center"), (13, 14))
    assert np.array_equal(_bytes(card, image), resized[1:14, 3:17])


def test_letterbox_keeps_the_shape_and_fills_the_rest(picture):
    image = picture(1, (30, 60))
    card = _card(Resize("opencv-linear", "letterbox", fill=9), (21, 20))
    resized = cv2.resize(image, (20, 10), interpolation=cv2.INTER_LINEAR)
    out = _bytes(card, image)
    assert np.array_equal(out[5:15], resized)
    assert (out[:5] == 9).all() and (out[15:] == 9).all()


@pytest.mark.parametrize("mode", ["stretch", "shorter-side", "letterbox"])
@settings(deadline=None, max_examples=60)
@given(
    st.tuples(st.integers(1, 200), st.integers(1, 200)),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.sampled_from(METHODS),
    st.sampled_from(["RGB", "BGR", "GRAY"]),
    st.sampled_from(["NCHW", "NHWC"]),
)
def test_every_picture_becomes_the_network_size(mode, size, to, method, color, layout):
    short = mode == "shorter-side"
    how = Resize(method, mode, max(to) + 3 if short else None, "center" if short else None)
    card = _card(how, to, color, layout)
    image = np.full((*size, 3), 77, np.uint8)
    out = prepare(card).batch([image, image])
    assert out.shape == card.input.shape(2) and out.dtype == np.float32 and out.flags.c_contiguous
    flat = 77 if mode != "letterbox" else out.reshape(2, -1)
    assert (np.isin(out, [77, 114]) if mode == "letterbox" else out == flat).all()


@pytest.mark.parametrize("mode", ["stretch", "shorter-side", "letterbox"])
@settings(deadline=None, max_examples=60)
@given(
    st.tuples(st.integers(8, 300), st.integers(8, 300)),
    st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_boxes_return_to_the_picture(mode, size, corner):
    short = mode == "shorter-side"
    how = Resize("pillow-box", mode, 50 if short else None, "center" if short else None)
    placed = place(_card(how, (40, 48)).input, size)
    y, x = corner[0] * size[0], corner[1] * size[1]
    there = [
        x * placed.scale[1] + placed.offset[1],
        y * placed.scale[0] + placed.offset[0],
    ]
    back = placed.to_picture(np.array([[*there, *there]]))
    assert np.allclose(back, [[x, y, x, y]])


def test_a_mark_lands_where_place_says():
    """A white quarter of a black picture comes to lie where the placement puts its corners."""
    image = np.zeros((60, 100, 3), np.uint8)
    image[15:30, 50:75] = 255
    for how in (
        Resize("opencv-area", "stretch"),
        Resize("opencv-area", "letterbox", fill=0),
        Resize("opencv-area", "shorter-side", 30, "center"),
    ):
        card = _card(how, (24, 30))
        rows, columns = np.nonzero(_bytes(card, image)[..., 0] > 127)
        seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        box = place(card.input, (60, 100)).to_picture(np.array([seen], float))
        assert np.abs(box - [[50, 15, 75, 30]]).max() <= 3


# --------------------------------------------------------------------------------------- arithmetic


def test_formula_colour_order_and_layout(card, picture):
    image = picture(1)
    mean, std = np.array([0.1, 0.2, 0.3]), np.array([0.5, 0.6, 0.7])
    make = {"mean": mean.tolist(), "std": std.tolist(), "scale": 1 / 255}
    rgb = ((image / 255 - mean) / std).transpose(2, 0, 1)
    bgr = (image[..., ::-1] / 255 - mean) / std
    assert np.allclose(prepare(card(**make))(image), rgb, atol=1e-6)
    out = prepare(card(**make, color="BGR", layout="NHWC"))(image)
    assert out.dtype == np.float32 and np.allclose(out, bgr, atol=1e-6)


def test_grey_is_luma_of_the_named_library(card, picture):
    image = picture(1)
    make = {"color": "GRAY", "mean": [0], "std": [1], "scale": 1}
    pillow = np.asarray(Image.fromarray(image).convert("L"))
    assert np.array_equal(prepare(card(**make))(image)[0], pillow)
    how = {"method": "opencv-area", "mode": "stretch"}
    opencv = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    assert np.array_equal(prepare(card(**make, resize=how))(image)[0], opencv)
    grey = np.repeat(image[..., :1], 3, axis=2)
    assert np.array_equal(prepare(card(**make))(grey)[0], image[..., 0])


def test_batch_equals_pictures_one_by_one(card, picture):
    images = np.stack([picture(n) for n in range(5)])
    for changes in ({}, {"color": "BGR"}, {"layout": "NHWC"}):
        function = prepare(card(**changes))
        whole = function.batch(images)
        assert np.array_equal(whole, np.stack([function(image) for image in images]))
        assert np.array_equal(whole, function.batch(list(images)))


@pytest.mark.parametrize(
    "wrong",
    [np.zeros((6, 8, 3), np.float32), np.zeros((6, 8), np.uint8), np.zeros((3, 6, 8), np.uint8)],
)
def test_only_bytes_of_rgb(card, wrong):
    with pytest.raises(DataError, match="uint8 of shape"):
        prepare(card())(wrong)


def test_wrong_size_without_a_resize(card, picture):
    with pytest.raises(DataError, match=r"9x8.*6x8.*input\.resize"):
        prepare(card())(picture(1, (9, 8)))


def test_missing_opencv_gives_the_pip_line(card, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ValueError, match=r"pip install 'modelmill\[detection\]'"):
        prepare(card(resize={"method": "opencv-area", "mode": "stretch"}))
    prepare(card(resize={"method": "pillow-box", "mode": "stretch"}))
