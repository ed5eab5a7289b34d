"""Convolutions and matrix products of ncnn, in float or on int8 codes, with their activation.

A node whose input and weight both have encodings becomes an int8 layer: int8 weights, one scale for
the input and one for each output channel, all stored as factors 1 / scale. Where nothing but int8
convolutions of the same size reads the result, the layer also holds the factor of its output and
writes codes (parameter 8 is 101), else it writes real numbers (1).
Source: ncnn, src/layer: convolution.cpp, convolutiondepthwise.cpp, innerproduct.cpp,
deconvolution.cpp, x86/convolution_3x3_winograd_int8.h.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from modelmill import ir
from modelmill.export.ncnn_layers import clip_bounds
from modelmill.export.ncnn_net import Blob, Dims, Parameter, raw, tagged
from modelmill.export.ncnn_scope import (
    Scope,
    check_activation,
    dims_of,
    refuse,
    scales,
    weight_codes,
)
from modelmill.export.ncnn_windows import Window, spatial
from modelmill.ir import Point
from modelmill.numerics import Encoding

RELU, LEAKY_RELU, CLIP = 1, 2, 3
READS_FLOATS, WRITES_CODES = 1, 101  # values of int8_scale_term
LARGEST_CODE = 127
NO_WINOGRAD = 1 << 6  # bit of the parameter 31, the options that a layer does without
# Winograd on int8 gives 576 times the sum, which ncnn divides by 576 in float32 and cuts:
# the first whole number that this gets wrong is 1864137 (found by trying all).
EXACT_WINOGRAD = 1864137


def conv(s: Scope, node: ir.Node) -> None:
    weight = _weight(s, node)
    window = spatial(s, node, weight.shape[2:])
    group = int(ir.attributes(node).get("group", 1))
    depthwise = "DepthWise" if group > 1 else ""
    kind = {1: f"Convolution{depthwise}1D", 2: f"Convolution{depthwise}"}.get(weight.ndim - 2)
    if kind is None:
        raise refuse(node, f"a convolution over {weight.ndim - 2} axes")
    parameters = _window_parameters(window)
    parameters |= {0: weight.shape[0], 6: weight.size}
    parameters |= {7: group} if group > 1 else {}
    encodings = s.encoding(node, 0), s.encoding(node, 1)
    if all(encodings) and weight.ndim == 4:
        _int8_conv(s, node, parameters, weight, group)
        return
    last = _fuse_activation(s, node, parameters)
    bottom = s.read(node, 0, s.in_shape(node)[1:])
    weights = [tagged(weight), *_bias(s, node, parameters, weight.shape[0])]
    s.put(last, s.layer(node, kind, [bottom], s.out_shape(node)[1:], parameters, weights))


def _int8_conv(
    s: Scope, node: ir.Node, parameters: dict[int, Parameter], weight: np.ndarray, group: int
) -> None:
    dims_in, dims_out = s.in_shape(node)[1:], s.out_shape(node)[1:]
    per_input, per_weight = s.encoding(node, 0), s.encoding(node, 1)
    assert per_input is not None and per_weight is not None
    name = node.inputs[0].name or "" if node.inputs[0] is not None else ""
    check_activation(name, per_input)
    each = _one_scale_per_group(node, per_weight, weight.shape[0], group)
    last = _fuse_activation(s, node, parameters)
    bottom = s.codes(node, 0, dims_in)
    requantized = _only_codes_are_read(s, last, dims_out)
    parameters[8] = WRITES_CODES if requantized else READS_FLOATS
    small = weight.shape[2:] == (3, 3) and group == 1  # what Winograd is for
    if small and _reach(node, weight, per_weight) >= EXACT_WINOGRAD:
        parameters[31] = NO_WINOGRAD
    weights = [
        weight_codes(node, weight, per_weight),
        *_bias(s, node, parameters, weight.shape[0]),
        raw(each),
        scales(per_input, 1),
    ]
    if requantized:
        weights.append(scales(s.encodings[Point(last.name or "")], 1))
    kind = "ConvolutionDepthWise" if group > 1 else "Convolution"
    blob = s.layer(node, kind, [bottom], dims_out, parameters, weights)
    if requantized:
        s.put_codes(last, blob)
    else:
        s.put(last, blob)


def _reach(node: ir.Node, weight: np.ndarray, encoding: Encoding) -> float:
    """The largest sum of products of codes that one output can have."""
    codes = encoding.quantize(weight).reshape(weight.shape[0], -1).astype(np.int64)
    above, below = codes.clip(min=0).sum(1), (-codes).clip(min=0).sum(1)
    sums = np.maximum(above, below) if _not_negative(node.inputs[0]) else above + below
    return float(sums.max(initial=0)) * LARGEST_CODE


def _not_negative(value: ir.Value | None) -> bool:
    """Whether the operators that made a value leave nothing below 0."""
    maker = value.producer() if value is not None else None
    while maker is not None and maker.op_type in ("Identity", "MaxPool"):
        source = maker.inputs[0]
        maker = source.producer() if source is not None else None
    return maker is not None and maker.op_type in ("Relu", "Sigmoid")


def _one_scale_per_group(
    node: ir.Node, encoding: Encoding, channels: int, group: int
) -> np.ndarray:
    """The factors that ncnn stores: one per channel, or one per group of a grouped convolution."""
    factors = np.broadcast_to(np.float32(1) / encoding.scale, (channels,))
    if encoding.spec.axis not in (None, 0):
        raise refuse(node, f"its weights have a scale along axis {encoding.spec.axis}")
    if group == 1:
        return factors
    grouped = factors.reshape(group, -1)
    if (grouped != grouped[:, :1]).any():
        raise refuse(node, "an int8 grouped convolution has one weight scale for each group")
    return grouped[:, 0]


def _only_codes_are_read(s: Scope, value: ir.Value, dims: Dims) -> bool:
    """Whether only int8 convolutions read a value, as one tensor of codes."""
    whole = s.encodings.get(Point(value.name or ""))
    uses = list(value.uses())
    if whole is None or not uses or value.is_graph_output():
        return False
    for use in uses:
        reads = s.encoding(use.node, 0), s.encoding(use.node, 1)
        weight = s.constant(use.node, 1)
        if use.node.op_type != "Conv" or use.idx != 0 or not all(reads) or reads[0] != whole:
            return False
        if weight is None or weight.ndim != 4 or s.in_shape(use.node)[1:] != dims:
            return False
    check_activation(value.name or "", whole)
    return True


def conv_transpose(s: Scope, node: ir.Node) -> None:
    attributes, weight = ir.attributes(node), _weight(s, node)
    group = int(attributes.get("group", 1))
    if weight.ndim != 4 or attributes.get("auto_pad", "NOTSET") != "NOTSET":
        raise refuse(node, "only with two spatial axes and explicit pads")
    if "output_shape" in attributes:
        raise refuse(node, "output_shape; give pads and output_padding")
    window = spatial(s, node, weight.shape[2:])
    extra = attributes.get("output_padding", (0, 0))
    c, m = weight.shape[0] // group, weight.shape[1]
    turned = weight.reshape(group, c, m, *weight.shape[2:]).transpose(0, 2, 1, 3, 4)
    parameters = _window_parameters(window)
    parameters |= {0: group * m, 6: weight.size, 18: int(extra[1]), 19: int(extra[0])}
    parameters |= {7: group} if group > 1 else {}
    last = _fuse_activation(s, node, parameters)
    bottom = s.read(node, 0, s.in_shape(node)[1:])
    weights = [tagged(np.ascontiguousarray(turned)), *_bias(s, node, parameters, group * m)]
    kind = "DeconvolutionDepthWise" if group > 1 else "Deconvolution"
    s.put(last, s.layer(node, kind, [bottom], s.out_shape(node)[1:], parameters, weights))


def gemm(s: Scope, node: ir.Node) -> None:
    """The product alpha * A B + beta * C with constant B and C."""
    attributes, b = ir.attributes(node), s.constant(node, 1)
    if b is None or attributes.get("transA", 0):
        raise refuse(node, "B must be a constant and A not transposed")
    w = b if attributes.get("transB", 0) else b.T
    alpha, beta = (np.float32(attributes.get(n, 1.0)) for n in ("alpha", "beta"))
    c, given = s.constant(node, 2), len(node.inputs) > 2 and node.inputs[2] is not None
    if given and (c is None or c.size not in (1, w.shape[0]) or c.shape[:-1].count(1) < c.ndim - 1):
        raise refuse(node, "C must be a constant with one number or one per output")
    bias = None if c is None else beta * np.broadcast_to(c.reshape(-1), (w.shape[0],))
    _inner_product(s, node, w, bias, alpha)


def matmul(s: Scope, node: ir.Node) -> None:
    b = s.constant(node, 1)
    if b is not None and b.ndim == 2:
        _inner_product(s, node, b.T, None, np.float32(1))
        return
    left, right, out = s.in_shape(node, 0), s.in_shape(node, 1), s.out_shape(node)
    if len(left) < 2 or len(right) < 2:
        raise refuse(node, "both sides must be matrices")
    batches = math.prod(out[:-2])
    sides = [_matrices(s, node, index, batches) for index in (0, 1)]
    dims = (batches, *out[-2:]) if batches > 1 else out[-2:]
    s.put(node.outputs[0], s.layer(node, "MatMul", sides, dims))


def _matrices(s: Scope, node: ir.Node, index: int, batches: int) -> Blob:
    shape = s.in_shape(node, index)
    own = math.prod(shape[:-2])
    if own != batches:
        raise refuse(node, f"its sides have {own} and {batches} matrices")
    return s.read(node, index, (own, *shape[-2:]) if batches > 1 else shape[-2:])


def _inner_product(
    s: Scope, node: ir.Node, w_OI: np.ndarray, bias: np.ndarray | None, alpha: np.float32
) -> None:
    shape = s.in_shape(node)
    rows, size = math.prod(shape[:-1]), w_OI.shape[1]
    dims = (rows, size) if rows > 1 else (size,)
    parameters: dict[int, Parameter] = {0: w_OI.shape[0], 1: int(bias is not None), 2: w_OI.size}
    per_input, per_weight = s.encoding(node, 0), s.encoding(node, 1)
    last = _fuse_activation(s, node, parameters)
    out = dims_of(node, s.out_shape(node))
    if per_input is not None and per_weight is not None and alpha == 1:
        check_activation(node.name or "", per_input)
        bottom = s.codes(node, 0, dims)
        parameters[8] = READS_FLOATS
        stored = np.ascontiguousarray(_by_row(node, w_OI, per_weight))
        weights = [tagged(stored)] + ([] if bias is None else [raw(bias)])
        weights += [scales(per_weight, w_OI.shape[0]), scales(per_input, 1)]
    else:
        bottom = s.read(node, 0, dims)
        weights = [tagged(np.ascontiguousarray(w_OI * alpha))]
        weights += [] if bias is None else [raw(bias)]
    made = s.layer(node, "InnerProduct", [bottom], (*dims[:-1], w_OI.shape[0]), parameters, weights)
    s.put(last, s.view(made, out) if math.prod(out) != math.prod(made.dims) else made)


def _by_row(node: ir.Node, w_OI: np.ndarray, encoding: Encoding) -> np.ndarray:
    """Codes of a matrix whose rows are output channels, whichever axis they had in the file."""
    spec = encoding.spec
    if not spec.signed or spec.bits > 8 or encoding.zero_point.any():
        raise refuse(node, f"its weights are int8 without zero point, the plan has {spec}")
    scale = encoding.scale.reshape(-1, 1)
    codes: np.ndarray = np.clip(np.rint(w_OI / scale), spec.qmin, spec.qmax).astype(np.int8)
    return codes


# ---------------------------------------------------------------- parts of a layer


def _weight(s: Scope, node: ir.Node) -> np.ndarray:
    weight = s.constant(node, 1)
    if weight is None:
        raise refuse(node, "its weight is computed at run time")
    return weight


def _bias(s: Scope, node: ir.Node, parameters: dict[int, Parameter], channels: int) -> list[bytes]:
    """The bias as ncnn stores it, noted in the parameters."""
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return []
    bias = s.constant(node, 2)
    if bias is None or bias.size != channels:
        raise refuse(node, "its bias is computed at run time")
    parameters[5] = 1
    return [raw(bias)]


def _window_parameters(window: Window) -> dict[int, Parameter]:
    """Kernel, dilation, stride and padding, which have the same ids in all convolutions."""
    last: dict[int, Parameter] = {
        1: window.kernel[-1],
        2: window.dilation[-1],
        3: window.stride[-1],
        4: window.before[-1],
        15: window.after[-1],
    }
    if len(window.kernel) == 1:
        return last
    first = window.kernel[0], window.dilation[0], window.stride[0]
    return (
        last
        | dict(zip((11, 12, 13), first, strict=True))
        | {
            14: window.before[0],
            16: window.after[0],
        }
    )


def _fuse_activation(s: Scope, node: ir.Node, parameters: dict[int, Parameter]) -> ir.Value:
    """Take the activation that alone reads the result into the layer; the value that it writes."""
    value = node.outputs[0]
    uses = list(value.uses())
    quantized = any(point.value == (value.name or "") for point in s.plan)
    if len(uses) != 1 or value.is_graph_output() or quantized or uses[0].idx != 0:
        return value
    after = uses[0].node
    numbers: Sequence[float] = ()
    if after.op_type == "Relu":
        kind = RELU
    elif after.op_type == "LeakyRelu":
        kind, numbers = LEAKY_RELU, [float(ir.attributes(after).get("alpha", 0.01))]
    elif after.op_type == "Clip":
        kind, numbers = CLIP, clip_bounds(s, after)
    else:
        return value
    parameters[9] = kind
    if numbers:
        parameters[10] = numbers
    s.done.add(id(after))
    return after.outputs[0]
