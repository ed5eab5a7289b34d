"""Every cause on a tensor that has it, and not on one that has not; numbers by hand."""

import numpy as np
import pytest
import torch

from modelmill.numerics import Encoding, QuantSpec, choose_encoding
from modelmill.quant.diagnose import (
    Watched,
    activation_causes,
    bias_causes,
    share_16_bit,
    weight_causes,
)

U8 = QuantSpec(8, signed=False, symmetric=False)
S8 = QuantSpec(8)
ROWS = QuantSpec(8, axis=0)
RNG = np.random.default_rng(0)


def watched(x, encoding, batches=2):
    found = Watched(encoding)
    for part in np.array_split(np.asarray(x, np.float32), batches):
        found.update(torch.from_numpy(part))
    return found


def names(causes):
    return [cause.name for cause in causes]


def test_what_is_counted():
    """0..255 in steps of 1, one value beyond each end."""
    encoding = Encoding(U8, 1.0, 10)  # holds -10..245
    x = np.array([[-12.0, 0.25], [3.0, 245.0], [250.0, 3.5], [-10.0, 1.0]])
    found = watched(x, encoding)
    assert (found.elements, found.below, found.above) == (8, 1, 1)
    assert found.clipping == pytest.approx(2**2 + 5**2)
    assert found.rounding == pytest.approx(0.25**2 + 0.5**2)
    assert found.signal == pytest.approx((x**2).sum())
    assert found.db == pytest.approx(10 * np.log10((x**2).sum() / 29.3125))
    assert found.reach.tolist() == [250, 245]
    assert found.counts[[0, 10, 13, 14, 11, 255]].tolist() == [2, 1, 1, 1, 1, 2]
    assert found.effective_codes == pytest.approx(2 ** (2 * 0.25 * 2 + 4 * 0.125 * 3))


def test_a_good_tensor_has_no_cause():
    x = RNG.normal(size=(16, 8, 6, 6))
    encoding = choose_encoding(U8, x.min(), x.max())
    assert activation_causes("x", watched(x, encoding)) == []
    exact = watched(np.arange(256.0).reshape(4, 64), Encoding(U8, 1.0, 0))
    assert exact.noise == 0 and activation_causes("x", exact) == []


def test_an_outlier_channel():
    x = np.abs(RNG.uniform(0.5, 1, size=(16, 8, 6, 6)))
    x[:, 5] *= 40
    found = activation_causes("x", watched(x, choose_encoding(U8, 0, x.max())))
    assert names(found) == ["outlier channel"] and found[0].where == "x"
    assert "channel 5 reaches 40" in found[0].evidence and "40 times as far" in found[0].evidence
    assert "leaves the median channel 6 of 256 codes" in found[0].evidence


def test_channels_of_tokens_come_last():
    x = RNG.uniform(0.5, 1, size=(4, 10, 8))
    x[..., 2] *= 30
    (found,) = activation_causes("x", watched(x, choose_encoding(U8, 0, x.max())))
    assert found.name == "outlier channel" and found.evidence.startswith("channel 2 ")


def test_a_saturated_range():
    x = RNG.normal(size=(16, 8, 6, 6))
    found = activation_causes("x", watched(x, choose_encoding(U8, -1.5, 1.5)))
    assert names(found) == ["saturated range"]
    assert found[0].evidence.startswith("13 % of the values lie outside -1.49..1.51 (they reach ")
    assert (np.abs(x) > 1.5).mean() == pytest.approx(0.13, abs=0.01)


def test_symmetric_codes_of_what_is_never_negative():
    x = np.abs(RNG.normal(size=(16, 8, 6, 6)))
    found = activation_causes("x", watched(x, choose_encoding(S8, 0, x.max())))
    assert names(found) == ["one-sided range"]
    assert "128 of 256 codes are never used" in found[0].evidence
    assert "symmetric around 0" in found[0].evidence


def test_a_range_far_from_0():
    x = RNG.uniform(9, 10, size=(16, 8, 6, 6))
    found = activation_causes("x", watched(x, choose_encoding(U8, 9, 10)))
    assert names(found) == ["one-sided range"] and "widened to hold 0" in found[0].evidence


def test_a_coarse_step():
    """A few values of every channel are far out; nearly all share a few codes."""
    x = RNG.normal(size=(64, 8, 6, 6)) * 0.01
    x[0, :, 0, 0] = 1.0
    found = activation_causes("x", watched(x, choose_encoding(U8, x.min(), x.max())))
    assert names(found) == ["coarse step"]


def test_scales_per_channel():
    x = RNG.normal(size=(8, 3, 4, 4)) * np.array([1, 10, 100])[:, None, None]
    spec = QuantSpec(8, axis=1)
    top = np.abs(x).max((0, 2, 3))
    found = watched(x, choose_encoding(spec, -top, top))
    assert found.below + found.above <= 3 and activation_causes("x", found) == []


