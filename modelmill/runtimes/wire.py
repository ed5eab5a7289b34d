"""Messages between a session and its worker: a JSON head and raw arrays, over two file descriptors.

A message is `magic, length of head (u32), length of arrays (u64), head, arrays`; the head lists
name, type and shape of each array in `"arrays"`. Nothing is pickled: the other side may be another
Python with other packages, or a process that an engine has corrupted. Arrays are sent from and
received into their own memory, without a copy in between.
"""

import contextlib
import fcntl
import json
import os
import select
import struct
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

_FRAME = struct.Struct("<4sIQ")
_MAGIC = b"MMW1"
_MAX_HEAD = 1 << 28
_KINDS = "biufc"  # bool, signed, unsigned, float, complex: types that are plain bytes everywhere
_PIPE_BYTES = 1 << 20


class ProtocolError(RuntimeError):
    """What arrived is not a message."""


class Channel:
    """Both directions of a connection. Not for use by several threads at once."""

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self._read_fd = read_fd
        self._write_fd = write_fd
        for fd in (read_fd, write_fd):
            os.set_blocking(fd, False)
            _enlarge(fd)
        self._readable = select.poll()
        self._readable.register(read_fd, select.POLLIN)
        self._writable = select.poll()
        self._writable.register(write_fd, select.POLLOUT)

    def send(
        self,
        head: Mapping[str, Any],
        arrays: Mapping[str, np.ndarray],
        deadline: float | None = None,
    ) -> None:
        """Send a message.

        Raises:
            TypeError: an array whose type cannot be sent; nothing was sent.
            TimeoutError: `deadline` (of `time.monotonic`) has passed.
            BrokenPipeError: the other side is gone.
        """
        packed = {name: _plain(name, array) for name, array in arrays.items()}
        about = [[name, a.dtype.str, list(a.shape)] for name, a in packed.items()]
        text = json.dumps({**head, "arrays": about}).encode()
        total = sum(a.nbytes for a in packed.values())
        self._write(memoryview(_FRAME.pack(_MAGIC, len(text), total) + text), deadline)
        for array in packed.values():
            if array.nbytes:
                self._write(array.reshape(-1).view(np.uint8).data, deadline)

    def receive(
        self, deadline: float | None = None
    ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """The next message.

        Raises:
            EOFError: the other side is gone.
            TimeoutError: `deadline` (of `time.monotonic`) has passed.
            ProtocolError: what arrived is not a message.
        """
        magic, head_bytes, total = _FRAME.unpack(self._read(_FRAME.size, deadline))
        if magic != _MAGIC or head_bytes > _MAX_HEAD:
            raise ProtocolError(f"expected a message, received {magic!r}")
        arrays: dict[str, np.ndarray] = {}
        try:
            head = json.loads(self._read(head_bytes, deadline))
            empty = [(name, _empty(kind, shape)) for name, kind, shape in head.pop("arrays")]
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ProtocolError(f"the head of a message cannot be read: {error}") from error
        if sum(a.nbytes for _, a in empty) != total:
            raise ProtocolError("the arrays of a message do not have the announced size")
        for name, array in empty:
            if array.nbytes:
                self._read_into(array.reshape(-1).view(np.uint8).data, deadline)
            arrays[name] = array
        return head, arrays

    def _write(self, data: memoryview, deadline: float | None) -> None:
        while data:
            count = 0
            with contextlib.suppress(BlockingIOError):
                count = os.write(self._write_fd, data)
            if count == 0:
                _wait(self._writable, deadline)
            data = data[count:]

    def _read(self, size: int, deadline: float | None) -> bytes:
        buffer = bytearray(size)
        self._read_into(memoryview(buffer), deadline)
        return bytes(buffer)

    def _read_into(self, data: memoryview, deadline: float | None) -> None:
        while data:
            count = -1
            with contextlib.suppress(BlockingIOError):
                count = os.readv(self._read_fd, [data])
            if count == 0:
                raise EOFError("the other side is gone")
            if count < 0:
                _wait(self._readable, deadline)
            data = data[max(0, count) :]


def _wait(poll: "select.poll", deadline: float | None) -> None:
    if deadline is None:
        poll.poll()
        return
    remaining = deadline - time.monotonic()
    if remaining <= 0 or not poll.poll(remaining * 1000):
        raise TimeoutError


def _plain(name: str, array: np.ndarray) -> np.ndarray:
    array = np.asarray(array, order="C")
    if array.dtype.kind not in _KINDS:
        raise TypeError(f"{name!r} holds {array.dtype}, which is not a plain number")
    return array


def _empty(kind: str, shape: list[int]) -> np.ndarray:
    dtype = np.dtype(kind)
    if dtype.kind not in _KINDS or any(not isinstance(n, int) or n < 0 for n in shape):
        raise ValueError(f"no plain array: {kind!r} {shape!r}")
    return np.empty(shape, dtype)


def _enlarge(fd: int) -> None:
    """A larger pipe halves the time to send a batch; as far as the system knows and allows it."""
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        with contextlib.suppress(OSError):
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
