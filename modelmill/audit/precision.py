"""precision: the network in 16 bits, or in the 8 bits of a target.

16 bits: weights and every value between two operators are float16 or bfloat16, by torch's own
kernels of that type (sums inside a kernel are wider). int8: quantized by the usual recipe for the
target, and run on its engine where there is one.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from modelmill.audit.noise import LeftOut, Noise, Offer, Option, Subject
from modelmill.audit.pipeline import HALVES, Network, Pipeline


def _set(pipeline: Pipeline, precision: Network) -> Pipeline:
    return replace(pipeline, precision=precision)


def options(subject: Subject) -> Offer:
    found: list[Option | LeftOut] = []
    for name in HALVES:
        if subject.engine is not None:
            why = f"16 bits are computed by the executor's kernels, not by {subject.engine}"
            found.append(LeftOut(name, f"{why}; audit without -t"))
        else:
            network = replace(subject.network, name=name)
            words = f"torch's kernels in {name}"
            found.append(Option(name, words, partial(_set, precision=network)))
    for network in subject.integer:
        where = f"on {network.engine}" if network.engine is not None else "simulated exactly"
        found.append(Option(network.name, f"quantized, {where}", partial(_set, precision=network)))
    return [*found, *(LeftOut(name, why) for name, why in subject.refused)]


PLUGIN = Noise("precision", "precision", "16 bits, and the 8 bits of each target", options)
