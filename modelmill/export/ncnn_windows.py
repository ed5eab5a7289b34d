"""Operators of ncnn that move a window over an image: pools and resizing, and the window itself."""

from __future__ import annotations

import math
from collections.abc import Sequence

from modelmill import ir
from modelmill.export.ncnn_net import Parameter
from modelmill.export.ncnn_scope import Scope, refuse

MAX_POOL, AVERAGE_POOL = 0, 1


class Window:
    """Kernel, stride, dilation and padding of each spatial axis."""

    def __init__(
        self, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
    ) -> None:
        self.kernel, self.stride, self.dilation = tuple(kernel), tuple(stride), tuple(dilation)
        self.before: tuple[int, ...] = (0,) * len(self.kernel)
        self.after: tuple[int, ...] = (0,) * len(self.kernel)


def spatial(s: Scope, node: ir.Node, kernel: Sequence[int] | None = None) -> Window:
    """The window of a convolution or pool; auto_pad is worked out for the input's size."""
    attributes, shape = ir.attributes(node), s.in_shape(node)
    kernel = kernel or tuple(attributes["kernel_shape"])
    ones = (1,) * len(kernel)
    window = Window(kernel, attributes.get("strides", ones), attributes.get("dilations", ones))
    auto = attributes.get("auto_pad", "NOTSET")
    if len(shape) != len(kernel) + 2 or shape[0] != 1:
        raise refuse(node, f"an input of shape {shape}; ncnn takes one image")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        before, after = [], []
        for i, k in enumerate(window.kernel):
            size, step = shape[2 + i], window.stride[i]
            reach = (-(-size // step) - 1) * step + (k - 1) * window.dilation[i] + 1
            total = max(reach - size, 0)
            small, large = total // 2, total - total // 2
            before.append(small if auto == "SAME_UPPER" else large)
            after.append(large if auto == "SAME_UPPER" else small)
        window.before, window.after = tuple(before), tuple(after)
    elif auto == "NOTSET":
        pads = tuple(int(p) for p in attributes.get("pads", (0,) * 2 * len(kernel)))
        if min(pads, default=0) < 0:
            raise refuse(node, "negative pads")
        window.before, window.after = pads[: len(kernel)], pads[len(kernel) :]
    return window


def global_pool(s: Scope, node: ir.Node) -> None:
    shape = s.in_shape(node)
    kind = MAX_POOL if node.op_type == "GlobalMaxPool" else AVERAGE_POOL
    x = s.read(node, 0, (shape[1], math.prod(shape[2:-1]), shape[-1]))
    made = s.layer(node, "Pooling", [x], (shape[1],), {0: kind, 4: 1})
    s.put(node.outputs[0], made)


def pool(s: Scope, node: ir.Node) -> None:
    attributes, shape, out = ir.attributes(node), s.in_shape(node), s.out_shape(node)
    window = spatial(s, node)
    if len(window.kernel) not in (1, 2) or (len(node.outputs) > 1 and node.outputs[1].name):
        raise refuse(node, "only one or two spatial dimensions, without indices")
    if set(window.dilation) != {1}:
        raise refuse(node, "a pool with dilations")
    before, after = list(window.before), list(window.after)
    counted = node.op_type == "AveragePool" and attributes.get("count_include_pad", 0)
    for i, k in enumerate(window.kernel):
        reach = (out[2 + i] - 1) * window.stride[i] + k
        beyond = reach - (shape[2 + i] + before[i] + after[i])
        if beyond > 0 and counted:
            raise refuse(node, "ceil_mode with padding that counts")
        after[i] += max(beyond, 0)
    kernel, stride = window.kernel, window.stride
    names = {0: MAX_POOL if node.op_type == "MaxPool" else AVERAGE_POOL, 5: 1, 6: int(counted)}
    parameters: dict[int, Parameter] = {
        **names, 1: kernel[-1], 2: stride[-1], 3: before[-1], 14: after[-1],
    }  # fmt: skip
    if len(kernel) == 2:
        parameters |= {11: kernel[0], 12: stride[0], 13: before[0], 15: after[0]}
    layer = "Pooling" if len(kernel) == 2 else "Pooling1D"
    s.put(node.outputs[0], s.layer(node, layer, [s.read(node)], out[1:], parameters))


def resize(s: Scope, node: ir.Node) -> None:
    """Nearest as floor(x * in / out), linear and cubic with half pixels or aligned corners."""
    attributes, shape, out = ir.attributes(node), s.in_shape(node), s.out_shape(node)
    mode = attributes.get("mode", "nearest")
    where = attributes.get("coordinate_transformation_mode", "half_pixel")
    if node.op_type == "Upsample":
        where = "asymmetric"
    if len(shape) != 4 or shape[:2] != out[:2]:
        raise refuse(node, "only the last two of four axes can be resized")
    whole = all(n % m == 0 for n, m in zip(out[2:], shape[2:], strict=True))
    rounding = attributes.get("nearest_mode", "round_prefer_floor")
    if mode == "nearest":
        floors = where == "asymmetric" and (rounding == "floor" or node.op_type == "Upsample")
        if not (floors or (whole and where == "half_pixel" and rounding.startswith("round"))):
            raise refuse(node, f"nearest with {where} and {rounding}")
        kind = 1
    elif where in ("half_pixel", "align_corners", "pytorch_half_pixel"):
        kind = {"linear": 2, "cubic": 3}[mode]
        if where == "pytorch_half_pixel" and 1 in out[2:]:
            raise refuse(node, "pytorch_half_pixel to a size of 1")
    else:
        raise refuse(node, f"{mode} with {where}")
    if attributes.get("antialias", 0) or attributes.get("exclude_outside", 0):
        raise refuse(node, "antialias or exclude_outside")
    if mode == "cubic" and attributes.get("cubic_coeff_a", -0.75) != -0.75:
        raise refuse(node, "cubic_coeff_a is not -0.75")
    corners = int(where == "align_corners" and mode != "nearest")
    parameters: dict[int, Parameter] = {0: kind, 3: out[2], 4: out[3], 6: corners}
    s.put(node.outputs[0], s.layer(node, "Interp", [s.read(node)], out[1:], parameters))
