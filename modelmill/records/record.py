"""A Record: one measured fact, with all that tells whether another may be put beside it."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime


def utc_now() -> str:
    """This moment as ISO 8601 in UTC, to the second: what `Record.when` holds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class Where:
    """The place of a measurement. Empty strings and `threads=0` say "does not apply"."""

    device: str
    engine: str = ""
    version: str = ""
    threads: int = 0
    isa: str = ""
    commit: str = ""


@dataclass(frozen=True)
class Record:
    """One measured fact.

    what     the quantity, with its unit in the name if it has one: "latency_p50_ms", "top1"
    value    finite
    unit     "ms", "MiB", "fraction", ...
    n        how many samples or images stand behind the value, at least 1
    spread   a measure of their scatter in the same unit (None: not measured)
    subject  fingerprint of the model that was measured
    when     ISO 8601 with a time zone, see `utc_now`
    build    the run that this fact belongs to
    extra    further facts that can be written as JSON: raw samples, batch, precision

    Raises:
        ValueError: a value that could not be read back as what was measured.
    """

    what: str
    value: float
    unit: str
    subject: str
    where: Where
    when: str
    n: int = 1
    spread: float | None = None
    build: str = ""
    extra: Mapping[str, object] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not self.what:
            raise ValueError("a record needs a name for what was measured")
        for label, number in (("value", self.value), ("spread", self.spread)):
            if number is not None and not math.isfinite(number):
                raise ValueError(
                    f"record {self.what!r}: {label} is {number}; record finite numbers only"
                )
        if not 1 <= self.n < 2**63:
            raise ValueError(f"record {self.what!r}: n is {self.n}; a fact has at least one sample")
        try:
            moment = datetime.fromisoformat(self.when)
        except ValueError:
            raise ValueError(f"record {self.what!r}: when={self.when!r} is not ISO 8601") from None
        if moment.tzinfo is None:
            raise ValueError(f"record {self.what!r}: when={self.when!r} has no time zone")
        try:
            json.dumps(dict(self.extra), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"record {self.what!r}: extra cannot be written as JSON: {error}"
            ) from None
