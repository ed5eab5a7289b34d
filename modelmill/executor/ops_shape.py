"""Operators that move, select, make or cast elements without computing with them."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from modelmill.executor.bind import Ints

# TensorProto.DataType of the standard -> torch; strings, 4-bit and 8-bit floats have no place here.
ELEMENT_TYPES = {
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    4: torch.uint16,
    5: torch.int16,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    11: torch.float64,
    12: torch.uint32,
    13: torch.uint64,
    16: torch.bfloat16,
}

GREATEST = (2**31 - 1, 2**63 - 1)


def element_type(code: int) -> torch.dtype:
    """The torch type of an ONNX element type number.

    Raises:
        ValueError: torch has no such type that the executor computes with.
    """
    if code not in ELEMENT_TYPES:
        raise ValueError(f"the executor cannot hold ONNX element type {code}")
    return ELEMENT_TYPES[code]


# ---------------------------------------------------------------- constants and shapes


def Constant(
    *,
    value: Tensor | None = None,
    value_float: float | None = None,
    value_floats: tuple[float, ...] | None = None,
    value_int: int | None = None,
    value_ints: Ints | None = None,
) -> Tensor:
    if value is not None:
        return value
    if value_int is not None or value_ints is not None:
        return torch.tensor(value_ints if value_int is None else value_int, dtype=torch.int64)
    return torch.tensor(value_floats if value_float is None else value_float, dtype=torch.float32)


def ConstantOfShape(input: Ints, *, value: Tensor | None = None) -> Tensor:
    if value is None:
        return torch.zeros(input)
    return value.reshape(()).expand(input).contiguous()


def Shape(data: Tensor, *, start: int = 0, end: int | None = None) -> Tensor:
    return torch.tensor(data.shape[start:end], dtype=torch.int64)


def Size(data: Tensor) -> Tensor:
    return torch.tensor(data.numel(), dtype=torch.int64)


def Range(start: Tensor, limit: Tensor, delta: Tensor, *, stash_type: int = 1) -> Tensor:
    """16-bit floats are computed in float32, whatever `stash_type`."""
    kind = start.dtype
    if kind in (torch.float16, torch.bfloat16):
        start, delta = start.float(), delta.float()
    count = max(math.ceil((limit.item() - start.item()) / delta.item()), 0)
    return (start + torch.arange(count, device=start.device) * delta).to(kind)


# ---------------------------------------------------------------- element types


def Cast(input: Tensor, *, to: int, saturate: int = 1, round_mode: str = "up") -> Tensor:
    """`saturate` and `round_mode` speak of 8-bit floats only."""
    return input.to(element_type(to))


def CastLike(
    input: Tensor, target_type: Tensor, *, saturate: int = 1, round_mode: str = "up"
) -> Tensor:
    return input.to(target_type.dtype)


# ---------------------------------------------------------------- layout


def Identity(input: Tensor) -> Tensor:
    return input


def Dropout(
    data: Tensor,
    ratio: float | None = None,
    training_mode: bool | None = None,
    *,
    seed: int | None = None,
    n_outputs: int,
) -> Tensor | tuple[Tensor, ...]:
    if training_mode and ratio != 0:
        raise ValueError("Dropout in training mode is random; export the model for inference")
    return (data, torch.ones_like(data, dtype=torch.bool)) if n_outputs > 1 else data


def Reshape(data: Tensor, shape: Ints, *, allowzero: int = 0) -> Tensor:
    if not allowzero:
        shape = tuple(data.shape[i] if size == 0 else size for i, size in enumerate(shape))
    return data.reshape(shape)


def Flatten(input: Tensor, *, axis: int = 1) -> Tensor:
    axis = axis + input.dim() if axis < 0 else axis
    return input.reshape(math.prod(input.shape[:axis]), math.prod(input.shape[axis:]))


def Transpose(data: Tensor, *, perm: Ints | None = None) -> Tensor:
    return data.permute(tuple(reversed(range(data.dim()))) if perm is None else perm)


def Squeeze(data: Tensor, axes: Ints | None = None) -> Tensor:
    if axes is None:
        return data.squeeze()
    for axis in axes:
        if data.shape[axis] != 1:
            raise ValueError(f"axis {axis} to squeeze has size {data.shape[axis]}, not 1")
    return data.squeeze(axes)


def Unsqueeze(data: Tensor, axes: Ints) -> Tensor:
    rank = data.dim() + len(axes)
    for axis in sorted(a + rank if a < 0 else a for a in axes):
        data = data.unsqueeze(axis)
    return data


def Expand(input: Tensor, shape: Ints) -> Tensor:
    rank = max(input.dim(), len(shape))
    shape = (1,) * (rank - len(shape)) + tuple(shape)
    own = (1,) * (rank - input.dim()) + input.shape
    # a 1 asked for leaves the input's size as it is; torch.expand would refuse it
    return input.expand([o if s == 1 else s for o, s in zip(own, shape, strict=True)])


def Tile(input: Tensor, repeats: Ints) -> Tensor:
    return input.repeat(repeats)


def Concat(*inputs: Tensor, axis: int) -> Tensor:
    return torch.cat(inputs, axis)


def Split(
    input: Tensor,
    split: Ints | None = None,
    *,
    axis: int = 0,
    num_outputs: int | None = None,
    n_outputs: int,
) -> tuple[Tensor, ...]:
    size = input.shape[axis]
    if split is None:  # equal parts; the last may be smaller, and empty
        count = num_outputs or n_outputs
        part = -(-size // count)
        split = tuple(max(min(part, size - i * part), 0) for i in range(count))
    return torch.split(input, list(split), axis)


def DepthToSpace(input: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    n, c, h, w = input.shape
    b = blocksize
    if mode == "CRD":
        split = input.reshape(n, c // (b * b), b, b, h, w).permute(0, 1, 4, 2, 5, 3)
    else:
        split = input.reshape(n, b, b, c // (b * b), h, w).permute(0, 3, 4, 1, 5, 2)
    return split.reshape(n, c // (b * b), h * b, w * b)


def SpaceToDepth(input: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    n, c, h, w = input.shape
    b = blocksize
    order = (0, 1, 3, 5, 2, 4) if mode == "CRD" else (0, 3, 5, 1, 2, 4)
    split = input.reshape(n, c, h // b, b, w // b, b).permute(order)
    return split.reshape(n, c * b * b, h // b, w // b)


def Trilu(input: Tensor, k: int | None = None, *, upper: int = 1) -> Tensor:
    return (torch.triu if upper else torch.tril)(input, k or 0)


# ---------------------------------------------------------------- pad and slice


def Pad(
    data: Tensor,
    pads: Ints,
    constant_value: float | None = None,
    axes: Ints | None = None,
    *,
    mode: str = "constant",
) -> Tensor:
    """`pads` begins of all axes, then ends; negative numbers crop."""
    rank = data.dim()
    wanted = range(rank) if axes is None else [axis % rank for axis in axes]
    ends = pads[len(wanted) :]
    amounts = {axis: (pads[i], ends[i]) for i, axis in enumerate(wanted) if pads[i] or ends[i]}
    if not amounts:
        return data
    if mode == "constant":
        first = min(amounts)
        flat = [n for axis in range(rank - 1, first - 1, -1) for n in amounts.get(axis, (0, 0))]
        return functional.pad(data, flat, value=0 if constant_value is None else constant_value)
    if mode not in ("reflect", "edge", "wrap"):
        raise ValueError(f"Pad mode {mode!r} is not constant, reflect, edge or wrap")
    for axis, (before, after) in amounts.items():
        source = _source(data.shape[axis], before, after, mode)
        data = data.index_select(axis, source.to(data.device))
    return data


def _source(size: int, before: int, after: int, mode: str) -> Tensor:
    """Index that each element of a padded axis is taken from."""
    index = torch.arange(-before, size + after)
    if mode == "edge":
        return index.clamp(0, size - 1)
    if mode == "wrap":
        return index % size
    period = max(2 * (size - 1), 1)  # reflect: 0 1 2 3 2 1 | 0 1 2 3 ...
    index = index % period
    return torch.where(index < size, index, period - index)


def Slice(
    data: Tensor,
    starts: Ints,
    ends: Ints,
    axes: Ints | None = None,
    steps: Ints | None = None,
) -> Tensor:
    window: list[slice] = [slice(None)] * data.dim()
    turned: list[int] = []
    for i, axis in enumerate(range(len(starts)) if axes is None else axes):
        step = 1 if steps is None else steps[i]
        span = _span(data.shape[axis], starts[i], ends[i], step)
        if step < 0:  # torch steps forward only: take the same elements, then turn them round
            span = span[::-1]
            turned.append(axis)
        window[axis] = slice(span.start, span.stop, span.step) if span else slice(0)
    part = data[tuple(window)]
    return part.flip(turned) if turned else part


def _span(size: int, start: int, end: int, step: int) -> range:
    """Elements start, start + step, ... before `end`, clamped as ONNX does it (Python differs)."""
    last = size - 1 if step < 0 else size
    start = min(max(start + size if start < 0 else start, 0), last)
    if step < 0 and end in GREATEST:
        return range(start, -1, step)  # "no end"; engines read it so backwards too
    return range(start, min(max(end + size if end < 0 else end, -1 if step < 0 else 0), last), step)


# ---------------------------------------------------------------- gather and scatter


def _index(indices: Tensor, size: int) -> Tensor:
    """Indices counted from the front, as int64."""
    indices = indices.to(torch.int64)
    return torch.where(indices < 0, indices + size, indices)


def Gather(data: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    if indices.dim() == 0 and indices.device.type == "cpu":
        return data.select(axis, int(indices))  # a view
    axis %= data.dim()
    index = _index(indices, data.shape[axis])
    taken = data.index_select(axis, index.reshape(-1))
    if index.dim() == 1:
        return taken
    return taken.reshape(data.shape[:axis] + index.shape + data.shape[axis + 1 :])


def GatherElements(data: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    return torch.gather(data, axis, _index(indices, data.shape[axis]))


def _rows(data: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Data as (rows, ...) and the row number of each index tuple in the last axis of `indices`."""
    depth = indices.shape[-1]
    row = torch.zeros(indices.shape[:-1], dtype=torch.int64, device=data.device)
    for i in range(depth):
        row = row * data.shape[i] + _index(indices[..., i], data.shape[i])
    return data.reshape(-1, *data.shape[depth:]), row