# ------------------------------------------------------------ constants


def whole(w):
    return choose_encoding(S8, w.min(), w.max())


def by_rows(w):
    top = np.abs(w).reshape(len(w), -1).max(1)
    return choose_encoding(ROWS, -top, top)


def test_good_weights():
    w = RNG.normal(size=(8, 4, 3, 3)).astype(np.float32)
    assert weight_causes("w", w, by_rows(w)) == [] == weight_causes("w", w, whole(w))
    reach = np.ones(4)
    assert weight_causes("w", w, by_rows(w), reach_I=reach) == []


def test_one_scale_for_an_outlier_among_output_channels():
    w = RNG.normal(size=(8, 4, 3, 3)).astype(np.float32)
    w[6] *= 50
    found = weight_causes("w", w, whole(w))
    assert names(found) == ["outlier channel"] and "output channel 6" in found[0].evidence
    assert weight_causes("w", w, by_rows(w)) == []


def test_a_depthwise_layer_with_one_scale():
    spread = np.array([1, 1, 1, 6, 1, 1, 2, 1])[:, None, None, None]
    w = (RNG.uniform(0.8, 1, size=(8, 1, 3, 3)) * spread).astype(np.float32)
    assert names(weight_causes("w", w, whole(w), depthwise=True)) == ["depthwise scale"]
    assert weight_causes("w", w, whole(w)) == []


def test_an_outlier_weight():
    w = (RNG.normal(size=(4, 128, 3, 3)) * 0.01).astype(np.float32)
    w[2, 7, 1, 1] = 1.0
    (found,) = weight_causes("w", w, by_rows(w))
    assert found.name == "outlier weight" and "in output channel 2 one weight of 1 " in (
        found.evidence
    )


def test_dead_channels_count_only_where_they_are_heard():
    w = RNG.normal(size=(8, 4, 3, 3)).astype(np.float32)
    w[:, 1] *= 1e-3
    reach = np.array([1, 100, 1, 1.0])  # what it is multiplied with makes up for it
    found = weight_causes("w", w, by_rows(w), reach_I=reach)
    assert names(found) == ["outlier channel", "dead channel"]
    assert "all weights of 1 of 4 input channels become 0; of channel 1 " in found[1].evidence
    assert weight_causes("w", w, by_rows(w), reach_I=np.ones(4)) == []
    w = RNG.normal(size=(8, 4)).astype(np.float32)
    w[3] *= 2e-2
    w[0] *= 6
    found = weight_causes("w", w, whole(w))
    assert "dead channel" not in names(found)  # small, but not 0
    w[3] *= 1e-3
    assert "dead channel" not in names(weight_causes("w", w, whole(w)))  # not heard


def test_small_weights_of_a_large_input():
    w = RNG.normal(size=(8, 4, 3, 3)).astype(np.float32)
    w[:, 1] /= 50
    (found,) = weight_causes("w", w, by_rows(w), reach_I=np.array([1, 50, 1, 1.0]))
    assert found.name == "outlier channel" and found.evidence.startswith("input channel 1 is 50 ")


def test_biases():
    spec = QuantSpec(32, axis=0)
    encoding = Encoding(spec, np.array([1e-3, 1e-12], np.float32), np.zeros(2, np.int32))
    assert bias_causes("b", np.array([1.0, 1e-6]), encoding, 0.01) == []
    (found,) = bias_causes("b", np.array([1.0, 0.5]), encoding, 0.01)
    assert found.name == "bias out of range" and "channel 1 is 0.5" in found.evidence
    assert "code 5e+11, but 32 bits hold 2.15e+09" in found.evidence
    # What is lost is less than what the output can tell.
    assert bias_causes("b", np.array([1.0, 0.004]), encoding, 0.01) == []
    narrow = Encoding(QuantSpec(8), np.float32(0.5), np.int32(0))
    (found,) = bias_causes("b", np.array([1.0, 2.0]), narrow, 0.1)
    assert found.name == "coarse bias" and "is 5.0 steps of the output" in found.evidence


def test_sums_of_two_products():
    x = np.array([[255, 255, 1, 1], [0, 255, 255, 255]], np.uint8)
    w = np.array([[127, 127, -128, -128], [1, 127, 127, 1]], np.int8)
    # 64770, -256 | 32640, 128 // 32385, -65280 | 32385, 32640
    assert share_16_bit(x, w) == 2 / 8
    assert share_16_bit(x, (w / 2).astype(np.int8)) == 0  # seven bits never do
    assert share_16_bit(x[:, :1], w[:, :1]) == 0
