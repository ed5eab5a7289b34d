"""`QuantSpec`: how a tensor may be quantized, without the numbers.

A real number x is held as an integer code q with x ~ scale * (q - zero_point), q in [qmin, qmax]
(ONNX QuantizeLinear). A spec fixes the code range and whether scale and zero point are per tensor
or per channel.

A logarithmic code is a byte in sign and magnitude: its highest bit says negative, the other seven
are m in x = +-scale * 2^(m / 16). Byte 128, a negative m = 0, is the real number 0, which makes it
the zero point (HiSilicon NNIE, as MQBench's documentation of that hardware describes it).
"""

import re
from dataclasses import dataclass

import numpy as np

STEPS_PER_OCTAVE = 16  # of a logarithmic code


@dataclass(frozen=True)
class QuantSpec:
    """How a tensor may be quantized.

    bits: width of the codes, 2..16, or 32 for a bias. A 7-bit code is stored in an 8-bit type.
    signed: codes in [-2^(bits-1), 2^(bits-1)-1], else in [0, 2^bits - 1].
    symmetric: the zero point is fixed, at 0 for signed codes and at 2^(bits-1) for unsigned ones.
    axis: None for one scale per tensor, else the axis that has a scale per index.
    narrow: leave out the lowest code, so that a signed range is symmetric around 0.
    power_of_two: the scale is 2^k, k an integer: chips that shift instead of multiplying.
    logarithmic: codes are exponents, not multiples; see above. 8 bits, unsigned, symmetric.

    Invariants: qmin <= zero_point <= qmax for every encoding of this spec; symmetric specs have one
    possible zero point.
    """

    bits: int = 8
    signed: bool = True
    symmetric: bool = True
    axis: int | None = None
    narrow: bool = False
    power_of_two: bool = False
    logarithmic: bool = False

    def __post_init__(self) -> None:
        if not (2 <= self.bits <= 16 or self.bits == 32):
            raise ValueError(f"QuantSpec: bits must be 2..16, or 32 for a bias, not {self.bits}")
        unlike = (self.bits, self.signed, self.symmetric) != (8, False, True)
        other = self.axis is not None or self.narrow or self.power_of_two
        if self.logarithmic and (unlike or other):
            raise ValueError(
                "QuantSpec: logarithmic codes are 8 bits, unsigned, symmetric and per tensor, "
                "neither narrow nor power_of_two"
            )

    @property
    def qmin(self) -> int:
        low = -(2 ** (self.bits - 1)) if self.signed else 0
        return low + 1 if self.narrow else low

    @property
    def qmax(self) -> int:
        return int(2 ** (self.bits - 1) - 1 if self.signed else 2**self.bits - 1)

    @property
    def fixed_zero_point(self) -> int | None:
        """The only zero point a symmetric spec allows; None when it is free."""
        if not self.symmetric:
            return None
        return 0 if self.signed else 2 ** (self.bits - 1)

    @property
    def storage(self) -> np.dtype[np.integer]:
        """The narrowest numpy integer type that holds the codes."""
        width = 8 if self.bits <= 8 else 16 if self.bits <= 16 else 32
        return np.dtype(f"{'' if self.signed else 'u'}int{width}")

    def __str__(self) -> str:
        kind = ("int" if self.signed else "uint") + str(self.bits)
        parts = [kind, "symmetric" if self.symmetric else "asymmetric"]
        parts.append("per tensor" if self.axis is None else f"per channel (axis {self.axis})")
        if self.logarithmic:
            parts[0] = "log8"
        parts += [word for word, holds in self._remarks() if holds]
        return " ".join(parts)

    def _remarks(self) -> tuple[tuple[str, bool], ...]:
        return ("narrow", self.narrow), ("power of two", self.power_of_two)


def parse_precision(text: str) -> tuple[int, int]:
    """`"w8a8"` -> (8, 8): bits of the weights, bits of the activations.

    Raises:
        ValueError: not of the form wXaY.
    """
    match = re.fullmatch(r"w(\d+)a(\d+)", text)
    if match is None:
        raise ValueError(f"precision {text!r} is not of the form wXaY, for example w8a8")
    return int(match[1]), int(match[2])
