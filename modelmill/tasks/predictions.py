"""Predictions as bytes and back: what a deployment said of every picture, to compare it later.

A prediction is a frozen dataclass whose fields are numbers, tuples of integers, or arrays that
differ in their first dimension. Field by field they are put one behind another, with a count for
each picture, in numpy's compressed .npz format. Real numbers are kept as float32, integers as
narrow as they allow.
"""

import dataclasses
import io
import typing
import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt


def pack(predictions: Sequence[Any]) -> bytes:
    """The bytes of an .npz; the same predictions give the same bytes.

    Raises:
        TypeError: a prediction is not a dataclass of numbers, tuples of integers and arrays.
    """
    arrays: dict[str, npt.NDArray[Any]] = {"pictures": np.array(len(predictions))}
    for field in dataclasses.fields(predictions[0]) if predictions else ():
        held = [np.asarray(getattr(p, field.name)) for p in predictions]
        if any(a.dtype.kind not in "biuf" for a in held):
            raise TypeError(f"{type(predictions[0]).__name__}.{field.name} holds more than numbers")
        if held[0].ndim == 0:
            arrays[field.name] = _narrow(np.stack(held))
            continue
        arrays[f"{field.name}.count"] = _narrow(np.array([len(a) for a in held]))
        filled = [a for a in held if len(a)] or held[:1]
        arrays[field.name] = _narrow(np.concatenate(filled))
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def unpack(data: bytes, kind: type) -> tuple[Any, ...]:
    """The predictions of type `kind`, real numbers rounded to float32.

    Raises:
        ValueError: these are not such predictions.
    """
    hints = typing.get_type_hints(kind)
    columns: list[list[Any]] = []
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as held:
            count = int(held["pictures"])
            for field in dataclasses.fields(kind) if count else ():
                flat = _wide(held[field.name])
                if f"{field.name}.count" not in held:
                    columns.append(flat.tolist())
                    continue
                ends = np.cumsum(held[f"{field.name}.count"].astype(np.int64))
                parts = np.split(flat, ends[:-1])
                is_tuple = typing.get_origin(hints[field.name]) is tuple
                columns.append([tuple(p.tolist()) for p in parts] if is_tuple else parts)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"not the predictions of pictures: {error}") from error
    return tuple(kind(*row) for row in zip(*columns, strict=True))


def _narrow(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if array.dtype.kind == "f":
        return array.astype(np.float32)
    if array.dtype.kind == "b" or not array.size:
        return array
    low, high = int(array.min()), int(array.max())
    kinds = (np.uint8, np.int8, np.uint16, np.int16, np.int32)
    fits = (k for k in kinds if np.iinfo(k).min <= low and high <= np.iinfo(k).max)
    return array.astype(next(fits, np.int64))


def _wide(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return array.astype({"f": np.float64, "b": np.bool_}.get(array.dtype.kind, np.int64))
