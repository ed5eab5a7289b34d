"""`Arithmetic`: how an engine computes on codes, as far as engines differ; the executor's integer
mode follows it.

Everything here is between integer accumulation, which is exact everywhere unless 16-bit sums
saturate, and the output code. The names say what is rounded when; the executor states the formula
of each choice.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Arithmetic:
    """One engine's arithmetic on codes.

    requantize: how a convolution's int32 accumulator becomes an output code.
        "multiply": one float32 multiplier s_x * s_w / s_y per channel (int32 bias inside the
        accumulator).
        "range": to float32 by s_x * s_w, float bias, then as quantize "range".
        "dequantize": to float32 by s_x * s_w, float bias, activation, then quantized as any float.
        "float": no accumulator of integers, the float operator on dequantized numbers.
        "scale_by_scale": times s_x, then times s_w, plus a float bias, times the float32 1 / s_y,
        plus z; rounded last, as oneDNN does.
        "factors": to float32 by the reciprocal of 1/s_x * 1/s_w, float bias (in a convolution one
        fused multiply-add), activation, then quantized as any float.
        "shift": all scales are powers of two: moved right by n bits, half rounded up.
        "unsigned": one float32 multiplier s_w * (s_x / s_y) on a sum over unsigned codes; bias and
        zero points are added in float32, before it as whole steps where the layer is depthwise;
        half away from zero.
        "double_rounding": the float64 factor s_x s_w / s_y as a number of 31 bits and a shift, each
        rounded, in integers; a matrix product is rounded once.
    add: integer addition of two tensors.
        "fma": two fused multiply-adds on float32 scale ratios around one folded constant.
        "reciprocal": both to float32, added, times the float32 1 / s_y, half away from zero;
        subtraction too.
        "fixed_point": multipliers of 21 bits, one shift, half rounded up; subtraction too.
        "double_rounding": codes moved left by 20 bits, factors as in requantize; subtraction too.
        "in_steps": in steps of the side whose codes are added as they are, then as quantize
        "range" with its range in those steps; the other side may be float.
        "dequantize": both to float32, added, quantized.
    multiply: integer product of two tensors.
        "ratio": one float32 factor s_1 * s_2 / s_y on the product of the codes, plus z, rounded.
        "ratio_alone": the same, rounded before z is added.
        "reciprocal": as in add.
        "double_rounding": the factor as in requantize.
        "dequantize": both to float32, multiplied, quantized.
    leaky_relu: "fixed_point" multiplies codes by a number with 8 bits behind the point, half
        rounded up; "double_rounding" by factors as in requantize; "dequantize" leaves it to the
        float operator.
    average_pool: "sequential" sums dequantized float32 values window element by element;
        "ratio" sums codes exactly, then one float32 factor s_x / (s_y * count);
        "floor" keeps the scale: the sum of the unsigned codes times 2^24 / count, cut to an
        integer, then 24 bits are dropped; "away" keeps the scale: the sum of the codes with their
        zero point / count, as integers, half away from zero; "dequantize" leaves the order to the
        float operator.
    global_average_pool: "ratio" sums codes exactly, then one float32 factor s_x / (s_y * count);
        "floor" as average_pool; "bias" sums codes with their zero point, times k = (s_x / s_y) *
        (1 / count), plus the float32 z_y - z_x count k; "double_rounding": the factor as in
        requantize, divided by count; "dequantize" leaves it to the float operator.
    quantize: how a float becomes a code.
        "divide": round(x / s) + z, as ONNX says.
        "range": round(x * k - low * k), k = n / (high - low), n = levels - 1, of the range of the
        codes, all in float32, as OpenVINO's FakeQuantize is computed; in the kernel of a product
        with one rounding less. Near a tie it differs from "divide" by one code.
        "half_up": floor(x / s + 1/2) + z.
        "away": x times the float32 1 / s, plus z, clamped, half rounded away from zero.
        "reciprocal": round(x times the float32 1 / s) + z.
        "divide_away": x / s, half away from zero, plus z.
    float_products: the order in which a layer that stays in float sums its products.
        "in_turn": fused multiply-adds for each row of taps, tap and input channel in turn.
        "from_bias": the same beginning with the bias, depthwise for each column of taps.
        "any": as the executor's own float operator does.
    """

    requantize: Literal[
        "multiply",
        "range",
        "dequantize",
        "factors",
        "shift",
        "unsigned",
        "double_rounding",
        "float",
        "scale_by_scale",
    ] = "dequantize"
    add: Literal[
        "fma", "reciprocal", "fixed_point", "double_rounding", "in_steps", "dequantize"
    ] = "dequantize"
    multiply: Literal["ratio", "ratio_alone", "reciprocal", "double_rounding", "dequantize"] = (
        "dequantize"
    )
    leaky_relu: Literal["fixed_point", "double_rounding", "dequantize"] = "dequantize"
    average_pool: Literal["sequential", "ratio", "floor", "away", "dequantize"] = "dequantize"
    global_average_pool: Literal["ratio", "floor", "bias", "double_rounding", "dequantize"] = (
        "dequantize"
    )
    quantize: Literal["divide", "range", "half_up", "away", "reciprocal", "divide_away"] = "divide"
    float_products: Literal["in_turn", "from_bias", "any"] = "any"
