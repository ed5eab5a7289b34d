"""Why a tensor loses what it loses: the causes that have a name, each with its evidence in numbers.

Everything here reads the real numbers of one tensor and the encoding it got:

    outlier channel    one scale for all channels, and one channel reaches OUTLIER times as far as
                       the median one, which is then left with few codes
    depthwise scale    the same in the weights of a depthwise convolution, whose channels never mix
    saturated range    values beyond the range lose more than rounding does
    one-sided range    the range must hold 0, or codes of both signs, and the values do not need it
    coarse step        the values fall on few codes although the range fits them
    dead channel       all weights of a channel become 0, though what they pass on is not small
    bias               a code that the bias's type cannot hold, or a step too coarse for the output
    16-bit sums        pairs of products u8 x s8 that leave 16 bits, on CPUs whose kernels add such
                       pairs (vpmaddubsw), see `targets.IsaGuard`

The noise of a tensor is split where it arises: x beyond the range is clipped, the rest is rounded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from modelmill.numerics import Encoding
from modelmill.quant.observe import decibels

OUTLIER = 8.0  # times the median channel: that leaves it 32 of 256 codes
WIDE = 24.0  # largest weight of a row in units of the row's root mean square
CLIPPING = 0.6  # share of a tensor's noise from which clipping is what is wrong with it
UNUSED = 0.4  # share of the codes that no value may ever take
FEW_CODES = 16.0  # effective number of codes, 2 to the entropy of their use
INT16 = 2**15 - 1
HEARD = 0.01  # of the strongest channel: what passes on less is not missed
POSITIONS = 64  # of an output map on which 16-bit sums are counted


@dataclass(frozen=True)
class Cause:
    """name: one of the above. where: the tensor. evidence: in numbers."""

    name: str
    where: str
    evidence: str


class Watched:
    """One activation in the making: range per channel, use of its codes, where noise arises."""

    def __init__(self, encoding: Encoding) -> None:
        self.encoding = encoding
        spec = encoding.spec
        self.counts = np.zeros(spec.qmax - spec.qmin + 1)
        self.low_C, self.high_C = np.zeros(0), np.zeros(0)
        self.elements = self.below = self.above = 0
        self.signal = self.rounding = self.clipping = 0.0

    def update(self, x: torch.Tensor) -> None:
        """Take in the float values of one batch, (N, C, ...) or any shape."""
        array = x.detach().cpu().numpy()
        rows = _channels(array)
        low, high = rows.min(axis=-1, initial=np.inf), rows.max(axis=-1, initial=-np.inf)
        first = not self.low_C.size
        self.low_C = low if first else np.minimum(self.low_C, low)
        self.high_C = high if first else np.maximum(self.high_C, high)
        codes = self.encoding.quantize(array)
        spec = self.encoding.spec
        self.counts += np.bincount(
            codes.astype(np.int64).ravel() - spec.qmin, minlength=len(self.counts)
        )
        noise = np.square(self.encoding.dequantize(codes).astype(np.float64) - array)
        spread = [-1 if d == spec.axis else 1 for d in range(array.ndim)]
        below = array < self.encoding.low.reshape(spread if spec.axis is not None else ())
        above = array > self.encoding.high.reshape(spread if spec.axis is not None else ())
        self.elements += array.size
        self.below += int(below.sum())
        self.above += int(above.sum())
        clipped = float(noise[below | above].sum())
        self.clipping += clipped
        self.rounding += float(noise.sum()) - clipped
        self.signal += float(np.square(array.astype(np.float64)).sum())

    @property
    def noise(self) -> float:
        return self.rounding + self.clipping

    @property
    def reach(self) -> np.ndarray:
        """Largest magnitude of each channel."""
        reach: np.ndarray = np.maximum(np.abs(self.low_C), np.abs(self.high_C))
        return reach

    @property
    def db(self) -> float:
        """SQNR of the tensor itself, in dB."""
        return decibels(self.signal, self.noise)

    @property
    def effective_codes(self) -> float:
        """2 to the entropy of the codes: as many equally used codes would say as much."""
        p = self.counts[self.counts > 0] / max(self.elements, 1)
        return float(2 ** -(p * np.log2(p)).sum()) if p.size else 0.0


def activation_causes(name: str, watched: Watched) -> list[Cause]:
    """What is wrong with an activation, the gravest first; none where rounding is all there is."""
    encoding = watched.encoding
    if not watched.elements or watched.noise == 0:
        return []
    found = []
    if encoding.spec.axis is None:  # first, as what it makes others clip follows from it
        found += _outlier(name, watched.reach, encoding, "channel")
    if watched.clipping > CLIPPING * watched.noise:
        found.append(Cause("saturated range", name, _clipped(watched)))
    found += _one_sided(name, float(watched.low_C.min()), float(watched.high_C.max()), encoding)
    few = watched.effective_codes
    if not found and few < min(FEW_CODES, encoding.spec.qmax - encoding.spec.qmin):
        rms = math.sqrt(watched.signal / watched.elements)
        evidence = (
            f"its values use as much as {few:.1f} of {len(watched.counts)} codes: their root mean "
            f"square is {rms:.3g}, one step {float(encoding.scale.max()):.3g}"
        )
        found.append(Cause("coarse step", name, evidence))
    return found


def _clipped(w: Watched) -> str:
    low, high = float(w.encoding.low.min()), float(w.encoding.high.max())
    return (
        f"{_share(w.below + w.above, w.elements)} of the values lie outside {low:.3g}..{high:.3g} "
        f"(they reach {w.low_C.min():.3g}..{w.high_C.max():.3g}) and make "
        f"{100 * w.clipping / w.noise:.0f} % of the tensor's noise"
    )


def _outlier(name: str, reach: np.ndarray, encoding: Encoding, what: str) -> list[Cause]:
    """One channel that stretches the range of all."""
    alive = reach[reach > 0]
    if len(alive) < 2:
        return []
    middle, top = float(np.median(alive)), int(np.argmax(reach))
    if reach[top] < OUTLIER * middle or middle == 0:
        return []
    held = float(encoding.high - encoding.low)
    codes = (encoding.spec.qmax - encoding.spec.qmin) * middle / held if held > 0 else 0.0
    evidence = (
        f"{what} {top} reaches {reach[top]:.3g}, the median {what} {middle:.3g}: "
        f"{reach[top] / middle:.0f} times as far, which leaves the median {what} "
        f"{max(codes, 1):.0f} of {encoding.spec.qmax - encoding.spec.qmin + 1} codes"
    )
    return [Cause("outlier channel", name, evidence)]


def _one_sided(name: str, low: float, high: float, encoding: Encoding) -> list[Cause]:
    spec, codes = encoding.spec, encoding.spec.qmax - encoding.spec.qmin
    if spec.axis is not None or spec.logarithmic:
        return []
    held_low, held_high = float(encoding.low), float(encoding.high)
    if not held_high > held_low:
        return []
    used = max(min(high, held_high) - max(low, held_low), 0.0) / (held_high - held_low)
    if low <= 0 <= high and spec.symmetric:
        side = min(-low, high) / max(-low, high, 1e-30)
        one_sided = side < 1 - 2 * UNUSED
    else:
        one_sided = low > 0 or high < 0
    if not one_sided or 1 - used < UNUSED:
        return []
    why = (
        "its codes are symmetric around 0"
        if spec.symmetric
        else "the range is widened to hold 0, which must have a code"
    )
    evidence = (
        f"values lie in {low:.3g}..{high:.3g}, the codes cover {held_low:.3g}..{held_high:.3g}, as "
        f"{why}: {(1 - used) * codes:.0f} of {codes + 1} codes are never used"
    )
    return [Cause("one-sided range", name, evidence)]


def weight_causes(
    name: str,
    weight_OI: np.ndarray,
    encoding: Encoding,
    depthwise: bool = False,
    reach_I: np.ndarray | None = None,
) -> list[Cause]:
    """What is wrong with a weight.

    Args:
        name: of the tensor.
        weight_OI: float, before quantization, output channels first, then input channels.
        encoding: that it got, per tensor or along axis 0.
        depthwise: whether channels never mix.
        reach_I: largest magnitude of what each input channel is multiplied with, where known.
    """
    rows = weight_OI.reshape(len(weight_OI), -1).astype(np.float64)
    reach = np.abs(rows).max(axis=1)
    found: list[Cause] = []
    if encoding.spec.axis is None:
        found += _outlier(name, reach, encoding, "output channel")
        if depthwise and not found:
            found += _depthwise(name, reach, encoding)
    else:
        found += _wide_row(name, rows, reach)
    if reach_I is not None:
        found += _magnified(name, weight_OI, encoding, reach_I)
    return found + _vanished(name, weight_OI, encoding, reach_I)


def _depthwise(name: str, reach: np.ndarray, encoding: Encoding) -> list[Cause]:
    alive = reach[reach > 0]
    if len(alive) < 2 or alive.max() < OUTLIER / 2 * np.median(alive):
        return []
    steps = float(np.median(alive)) / float(encoding.scale)
    evidence = (
        f"a depthwise layer with one scale: its channels reach {alive.min():.3g}..{alive.max():.3g}"
        f", the median {np.median(alive):.3g}, that is {steps:.0f} steps"
    )
    return [Cause("depthwise scale", name, evidence)]


def _wide_row(name: str, rows: np.ndarray, reach: np.ndarray) -> list[Cause]:
    rms = np.sqrt(np.square(rows).mean(axis=1))
    ratio = np.divide(reach, rms, out=np.zeros_like(reach), where=rms > 0)
    worst = int(np.argmax(ratio))
    if rows.shape[1] < 2 or ratio[worst] < WIDE:
        return []
    evidence = (
        f"in output channel {worst} one weight of {reach[worst]:.3g} is {ratio[worst]:.0f} times "
        f"the root mean square of the channel, {rms[worst]:.3g}"
    )
    return [Cause("outlier weight", name, evidence)]


def _magnified(
    name: str, weight_OI: np.ndarray, encoding: Encoding, reach_I: np.ndarray
) -> list[Cause]:
    """Small weights that an outlier of the input multiplies, and their rounding with them."""
    alive = reach_I[reach_I > 0]
    middle, top = float(np.median(alive)) if len(alive) else 0.0, int(np.argmax(reach_I))
    if len(alive) < 2 or reach_I[top] < OUTLIER * middle:
        return []
    noise = np.square(encoding.fake(weight_OI).astype(np.float64) - weight_OI)
    noise_I = np.moveaxis(noise, 1, 0).reshape(len(reach_I), -1).sum(1) * np.square(reach_I)
    if noise_I[top] < noise_I.sum() / 2:
        return []
    steps = float(np.abs(weight_OI[:, top]).max() / encoding.scale.max())
    evidence = (
        f"input channel {top} is {reach_I[top] / middle:.0f} times as large as the median one, so "
        f"its weights, of at most {steps:.1f} steps, make {100 * noise_I[top] / noise_I.sum():.0f} "
        "% of what rounding the weights costs"
    )
    return [Cause("outlier channel", name, evidence)]


def _vanished(
    name: str, weight_OI: np.ndarray, encoding: Encoding, reach_I: np.ndarray | None
) -> list[Cause]:
    """Output or input channels whose weights all become 0, of those that were heard."""
    real = encoding.dequantize(encoding.quantize(weight_OI))
    found = []
    for axis, what in ((0, "output"), (1, "input")):
        if weight_OI.ndim < 2 or weight_OI.shape[axis] < 2:
            continue
        rest = tuple(d for d in range(weight_OI.ndim) if d != axis)
        largest = np.abs(weight_OI).max(axis=rest)
        passed = largest * reach_I if axis == 1 and reach_I is not None else largest
        heard = passed > HEARD * passed.max()
        gone = (np.abs(real).max(axis=rest) == 0) & heard
        if gone.any():
            first = int(np.argmax(gone))
            evidence = (
                f"all weights of {int(gone.sum())} of {len(gone)} {what} channels become 0; of "
                f"channel {first} the largest is {largest[first]:.3g}, half a step "
                f"{float(encoding.scale.max()) / 2:.3g}"
            )
            found.append(Cause("dead channel", name, evidence))
    return found


def bias_causes(name: str, bias: np.ndarray, encoding: Encoding, output: float) -> list[Cause]:
    """What is wrong with a bias. `output`: one step of what the layer writes, 0 for floats."""
    scale = np.broadcast_to(encoding.scale, bias.shape).astype(np.float64)
    wanted = np.abs(bias.astype(np.float64))
    lost = wanted - (encoding.spec.qmax + 0.5) * scale
    worst = int(np.argmax(lost))
    if lost[worst] > (output / 2 or HEARD * wanted.max()):
        evidence = (
            f"the bias of channel {worst} is {bias[worst]:.3g} in steps of {scale[worst]:.3g}: "
            f"code {wanted[worst] / scale[worst]:.3g}, but {encoding.spec.bits} bits hold "
            f"{encoding.spec.qmax:.3g}"
        )
        return [Cause("bias out of range", name, evidence)]
    step = float(scale.max())
    if output and step > output:
        evidence = f"one step of the bias, {step:.3g}, is {step / output:.1f} steps of the output"
        return [Cause("coarse bias", name, evidence)]
    return []


def share_16_bit(x_NK: np.ndarray, w_OK: np.ndarray) -> float:
    """Share of the pair sums x[2k] w[2k] + x[2k+1] w[2k+1] that leave 16 bits.

    Args:
        x_NK: codes as they are stored, unsigned, one row for each position of the output.
        w_OK: codes of the weights, signed, in the same order.
    """
    k = x_NK.shape[1] // 2 * 2
    if not k or not len(x_NK):
        return 0.0
    x, w = x_NK[:, :k].astype(np.int32), w_OK[:, :k].astype(np.int32)
    beyond = 0
    for row in w:  # one output channel at a time bounds the memory
        sums = x[:, 0::2] * row[0::2] + x[:, 1::2] * row[1::2]
        beyond += int(((sums > INT16) | (sums < -INT16 - 1)).sum())
    return beyond / float(len(x) * len(w) * (k // 2))


def _channels(array: np.ndarray) -> np.ndarray:
    """One row per channel: the second axis, or the last of three (pictures, places, channels)."""
    if array.ndim < 2:
        return array.reshape(1, -1)
    axis = 2 if array.ndim == 3 else 1
    return np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)


def _share(part: int, whole: int) -> str:
    share = part / max(whole, 1)
    return f"{100 * share:.2g} %" if share >= 1e-4 else f"1 in {whole / max(part, 1):,.0f}"
