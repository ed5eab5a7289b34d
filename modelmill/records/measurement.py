"""A latency as it is stored: of which model, on which platform, how long, how noisy."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from functools import cached_property


@dataclass(frozen=True)
class Platform:
    """Where and how a model ran: all that two times must share to be put side by side.

    target     whose file was run, and with which engine: "ort_cpu"
    version    of the engine
    device     name of the processor
    isa        its best instruction set for 8-bit arithmetic, as `Machine.isa` words it
    threads    of the engine
    precision  "float", bits of weights and activations such as "w8a8", or "qdq" for a file that
               holds its own quantization
    batch      what an open batch was set to; 1 where the file says it
    """

    target: str
    version: str
    device: str
    isa: str
    threads: int = 1
    precision: str = "float"
    batch: int = 1

    def __post_init__(self) -> None:
        if not self.target or not self.precision:
            raise ValueError(f"a platform needs a target and a precision: {self}")
        if self.threads < 1 or self.batch < 1:
            raise ValueError(f"platform {self.target!r}: threads and batch must be at least 1")

    @property
    def name(self) -> str:
        """What a person calls it: "ort_cpu w8a8, 2 threads, batch 4"."""
        threads = f", {self.threads} threads" if self.threads != 1 else ""
        return f"{self.target} {self.precision}{threads}" + (
            f", batch {self.batch}" if self.batch != 1 else ""
        )

    @cached_property
    def key(self) -> str:
        """16 hexadecimal digits that stand for all fields."""
        return _digest(asdict(self), 16)


PLATFORM = tuple(f.name for f in fields(Platform))  # as its columns are named everywhere
# in `Measurement.extra`
KERNELS = "kernels"  # microseconds by node of the model
CALM = "calm_ms"  # of the inferences that nobody disturbed
PREDICTED = "latency_predicted_p50_ms"  # what a record of a predicted latency says


@dataclass(frozen=True)
class ModelFacts:
    """A model as the database knows it.

    structure  what `ir.structure` says of it
    name       for people; the first one given is kept
    family     "resnet", ...; "" unknown
    skeleton   `ir.skeleton` of it; b"" unknown
    facts      numbers: macs, params, bytes ...
    """

    structure: str
    name: str = ""
    family: str = ""
    skeleton: bytes = b""
    facts: Mapping[str, float] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not self.structure:
            raise ValueError(f"model {self.name!r}: a stored model needs its structure")
        for name, number in self.facts.items():
            if not math.isfinite(number):
                raise ValueError(f"model {self.name!r}: {name} is {number}; store finite numbers")


@dataclass(frozen=True)
class Measurement:
    """How long one inference of a model took on a platform, in milliseconds.

    model         structure of the model
    samples_ms    raw times, one tuple per block; () where they were not kept
    p50_ms, p90_ms, p99_ms   quantiles of all samples
    n             number of samples behind them
    noise         part by which the p50 may be off: how the medians of the blocks scatter, and how
                  much slower than at its calmest the machine was
    when          ISO 8601 with a time zone, see `utc_now`
    machine       the computer, in words
    reference_ms  p50 of a reference model in the same turns; None: there was none
    extra         further facts that can be written as JSON

    Raises:
        ValueError: numbers that are no times, or what could not be read back.
    """

    model: str
    platform: Platform
    p50_ms: float
    p90_ms: float
    p99_ms: float
    n: int
    noise: float
    when: str
    machine: str = ""
    reference_ms: float | None = None
    samples_ms: tuple[tuple[float, ...], ...] = ()
    extra: Mapping[str, object] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        what = f"measurement of {self.model[:12]!r} on {self.platform.name}"
        if not self.model:
            raise ValueError(f"{what}: a measurement needs the structure of its model")
        times = {"p50_ms": self.p50_ms, "p90_ms": self.p90_ms, "p99_ms": self.p99_ms}
        if self.reference_ms is not None:
            times["reference_ms"] = self.reference_ms
        for name, number in times.items():
            if not (math.isfinite(number) and number > 0):
                raise ValueError(f"{what}: {name} is {number}; a time is finite and above 0")
        if not self.p50_ms <= self.p90_ms <= self.p99_ms:
            raise ValueError(f"{what}: p50, p90 and p99 must rise: {times}")
        if not (math.isfinite(self.noise) and self.noise >= 0):
            raise ValueError(f"{what}: noise is {self.noise}; it is finite and not below 0")
        if not 1 <= self.n < 2**63:
            raise ValueError(f"{what}: n is {self.n}; a measurement has at least one sample")
        try:
            zone = datetime.fromisoformat(self.when).tzinfo
        except ValueError:
            raise ValueError(f"{what}: when={self.when!r} is not ISO 8601") from None
        if zone is None:
            raise ValueError(f"{what}: when={self.when!r} has no time zone")
        try:
            json.dumps(dict(self.extra), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{what}: extra cannot be written as JSON: {error}") from None

    @cached_property
    def key(self) -> str:
        """32 hexadecimal digits: the same measurement has the same wherever it is stored.

        The quantiles stand for the samples: a copy without them is the same measurement.
        """
        facts = (self.model, self.platform.key, self.when, self.machine, self.n)
        times = (self.p50_ms, self.p90_ms, self.p99_ms, self.noise, self.reference_ms)
        return _digest([*facts, *(None if t is None else float(t).hex() for t in times)], 32)


def _digest(content: object, digits: int) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:digits]
