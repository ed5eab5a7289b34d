"""Convolution, pooling and normalization.

Spatial padding of ONNX is a begin and an end for each axis; torch takes one number for both. Where
the two are equal the number goes straight to torch; otherwise the input is padded (or the output of
a transposed convolution cropped) explicitly.
"""
# ruff: noqa: PLR0913 - as many parameters as the operators have inputs and attributes

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from modelmill.executor.bind import Ints

CONV = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
CONV_TRANSPOSE = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}
MAX_POOL = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
AVERAGE_POOL = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}


@dataclass(frozen=True)
class Window:
    """A sliding window over the spatial axes, one number per axis in each field."""

    kernel: Ints
    strides: Ints
    dilations: Ints
    begins: Ints
    ends: Ints

    @property
    def extent(self) -> Ints:
        """Elements from the first to the last that one window touches."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))

    @property
    def symmetric(self) -> bool:
        return self.begins == self.ends


def _window(
    size: Ints,
    kernel: Ints,
    strides: Ints | None,
    dilations: Ints | None,
    pads: Ints | None,
    auto_pad: str,
) -> Window:
    """The window with defaults filled in and `auto_pad` worked out for the spatial `size`."""
    ones = (1,) * len(kernel)
    strides, dilations = strides or ones, dilations or ones
    pads = pads or (0,) * (2 * len(kernel))
    window = Window(kernel, strides, dilations, pads[: len(kernel)], pads[len(kernel) :])
    if auto_pad in ("NOTSET", ""):
        return window
    if auto_pad == "VALID":
        return Window(kernel, strides, dilations, (0,) * len(kernel), (0,) * len(kernel))
    if auto_pad not in ("SAME_UPPER", "SAME_LOWER"):
        raise ValueError(f"auto_pad {auto_pad!r} is not NOTSET, VALID, SAME_UPPER or SAME_LOWER")
    total = [
        max((-(-n // s) - 1) * s + e - n, 0)
        for n, s, e in zip(size, strides, window.extent, strict=True)
    ]
    less, more = tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)
    upper = auto_pad == "SAME_UPPER"
    return Window(kernel, strides, dilations, less if upper else more, more if upper else less)


def _padded(x: Tensor, begins: Ints, ends: Ints, value: float = 0.0) -> Tensor:
    pairs = [n for pair in zip(reversed(begins), reversed(ends), strict=True) for n in pair]
    return functional.pad(x, pairs, value=value) if any(pairs) else x


# ---------------------------------------------------------------- convolution


def Conv(
    X: Tensor,
    W: Tensor,
    B: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Ints | None = None,
    group: int = 1,
    kernel_shape: Ints | None = None,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Tensor:
    rank = X.dim() - 2
    window = _window(X.shape[2:], W.shape[2:], strides, dilations, pads, auto_pad)
    if rank not in CONV:
        raise ValueError(f"Conv over {rank} spatial axes; the executor has 1, 2 and 3")
    padding = window.begins
    if not window.symmetric:
        X, padding = _padded(X, window.begins, window.ends), (0,) * rank
    return CONV[rank](X, W, B, window.strides, padding, window.dilations, group)


def ConvTranspose(
    X: Tensor,
    W: Tensor,
    B: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Ints | None = None,
    group: int = 1,
    kernel_shape: Ints | None = None,
    output_padding: Ints | None = None,
    output_shape: Ints | None = None,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Tensor:
    rank = X.dim() - 2
    if rank not in CONV_TRANSPOSE:
        raise ValueError(f"ConvTranspose over {rank} spatial axes; the executor has 1, 2 and 3")
    window = _window(X.shape[2:], W.shape[2:], strides, dilations, pads, "NOTSET")
    extra = output_padding or (0,) * rank
    full = [
        s * (n - 1) + o + e
        for n, s, o, e in zip(X.shape[2:], window.strides, extra, window.extent, strict=True)
    ]
    begins, ends = window.begins, window.ends
    if output_shape is not None or auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        wanted = output_shape or [n * s for n, s in zip(X.shape[2:], window.strides, strict=True)]
        total = [f - w for f, w in zip(full, wanted[-rank:], strict=True)]
        less = tuple(
            max(t, 0) // 2 for t in total
        )  # where more is asked for, it is added at the end
        more = tuple(t - n for t, n in zip(total, less, strict=True))
        swap = [auto_pad != "SAME_UPPER" and t > 0 for t in total]
        begins = tuple(m if s else n for n, m, s in zip(less, more, swap, strict=True))
        ends = tuple(n if s else m for n, m, s in zip(less, more, swap, strict=True))
    run = CONV_TRANSPOSE[rank]
    if begins == ends and min(begins) >= 0:
        return run(X, W, B, window.strides, begins, extra, group, window.dilations)
    y = run(X, W, None, window.strides, 0, extra, group, window.dilations)
    y = _padded(y, tuple(-b for b in begins), tuple(-e for e in ends))
    return y if B is None else y + B.reshape(-1, *[1] * rank)


# ---------------------------------------------------------------- pooling


def _overhang(size: Ints, window: Window, ceil_mode: int) -> Ints:
    """Elements past the end padding that the last windows reach, which only ceil_mode allows.

    A window that would start in the end padding or beyond is left out, in ONNX as in torch.
    """
    if not ceil_mode:
        return (0,) * len(size)
    over = []
    for n, s, e, b, a in zip(
        size, window.strides, window.extent, window.begins, window.ends, strict=True
    ):
        count = -(-(n + b + a - e) // s) + 1
        if (count - 1) * s >= n + b:
            count -= 1
        over.append(max((count - 1) * s + e - (n + b + a), 0))
    return tuple(over)


def _by_torch(window: Window) -> bool:
    """Whether torch's pooling takes this padding: both sides the same, at most half a window."""
    return window.symmetric and all(
        2 * b <= k for b, k in zip(window.begins, window.kernel, strict=True)
    )