def GatherND(data: Tensor, indices: Tensor, *, batch_dims: int = 0) -> Tensor:
    if batch_dims:
        shape = data.shape[:batch_dims]
        batches = math.prod(shape)
        data = data.reshape(batches, *data.shape[batch_dims:])
        indices = indices.reshape(batches, *indices.shape[batch_dims:])
        taken = torch.stack([GatherND(d, i) for d, i in zip(data, indices, strict=True)])
        return taken.reshape(shape + taken.shape[1:])
    rows, row = _rows(data, indices)
    return rows.index_select(0, row.reshape(-1)).reshape(row.shape + rows.shape[1:])


REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def ScatterND(data: Tensor, indices: Tensor, updates: Tensor, *, reduction: str = "none") -> Tensor:
    rows, row = _rows(data, indices)
    flat = rows.reshape(rows.shape[0], -1)
    index = row.reshape(-1, 1).expand(-1, flat.shape[1])
    return _scatter(flat, 0, index, updates.reshape(index.shape), reduction).reshape(data.shape)


def ScatterElements(
    data: Tensor, indices: Tensor, updates: Tensor, *, axis: int = 0, reduction: str = "none"
) -> Tensor:
    return _scatter(data, axis, _index(indices, data.shape[axis]), updates, reduction)


def _scatter(data: Tensor, axis: int, index: Tensor, updates: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return torch.scatter(data, axis, index, updates)
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction {reduction!r} is not none, {', '.join(REDUCTIONS)}")
    return torch.scatter_reduce(data, axis, index, updates, REDUCTIONS[reduction])


def TopK(
    X: Tensor, K: int, *, axis: int = -1, largest: int = 1, sorted: int = 1
) -> tuple[Tensor, Tensor]:
    """Equal elements come in the order of their indices, which torch.topk does not promise."""
    values, indices = torch.sort(X, dim=axis, descending=bool(largest), stable=True)
    return values.narrow(axis, 0, K), indices.narrow(axis, 0, K)


def NonZero(X: Tensor) -> Tensor:
    return torch.nonzero(X).t()


def OneHot(indices: Tensor, depth: int, values: Tensor, *, axis: int = -1) -> Tensor:
    depth = int(depth)
    axis = axis % (indices.dim() + 1)
    index = _index(indices, depth).unsqueeze(axis)
    shape = [depth if i == axis else 1 for i in range(index.dim())]
    hot = torch.arange(depth, device=index.device).reshape(shape) == index
    return torch.where(hot, values[1], values[0])
