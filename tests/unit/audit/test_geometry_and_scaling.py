"""Crops, colour order and the arithmetic of the input, by algebra and by hand."""

import numpy as np
import pytest

from modelmill.audit import channel_order, crop, scaling
from modelmill.audit.noise import Option
from modelmill.audit.pipeline import Pipeline
from modelmill.tasks.images import place, scaled

LETTERBOX = {"method": "pillow-bilinear", "mode": "letterbox"}


def applied(noise, held, subject):
    offered = [o for o in noise.PLUGIN.options(subject(held)) if isinstance(o, Option)]
    return {o.name: o.change(Pipeline(held)) for o in offered}


def test_torchvision_truncates_and_rounds_half_to_even(card):
    """As in torchvision 0.20: int(256 * 500 / 375) = 341, round((341 - 224) / 2) = round(58.5)."""
    resize = {"method": "pillow-bilinear", "mode": "shorter-side", "to": 256, "crop": "center"}
    spec = card(size=[224, 224], resize=resize).input
    found = crop.torchvision(spec, (375, 500))
    assert found.resized == (256, 341) and found.offset == (-16, -58)
    found = crop.torchvision(spec, (500, 333))
    assert found.resized == (384, 256)  # 384.38...
    assert place(spec, (500, 335)).resized == (382, 256)
    assert crop.torchvision(spec, (503, 335)).resized == (384, 256)  # 384.3


def test_the_odd_pixel_changes_sides(card):
    spec = card().input
    ours, other = place(spec, (18, 21)), crop.other_corner(spec, (18, 21))
    assert ours.offset == (-1, -2) and other.offset == (-1, -3)  # 5 columns go: 2 and 3
    spec = card(resize=LETTERBOX).input
    ours, other = place(spec, (16, 11)), crop.other_corner(spec, (16, 11))
    assert ours.offset == (0, 2) and other.offset == (0, 3)
    assert crop.at_corner(spec, (16, 11)).offset == (0, 0)


def test_modes(card, subject):
    found = applied(crop, card(), subject)
    assert found["stretch"].card.input.resize.mode == "stretch"
    assert found["no-margin"].card.input.resize.to == 16
    found = applied(crop, card(resize=LETTERBOX), subject)
    assert found["other-border"].card.input.resize.fill == 0
    assert "letterbox" not in found and found["shorter-side"].card.input.resize.crop == "center"


def test_colour_order(card, subject, smooth):
    found = applied(channel_order, card(), subject)["bgr"]
    photo = smooth(16, 16)[None]
    fed = scaled(photo, found.card.input)
    spec = card().input
    assert np.array_equal(fed, scaled(photo[..., ::-1], spec))
    along = applied(channel_order, card(), subject)["bgr-scaled"]
    right = scaled(photo, spec)
    assert np.array_equal(scaled(photo, along.card.input), right[:, ::-1])
    grey = card(color="GRAY", mean=[0.0], std=[1.0])
    (only,) = channel_order.PLUGIN.options(subject(grey))
    assert "grey" in only.why


def test_scaling_by_other_arithmetic(card, smooth):
    photo, spec = smooth(16, 16)[None], card().input
    right = scaled(photo, spec)
    assert np.abs(scaling.fused(photo, spec) - right).max() < 1e-5
    assert np.array_equal(scaling.sixteen_bits(photo, spec), right.astype(np.float16))
    mean = np.round(np.array(spec.mean) * 255)  # 124, 116, 104
    by_hand = (photo - mean) / 255 / np.array(spec.std)
    expected = by_hand.transpose(0, 3, 1, 2)
    assert np.allclose(scaling.whole_mean(photo, spec), expected, atol=1e-5)


def test_eight_bits_are_256_steps_over_all_channels(card):
    spec = card().input
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    low, high = (
        min((0 - m) / s for m, s in zip(spec.mean, spec.std, strict=True)),
        max((1 - m) / s for m, s in zip(spec.mean, spec.std, strict=True)),
    )
    step = (high - low) / 255
    found = scaling.eight_bits(levels, spec)
    assert np.abs(found - scaled(levels, spec)).max() <= 1.01 * step / 2 + step / 2
    assert len(np.unique(np.rint(found / step))) <= 256
    plain = card(mean=[0.0] * 3, std=[1.0] * 3).input
    assert np.allclose(scaling.eight_bits(levels, plain), scaled(levels, plain), atol=1e-7)


def test_layouts_mixed_up(card, smooth):
    photo = smooth(16, 16)[None]
    for layout in ("NCHW", "NHWC"):
        spec = card(layout=layout).input
        found, right = scaling.mixed_layout(photo, spec), scaled(photo, spec)
        assert found.shape == right.shape
        assert np.array_equal(np.sort(found.ravel()), np.sort(right.ravel()))
        assert not np.array_equal(found, right)


@pytest.mark.parametrize("scale, name", [(1 / 255, "shift"), (1.0, None)])
def test_shift(scale, name, card, subject):
    found = applied(scaling, card(scale=scale), subject)
    assert ("shift" in found) == (name is not None)
    if name:
        assert found["shift"].card.input.scale == 1 / 256