def MaxPool(
    X: Tensor,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Ints | None = None,
    kernel_shape: Ints,
    pads: Ints | None = None,
    storage_order: int = 0,
    strides: Ints | None = None,
    n_outputs: int,
) -> Tensor | tuple[Tensor, Tensor]:
    size = X.shape[2:]
    window = _window(size, kernel_shape, strides, dilations, pads, auto_pad)
    pool = MAX_POOL[len(kernel_shape)]
    kind, begins = X.dtype, (0,) * len(size)
    if not X.is_floating_point():
        X = X.to(torch.float32)  # the standard has 8-bit integers here, which float32 holds
    inside, padding, ceil = X, window.begins, bool(ceil_mode)
    if not _by_torch(window):
        over = _overhang(size, window, ceil_mode)
        ends = tuple(e + o for e, o in zip(window.ends, over, strict=True))
        inside, padding, ceil = _padded(X, window.begins, ends, float("-inf")), begins, False
        begins = window.begins
    arguments = (inside, window.kernel, window.strides, padding, window.dilations, ceil)
    if n_outputs < 2:
        return pool(*arguments).to(kind)
    largest, flat = pool(*arguments, return_indices=True)
    return largest.to(kind), _flat_index(flat, inside.shape[2:], begins, X, storage_order)


def _flat_index(index: Tensor, padded: Ints, begins: Ints, x: Tensor, column_major: int) -> Tensor:
    """Index into all of `x` laid out flat, from an index into the spatial axes of padded `x`."""
    spatial = x.shape[2:]
    strides = [math.prod(spatial[i + 1 :]) for i in range(len(spatial))]
    if column_major:
        strides = [math.prod(spatial[:i]) for i in range(len(spatial))]
    found = torch.zeros_like(index)
    for axis in reversed(range(len(spatial))):
        found += (index % padded[axis] - begins[axis]) * strides[axis]
        index = index // padded[axis]
    planes = torch.arange(x.shape[0] * x.shape[1], device=x.device) * math.prod(spatial)
    return found + planes.reshape(*x.shape[:2], *[1] * len(spatial))


