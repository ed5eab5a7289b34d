"""Resize, Upsample which it replaced, and GridSample.

Interpolation by Resize is separable, so each resized axis is treated alone: every output coordinate
has an original coordinate, around which a few elements are read with weights. Where the coordinates
are those of torch.nn.functional.interpolate, its kernel is used; everything else is a weighted sum
of `index_select`s, which has gradients.
"""
# ruff: noqa: PLR0913 - as many parameters as the operators have inputs and attributes

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from modelmill.executor.bind import Floats, Ints

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Rule:
    """How coordinates and weights are found; the attributes of Resize."""

    mode: str
    coordinates: str
    nearest: str
    cubic_a: float
    antialias: bool
    exclude_outside: bool


@dataclass(frozen=True)
class Axis:
    """One axis to resize. scale: as given, so size * scale may be a fraction."""

    axis: int
    size: int
    resized: int
    scale: float
    roi: tuple[float, float]


def Upsample(X: Tensor, scales: Floats, *, mode: str = "nearest") -> Tensor:
    return Resize(
        X,
        None,
        scales,
        mode=mode,
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )


def GridSample(
    X: Tensor,
    grid: Tensor,
    *,
    align_corners: int = 0,
    mode: str = "linear",
    padding_mode: str = "zeros",
) -> Tensor:
    """`mode` is spelled bilinear and bicubic before operator set 20."""
    known = {"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode)
    return functional.grid_sample(X, grid, known, padding_mode, bool(align_corners))


def Resize(
    X: Tensor,
    roi: Floats | None = None,
    scales: Floats | None = None,
    sizes: Ints | None = None,
    *,
    antialias: int = 0,
    axes: Ints | None = None,
    coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
) -> Tensor:
    rule = Rule(
        mode,
        coordinate_transformation_mode,
        nearest_mode,
        cubic_coeff_a,
        bool(antialias),
        bool(exclude_outside),
    )
    chosen = [a % X.dim() for a in axes] if axes is not None else list(range(X.dim()))
    plans = _axes(X.shape, chosen, roi, scales, sizes, keep_aspect_ratio_policy)
    crops = rule.coordinates == "tf_crop_and_resize"
    plans = [p for p in plans if crops or p.resized != p.size or p.scale != 1]
    if not plans:
        return X
    fast = _by_torch(X, plans, rule)
    if fast is not None:
        return fast
    y, outside = X, torch.zeros((), dtype=torch.bool, device=X.device)
    for plan in plans:
        index, weight, beyond = _taps(plan, rule)
        y = _interpolated(y, plan.axis, index, weight)
        shape = [-1 if i == plan.axis else 1 for i in range(X.dim())]
        outside = outside | beyond.to(X.device).reshape(shape)
    return torch.where(outside, extrapolation_value, y) if crops else y


def _axes(
    shape: Sequence[int],
    chosen: list[int],
    roi: Floats | None,
    scales: Floats | None,
    sizes: Ints | None,
    policy: str,
) -> list[Axis]:
    """Size, new size and scale of each chosen axis."""
    count = len(chosen)
    windows = list(zip(roi[:count], roi[count:], strict=True)) if roi else [(0.0, 1.0)] * count
    if scales:
        ratios = list(scales)
        resized = [
            # in float32, as shape inference and the engines do: 10 * 0.7 is 7, not 6.9999999
            math.floor(np.float32(shape[axis]) * np.float32(ratio))
            for axis, ratio in zip(chosen, ratios, strict=True)
        ]
    elif sizes:
        resized, ratios = (
            list(sizes),
            [size / shape[axis] for axis, size in zip(chosen, sizes, strict=True)],
        )
        if policy != "stretch":
            ratio = min(ratios) if policy == "not_larger" else max(ratios)
            ratios = [ratio] * count
            resized = [math.floor(ratio * shape[axis] + 0.5) for axis in chosen]
    else:
        raise ValueError("Resize needs scales or sizes")
    return [
        Axis(axis, shape[axis], new, ratio, window)
        for axis, new, ratio, window in zip(chosen, resized, ratios, windows, strict=True)
    ]


def _by_torch(x: Tensor, plans: list[Axis], rule: Rule) -> Tensor | None:
    """The result by functional.interpolate where it computes the same, else None."""
    if (
        [p.axis for p in plans] not in ([2, 3], [2], [3])
        or x.dim() != 4
        or not x.is_floating_point()
    ):
        return None
    size = [next((p.resized for p in plans if p.axis == axis), x.shape[axis]) for axis in (2, 3)]
    if rule.mode == "nearest":
        if not all(_nearest_as_torch(plan, rule) for plan in plans):
            return None
        return functional.interpolate(x, size=size, mode="nearest")
    exact = all(p.scale == p.resized / p.size for p in plans)
    cubic = rule.mode == "cubic" and rule.cubic_a == -0.75
    if not exact or rule.antialias or rule.exclude_outside or not (cubic or rule.mode == "linear"):
        return None
    corners = rule.coordinates == "align_corners"
    halves = rule.coordinates == "half_pixel" or (
        rule.coordinates == "pytorch_half_pixel" and all(p.resized > 1 for p in plans)
    )
    if not corners and not halves:
        return None
    return functional.interpolate(
        x, size=size, mode="bicubic" if cubic else "bilinear", align_corners=corners
    )


def _interpolated(x: Tensor, axis: int, index: Tensor, weight: Tensor) -> Tensor:
    """Sum over taps of weight[tap] * x[index[tap]] along one axis; both are (taps, resized)."""
    index = index.to(x.device)
    if len(index) == 1:
        return x.index_select(axis, index[0])
    kind = x.dtype if x.is_floating_point() else torch.float32
    shape = [-1 if i == axis else 1 for i in range(x.dim())]
    weight = weight.to(x.device, kind)
    parts = (x.index_select(axis, i) * w.reshape(shape) for i, w in zip(index, weight, strict=True))
    total: Tensor = functools.reduce(torch.add, parts)
    return total if x.is_floating_point() else total.round().to(x.dtype)


@functools.lru_cache(maxsize=256)
def _nearest_as_torch(plan: Axis, rule: Rule) -> bool:
    """Whether F.interpolate reads the same elements: floor(i * (size / resized)) in float32."""
    ratio = np.float32(plan.size) / np.float32(plan.resized)
    read = np.floor(np.arange(plan.resized, dtype=np.float32) * ratio).clip(max=plan.size - 1)
    return np.array_equal(read, _taps(plan, rule)[0][0].numpy())


@functools.lru_cache(maxsize=256)
def _taps(plan: Axis, rule: Rule) -> tuple[Tensor, Tensor, Tensor]:
    """Elements read (taps, resized), their weights (same), which coordinates are outside."""
    x = _original(plan, rule)
    outside = (x < 0) | (x > plan.size - 1)
    if rule.mode == "nearest":
        index, weight = _nearest(x, rule.nearest)[None], np.ones((1, plan.resized))
    else:
        index, weight = _kernel(x, plan.scale, rule)
    if rule.exclude_outside:
        weight = np.where((index < 0) | (index >= plan.size), 0.0, weight)
        weight = weight / weight.sum(0)
    index = index.clip(0, plan.size - 1).astype(np.int64)
    with torch.inference_mode(False):  # what is kept must be of use to later calls with gradients
        return torch.from_numpy(index), torch.from_numpy(weight), torch.from_numpy(outside)


def _original(plan: Axis, rule: Rule) -> Array:
    """Coordinate in the original axis of every element of the resized one, by the standard."""
    # in float32 as the engines, whose rounding decides between two nearest elements
    x = np.arange(plan.resized, dtype=np.float32)
    size, scale = np.float32(plan.size), np.float32(plan.scale)
    width = size * scale
    match rule.coordinates:
        case "half_pixel":
            return (x + 0.5) / scale - 0.5
        case "half_pixel_symmetric":
            offset = size / 2 * (1 - plan.resized / width)
            return offset + (x + 0.5) / scale - 0.5
        case "pytorch_half_pixel":
            return (x + 0.5) / scale - 0.5 if plan.resized > 1 else np.zeros_like(x)
        case "tf_half_pixel_for_nn":  # operator set 11 only
            return (x + 0.5) / scale
        case "align_corners":
            return x * (size - 1) / (width - 1) if width != 1 else np.zeros_like(x)
        case "asymmetric":
            return x / scale
        case "tf_crop_and_resize":
            start, end = np.float32(plan.roi[0]), np.float32(plan.roi[1])
            if plan.resized > 1:
                return start * (size - 1) + x * (end - start) * (size - 1) / (plan.resized - 1)
            return np.full_like(x, 0.5 * (start + end) * (size - 1))
    raise ValueError(f"Resize has no coordinate_transformation_mode {rule.coordinates!r}")


def _nearest(x: Array, how: str) -> Array:
    match how:
        case "round_prefer_floor":
            return np.ceil(x - 0.5)
        case "round_prefer_ceil":
            return np.floor(x + 0.5)
        case "floor":
            return np.floor(x)
        case "ceil":
            return np.ceil(x)
    raise ValueError(f"Resize has no nearest_mode {how!r}")


def _kernel(x: Array, scale: float, rule: Rule) -> tuple[Array, Array]:
    """Elements around each coordinate, and the interpolation kernel at their distances.

    When shrinking with antialias, the kernel is stretched by 1 / scale and its values normalized.
    """
    if rule.mode not in ("linear", "cubic"):
        raise ValueError(f"Resize has no mode {rule.mode!r}")
    stretch = min(scale, 1.0) if rule.antialias else 1.0
    reach = math.ceil((1 if rule.mode == "linear" else 2) / stretch)
    index = np.floor(x) + np.arange(1 - reach, reach + 1)[:, None]
    distance = np.abs(index - x) * stretch
    weight = _hat(distance) if rule.mode == "linear" else _cubic(distance, rule.cubic_a)
    return index, weight / weight.sum(0) if rule.antialias else weight


def _hat(d: Array) -> Array:
    return (1 - d).clip(min=0)


def _cubic(d: Array, a: float) -> Array:
    """Keys 1981, equation 4: the cubic convolution kernel of support 2."""
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))
