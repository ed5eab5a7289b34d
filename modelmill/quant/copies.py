"""More pictures out of few: mirrored and shifted copies of the calibration images.

The tuning of a whole network asks the float network what it would have said, not a label, so any
picture like those that will come teaches something; from a thousand alone it learns too little.
Every second copy is mirrored; from number 2 on they are shifted, by up to a tenth, with reflected
borders.
"""

from __future__ import annotations

import torch
from torch import Tensor

REACH = 10  # shifts go up to one in so many pixels


def copy(x: Tensor, number: int, seed: int) -> Tensor:
    """Copy `number` of images of shape (N, C, H, W), 0 the images; the same seed gives the same."""
    made = x.flip(3) if number % 2 else x
    if number < 2:
        return made
    generator = torch.Generator().manual_seed(seed + number)
    height, width = x.shape[2:]
    down, right = height // REACH, width // REACH
    padded = torch.nn.functional.pad(made, (right, right, down, down), mode="reflect")
    tops = torch.randint(2 * down + 1, (len(x),), generator=generator).tolist()
    lefts = torch.randint(2 * right + 1, (len(x),), generator=generator).tolist()
    moved = [
        image[:, top : top + height, left : left + width]
        for image, top, left in zip(padded, tops, lefts, strict=True)
    ]
    return torch.stack(moved)


def copyable(x: Tensor) -> bool:
    """Whether these are pictures, and not too small to shift."""
    return x.dim() == 4 and x.is_floating_point()
