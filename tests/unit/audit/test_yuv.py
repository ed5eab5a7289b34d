"""NV12 by formula, against OpenCV's and FFmpeg's own conversions and the published integers."""

import av
import cv2
import numpy as np
import pytest

from modelmill.audit.colour import ffmpeg, formula, opencv
from modelmill.audit.yuv import Standard, from_nv12, to_nv12

BT601 = Standard("bt601")


def buffer(y: np.ndarray, chroma: np.ndarray) -> np.ndarray:
    """The bytes as a camera hands them over: Y rows, then interleaved Cb, Cr rows."""
    return np.concatenate([y, chroma.reshape(chroma.shape[0], -1)])


def test_the_way_back_is_opencvs(smooth):
    y, chroma = to_nv12(smooth(64, 96), BT601)
    expected = cv2.cvtColor(buffer(y, chroma), cv2.COLOR_YUV2RGB_NV12)
    found = from_nv12(y, chroma, BT601)
    assert np.abs(found.astype(int) - expected).max() <= 1  # OpenCV's is fixed point
    whole = from_nv12(y, chroma, Standard("bt601", integer=True))
    assert np.abs(whole.astype(int) - expected).max() <= 2


def test_the_round_trip_is_opencvs_where_colour_is_constant_in_each_square(smooth):
    """OpenCV takes the colour of one pixel of four, we the mean: equal where the four are."""
    rgb = smooth(32, 48).repeat(2, axis=0).repeat(2, axis=1)
    found = formula(rgb, BT601, BT601)
    assert np.abs(found.astype(int) - opencv(rgb)).max() <= 2


@pytest.mark.parametrize("matrix", ["bt601", "bt709"])
def test_luma_is_ffmpegs(matrix, smooth):
    rgb = smooth(64, 96)
    space = {"bt601": av.video.reformatter.Colorspace.ITU601,
             "bt709": av.video.reformatter.Colorspace.ITU709}[matrix]  # fmt: skip
    frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
    kept = frame.reformat(format="nv12", dst_colorspace=space, dst_color_range=1, src_color_range=2)
    expected = kept.to_ndarray()[:64]
    y, _ = to_nv12(rgb, Standard(matrix))
    assert np.abs(y.astype(int) - expected).max() <= 1


def test_integers_are_those_of_the_published_formula():
    """Microsoft, "Recommended 8-bit YUV formats": 66 129 25, and 298 409 -100 -208 516."""
    there = np.rint(256 * BT601.forward).astype(int)
    assert there.tolist() == [[66, 129, 25], [-38, -74, 112], [112, -94, -18]]
    back = np.rint(256 * np.linalg.inv(BT601.forward)).astype(int)
    assert back.tolist() == [[298, 0, 409], [298, -100, -208], [298, 516, 0]]


@pytest.mark.parametrize("matrix", ["bt601", "bt709"])
def test_grey_comes_back_as_it_was_in_full_range(matrix):
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    full = Standard(matrix, full=True)
    assert np.array_equal(formula(grey, full, full), grey)
    limited = Standard(matrix)
    assert np.abs(formula(grey, limited, limited).astype(int) - grey).max() <= 1


def test_black_and_white():
    ends = np.array([[[0] * 3, [255] * 3]], np.uint8)
    for standard, levels in ((BT601, [16, 235]), (Standard("bt601", full=True), [0, 255])):
        y, chroma = to_nv12(ends, standard)
        assert y.ravel().tolist() == levels and set(chroma.ravel()) == {128}


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 4), (33, 47)])
def test_odd_sizes(shape, smooth):
    rgb = smooth(*shape)
    for run in (lambda x: formula(x, BT601, BT601), opencv, lambda x: ffmpeg(x, "bt601", False)):
        assert run(rgb).shape == rgb.shape


def test_a_wrong_matrix_and_swapped_colours_are_seen(smooth):
    rgb = smooth(64, 96)
    right = formula(rgb, BT601, BT601).astype(int)
    assert np.abs(formula(rgb, BT601, Standard("bt709")).astype(int) - right).mean() > 1
    assert np.abs(formula(rgb, BT601, BT601, swapped=True).astype(int) - right).mean() > 10
