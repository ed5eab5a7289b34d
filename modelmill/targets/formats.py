"""Number formats that several targets have; a format that one chip alone has is in its own file."""

from modelmill.numerics import QuantSpec

U8 = QuantSpec(8, signed=False, symmetric=False)
U16 = QuantSpec(16, signed=False, symmetric=False)
S8 = QuantSpec(8, signed=True, symmetric=False)

# Weights: one scale for each output channel, codes -128..127 or -127..127.
S8_PER_CHANNEL = QuantSpec(8, signed=True, symmetric=True, axis=0)
NARROW_PER_CHANNEL = QuantSpec(8, signed=True, symmetric=True, axis=0, narrow=True)

# Biases in steps of the accumulator: of the scale of the inputs times that of the weights.
BIAS = QuantSpec(32, signed=True, symmetric=True)
BIAS_PER_CHANNEL = QuantSpec(32, signed=True, symmetric=True, axis=0)
