"""Rewrite convolutions in the text of an MLIR module of linalg operations, so that compilers find
the fast form.

    conv_2d_nchw_fchw_q, depthwise_conv_2d_nhwc_hwc_q with zero points 0  ->  the same without _q
    depthwise_conv_2d_nchw_chw                                            ->  transposed to nhwc

IREE turns ordinary convolutions to channels last by itself; quantized ones it first writes out as
loops that subtract two zeros from each operand, and depthwise ones it leaves, whose innermost loop
then strides. Named operations: https://mlir.llvm.org/docs/Dialects/Linalg/
"""

import re

_ZERO = r"%c0_i32\w*"
_QUANTIZED = re.compile(
    r"linalg\.(conv_2d_nchw_fchw|depthwise_conv_2d_nhwc_hwc)_q (\{[^}]*\} )?"
    rf"ins\((%[\w#]+), (%[\w#]+), {_ZERO}, {_ZERO} : (tensor<\w+>), (tensor<\w+>), i32, i32\)"
)
_DEPTHWISE = re.compile(
    r"^( *)(%\w+) = linalg\.depthwise_conv_2d_nchw_chw (\{[^}]*\} )?"
    r"ins\((%[\w#]+), (%[\w#]+) : tensor<(\w+)>, tensor<(\w+)>\) "
    r"outs\((%[\w#]+) : tensor<(\w+)>\) -> tensor<\w+>$",
    re.MULTILINE,
)
TO_LAST, TO_FIRST, FILTER = (0, 2, 3, 1), (0, 3, 1, 2), (1, 2, 0)


def channels_last(module: str) -> str:
    """The module with the convolutions above rewritten; anything else is kept as it is."""
    return _DEPTHWISE.sub(_depthwise, _QUANTIZED.sub(r"linalg.\1 \2ins(\3, \4 : \5, \6)", module))


def _depthwise(match: re.Match[str]) -> str:
    indent, result, given, x, w, x_type, w_type, start, y_type = match.groups()
    stem = f"%last_{result[1:]}"
    lines = [
        *_transpose(f"{stem}_x", x, x_type, TO_LAST),
        *_transpose(f"{stem}_w", w, w_type, FILTER),
        *_transpose(f"{stem}_s", start, y_type, TO_LAST),
        f"{stem}_y = linalg.depthwise_conv_2d_nhwc_hwc {given or ''}"
        f"ins({stem}_x, {stem}_w : {_type(x_type, TO_LAST)}, {_type(w_type, FILTER)}) "
        f"outs({stem}_s : {_type(y_type, TO_LAST)}) -> {_type(y_type, TO_LAST)}",
        *_transpose(result, f"{stem}_y", _inside(_type(y_type, TO_LAST)), TO_FIRST),
    ]
    return "\n".join(indent + line for line in lines)


def _transpose(result: str, source: str, shape: str, order: tuple[int, ...]) -> tuple[str, str]:
    made = _type(shape, order)
    return (
        f"%to_{result[1:]} = tensor.empty() : {made}",
        f"{result} = linalg.transpose ins({source} : tensor<{shape}>) "
        f"outs(%to_{result[1:]} : {made}) permutation = {list(order)}",
    )


def _type(shape: str, order: tuple[int, ...]) -> str:
    """The tensor type of "1x64x32x32xf32" with its dimensions in this order."""
    *dims, element = shape.split("x")
    return f"tensor<{'x'.join([*(dims[i] for i in order), element])}>"


def _inside(kind: str) -> str:
    return kind.removeprefix("tensor<").removesuffix(">")
