"""scaling: how levels 0 to 255 become the network's float input, x = (level * scale - mean) / std.

Devices fuse the three operations into one, subtract the mean in whole levels, shift by 8 where 255
is meant, or hand over 8 or 16 bits.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from modelmill.audit.noise import LeftOut, Noise, Offer, Option, Subject
from modelmill.audit.pipeline import Pipeline, Step
from modelmill.tasks.card import Input
from modelmill.tasks.images import Floats, Pixels, scaled


def fused(pixels: Pixels, spec: Input) -> Floats:
    """One multiplication and one addition: level * (scale / std) - mean / std."""
    std, mean = np.array(spec.std), np.array(spec.mean)
    factor, term = (spec.scale / std).astype(np.float32), (mean / std).astype(np.float32)
    plain = scaled(pixels, replace(spec, scale=1.0, mean=(0.0,) * len(mean), std=(1.0,) * len(std)))
    shape = (-1, 1, 1) if spec.layout == "NCHW" else (-1,)
    plain *= factor.reshape(shape)
    plain -= term.reshape(shape)
    return plain


def whole_mean(pixels: Pixels, spec: Input) -> Floats:
    """The mean rounded to a whole level and taken off before scaling."""
    mean = tuple(float(np.rint(m / spec.scale)) * spec.scale for m in spec.mean)
    return scaled(pixels, replace(spec, mean=mean))


def eight_bits(pixels: Pixels, spec: Input) -> Floats:
    """The input on 256 equal steps, one scale and zero point for all channels, which cover what
    levels 0 to 255 can give.
    """
    ends = scaled(np.array([[[[0] * spec.channels, [255] * spec.channels]]], np.uint8), spec)
    low, high = float(min(ends.min(), 0)), float(max(ends.max(), 0))
    step = np.float32((high - low) / 255)
    zero = np.rint(-low / step)
    codes = np.clip(np.rint(scaled(pixels, spec) / step) + zero, 0, 255)
    found: Floats = ((codes - zero) * step).astype(np.float32)
    return found


def sixteen_bits(pixels: Pixels, spec: Input) -> Floats:
    """The input rounded to float16."""
    return scaled(pixels, spec).astype(np.float16).astype(np.float32)


def mixed_layout(pixels: Pixels, spec: Input) -> Floats:
    """The bytes of one layout read as the other."""
    x = scaled(pixels, spec)
    other = "NHWC" if spec.layout == "NCHW" else "NCHW"
    return np.ascontiguousarray(scaled(pixels, replace(spec, layout=other))).reshape(x.shape)


FEEDS: tuple[tuple[str, str, Any, bool], ...] = (
    ("fused", "one multiplication and one addition per level", fused, False),
    ("whole-mean", "mean rounded to a whole level", whole_mean, False),
    ("8-bit-input", "input on 256 steps for all channels", eight_bits, False),
    ("float16-input", "input rounded to float16", sixteen_bits, False),
    ("mixed-layout", "bytes of one layout read as the other", mixed_layout, True),
)


def _set(pipeline: Pipeline, step: Step) -> Pipeline:
    return replace(pipeline, feed=step)


def _numbers(pipeline: Pipeline, scale: float, mean: Any = None, std: Any = None) -> Pipeline:
    spec = pipeline.card.input
    changed = replace(spec, scale=scale, mean=mean or spec.mean, std=std or spec.std)
    return replace(pipeline, card=replace(pipeline.card, input=changed))


def options(subject: Subject) -> Offer:
    spec = subject.card.input
    n = spec.channels
    found: list[Option | LeftOut] = []
    for name, words, run, wrong in FEEDS:
        if name == "mixed-layout" and n == 1:
            found.append(LeftOut(name, "with one channel both layouts are the same"))
        elif name == "whole-mean" and not any(spec.mean):
            found.append(LeftOut(name, "the card has no mean"))
        else:
            step = partial(_set, step=Step(name, run))
            found.append(Option(name, words, step, wrong))
    if abs(spec.scale * 255 - 1) < 1e-6:
        change = partial(_numbers, scale=1 / 256)
        found.append(Option("shift", "levels divided by 256, a shift, for 255", change))
    else:
        found.append(LeftOut("shift", f"the card's scale is {spec.scale:g}, not 1/255"))
    plain = ((0.0,) * n, (1.0,) * n)
    if (spec.mean, spec.std) != plain:
        change = partial(_numbers, scale=spec.scale, mean=plain[0], std=plain[1])
        found.append(Option("no-mean-std", "mean and std forgotten", change, mistake=True))
    else:
        found.append(LeftOut("no-mean-std", "the card has no mean and std"))
    return found


PLUGIN = Noise("scaling", "scaling", "how levels become the network's input", options)
