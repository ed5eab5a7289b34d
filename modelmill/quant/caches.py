"""Values of all calibration images, kept between the units of a reconstruction: in half precision,
in memory as far as a budget allows, on disk beyond it.

Peak memory: the budget; what does not fit lies in files that the system pages in row by row.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

HALF_LIMIT = 60000.0  # float16 ends at 65504


class Budget:
    """How many bytes the caches may hold in memory, and where they go beyond.

    Attributes: limit, held (now), peak (largest so far), spilled (bytes ever written to disk).
    """

    def __init__(self, limit: int, folder: Path | None) -> None:
        self.limit, self.folder = limit, folder
        self.held = self.peak = self.spilled = 0

    def room(self, shape: tuple[int, ...], kind: torch.dtype) -> tuple[Tensor, int, Path | None]:
        """An empty tensor, its bytes in memory, and the file it lies in if there was no room.

        Raises:
            ValueError: the disk is full, too.
        """
        size = int(np.prod(shape)) * kind.itemsize
        if self.held + size <= self.limit:
            self.held += size
            self.peak = max(self.peak, self.held)
            return torch.empty(shape, dtype=kind), size, None
        self.spilled += size
        try:
            with tempfile.NamedTemporaryFile(
                dir=self.folder, prefix="cache-", suffix=".bin", delete=False
            ) as file:
                path = Path(file.name)
                os.posix_fallocate(file.fileno(), 0, max(size, 1))  # a full disk is found here
            count = int(np.prod(shape))
            file_bytes = torch.from_file(str(path), shared=True, size=count, dtype=kind)
        except (OSError, RuntimeError) as error:
            raise ValueError(
                f"no room for {size / 2**20:,.0f} MiB of calibration values in "
                f"{self.folder or tempfile.gettempdir()}: {error}. Make room on the disk, allow "
                "more memory with --memory, or calibrate with fewer images with --calibrate"
            ) from error
        return file_bytes.view(shape), 0, path


class Cache:
    """One value, float16 (float32 where that cannot hold it), a row per image; four-dimensional
    values lie channels-last.
    """

    def __init__(self, budget: Budget, images: int) -> None:
        self.budget, self.images = budget, images
        self.filled = 0
        self._rows: Tensor | None = None
        self._size, self._path = 0, None  # type: int, Path | None

    def append(self, x: Tensor, where: Tensor | None = None) -> None:
        """The next rows, in order, or the rows `where`.

        Raises:
            ValueError: no room in memory or on disk.
        """
        held = x.permute(0, 2, 3, 1) if x.dim() == 4 else x
        small = not held.numel() or float(held.abs().amax()) < HALF_LIMIT
        if self._rows is None:
            self._open(tuple(held.shape[1:]), torch.float16 if small else torch.float32)
        elif not small and self._rows.dtype == torch.float16:
            before = self._rows.float()
            self.release()
            self._open(tuple(held.shape[1:]), torch.float32)
            self._rows[:] = before
        assert self._rows is not None
        if where is None:
            where = torch.arange(self.filled, self.filled + len(held))
        self._rows[where] = held.to(self._rows.dtype)
        self.filled += len(held)

    def _open(self, shape: tuple[int, ...], kind: torch.dtype) -> None:
        self._rows, self._size, self._path = self.budget.room((self.images, *shape), kind)

    @property
    def row_elements(self) -> int:
        """Elements of one image's row."""
        assert self._rows is not None
        return self._rows[0].numel()

    def rows(self, which: Tensor | slice) -> Tensor:
        """Those rows, float32, as the executor likes them: channels-last."""
        assert self._rows is not None
        x = self._rows[which].float()
        return x.permute(0, 3, 1, 2) if x.dim() == 4 else x

    def release(self) -> None:
        """Give the room back."""
        self.budget.held -= self._size
        if self._path is not None:
            self._path.unlink(missing_ok=True)
        self._rows, self._size, self._path = None, 0, None