def AveragePool(
    X: Tensor,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: Ints | None = None,
    kernel_shape: Ints,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Tensor:
    size = X.shape[2:]
    window = _window(size, kernel_shape, strides, dilations, pads, auto_pad)
    if _by_torch(window) and max(window.dilations) == 1:
        pool = AVERAGE_POOL[len(size)]
        counted = bool(count_include_pad)
        return pool(X, window.kernel, window.strides, window.begins, bool(ceil_mode), counted)
    # sum over the window, divided by how many elements of it count
    counts = torch.ones((1, 1, *size), dtype=X.dtype, device=X.device)
    if count_include_pad:
        counts = _padded(counts, window.begins, window.ends, 1.0)
        bare = Window(
            window.kernel, window.strides, window.dilations, (0,) * len(size), (0,) * len(size)
        )
        over = _overhang(size, window, ceil_mode)
        number = _window_sum(_padded(counts, bare.begins, over), bare, 0)
    else:
        number = _window_sum(counts, window, ceil_mode)
    return _window_sum(X, window, ceil_mode) / number


def _window_sum(x: Tensor, window: Window, ceil_mode: int) -> Tensor:
    """Sum over each window, as a convolution with ones, each channel apart."""
    rank, over = x.dim() - 2, _overhang(x.shape[2:], window, ceil_mode)
    x = _padded(x, window.begins, tuple(e + o for e, o in zip(window.ends, over, strict=True)))
    ones = torch.ones((1, 1, *window.kernel), dtype=x.dtype, device=x.device)
    planes = x.reshape(-1, 1, *x.shape[2:])
    total = CONV[rank](planes, ones, None, window.strides, 0, window.dilations)
    return total.reshape(*x.shape[:2], *total.shape[2:])


def LpPool(
    X: Tensor,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Ints | None = None,
    kernel_shape: Ints,
    p: int = 2,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Tensor:
    window = _window(X.shape[2:], kernel_shape, strides, dilations, pads, auto_pad)
    return _window_sum(X.abs() ** p, window, ceil_mode) ** (1 / p)


def GlobalAveragePool(X: Tensor) -> Tensor:
    return X.mean(tuple(range(2, X.dim())), keepdim=True)


def GlobalMaxPool(X: Tensor) -> Tensor:
    return X.amax(tuple(range(2, X.dim())), keepdim=True)


# ---------------------------------------------------------------- normalization


def BatchNormalization(
    X: Tensor,
    scale: Tensor,
    B: Tensor,
    input_mean: Tensor,
    input_var: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
) -> Tensor:
    if training_mode:
        raise ValueError("BatchNormalization in training mode; export the model for inference")
    mean, variance = input_mean.detach(), input_var.detach()  # torch has no gradient for them
    return functional.batch_norm(X, mean, variance, scale, B, False, 0.0, epsilon)


def InstanceNormalization(
    input: Tensor, scale: Tensor, B: Tensor, *, epsilon: float = 1e-5
) -> Tensor:
    return functional.group_norm(input, input.shape[1], scale, B, epsilon)


def GroupNormalization(
    X: Tensor,
    scale: Tensor,
    bias: Tensor,
    *,
    epsilon: float = 1e-5,
    num_groups: int,
    stash_type: int = 1,
    opset: int,
) -> Tensor:
    """One scale and bias per channel; per group before operator set 21."""
    if opset < 21:
        repeat = X.shape[1] // num_groups
        scale, bias = scale.repeat_interleave(repeat), bias.repeat_interleave(repeat)
    return functional.group_norm(X, num_groups, scale, bias, epsilon)


def LayerNormalization(
    X: Tensor,
    Scale: Tensor,
    B: Tensor | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
    n_outputs: int,
) -> Tensor | tuple[Tensor, ...]:
    shape = X.shape[axis:]
    if n_outputs == 1 and Scale.shape == shape and (B is None or B.shape == shape):
        return functional.layer_norm(X, shape, Scale, B, epsilon)
    axes = tuple(range(axis % X.dim(), X.dim()))
    mean = X.mean(axes, keepdim=True)
    inverse = torch.rsqrt((X - mean).square().mean(axes, keepdim=True) + epsilon)
    y = (X - mean) * inverse * Scale
    return (y if B is None else y + B, mean, inverse)[:n_outputs]


def RMSNormalization(
    X: Tensor, scale: Tensor, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    axes = tuple(range(axis % X.dim(), X.dim()))
    return X * torch.rsqrt(X.square().mean(axes, keepdim=True) + epsilon) * scale


def LRN(
    X: Tensor, *, alpha: float = 0.0001, beta: float = 0.75, bias: float = 1.0, size: int
) -> Tensor:
    before = (size - 1) // 2
    squares = _channel_padded(X.square(), before, size - 1 - before)
    total = squares.unfold(1, size, 1).sum(-1)
    return X / (bias + alpha / size * total) ** beta


def _channel_padded(x: Tensor, before: int, after: int) -> Tensor:
    return functional.pad(x, [0, 0] * (x.dim() - 2) + [before, after])


def LpNormalization(input: Tensor, *, axis: int = -1, p: int = 2) -> Tensor:
    norm = torch.linalg.vector_norm(input, p, axis, keepdim=True)
    return torch.where(norm == 0, torch.zeros_like(input), input / norm)
