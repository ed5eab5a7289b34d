"""More pictures out of few: calibration images mirrored, shifted and mixed at random.

The tuning of a whole network asks the float network what it would have said, not a label, so any
picture like those that will come teaches something; from a thousand alone it learns too little.
Mixing two of them is mixup (Zhang et al. 2018, arXiv:1710.09412, equation 1) without its labels.
"""

from __future__ import annotations

import torch
from torch import Tensor

REACH = 10  # shifts go up to one in so many pixels
MIXED = 0.5  # share of pictures that are mixed with another


def augmented(x: Tensor, generator: torch.Generator, mixed: bool) -> Tensor:
    """Pictures (N, C, H, W), each mirrored or not, shifted by up to a tenth, with reflected
    borders, and, if `mixed`, half of them mixed with another; in the memory order of `x`.
    """
    n, shape = len(x), (len(x), 1, 1, 1)
    x = torch.where(torch.rand(shape, generator=generator) < 0.5, x.flip(3), x)
    height, width = x.shape[2:]
    down, right = height // REACH, width // REACH
    padded = torch.nn.functional.pad(x, (right, right, down, down), mode="reflect")
    tops = torch.randint(2 * down + 1, (n,), generator=generator).tolist()
    lefts = torch.randint(2 * right + 1, (n,), generator=generator).tolist()
    made = torch.empty_like(x)
    for image, (top, left) in enumerate(zip(tops, lefts, strict=True)):
        made[image] = padded[image, :, top : top + height, left : left + width]
    if not mixed:
        return made
    share = torch.rand(shape, generator=generator)
    share = torch.where(torch.rand(shape, generator=generator) < MIXED, share, torch.ones(()))
    return share * made + (1 - share) * made[torch.randperm(n, generator=generator)]


def is_picture(x: Tensor) -> bool:
    """Whether these are pictures."""
    return x.dim() == 4 and x.is_floating_point()
