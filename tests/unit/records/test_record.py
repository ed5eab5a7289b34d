"""A record refuses what could not be read back as the fact that was measured."""

import dataclasses
from datetime import datetime, timedelta

import numpy as np
import pytest

from modelmill.records import Record, Where, utc_now

GOOD = Record("top1", 0.881, "fraction", "abc", Where("cpu"), "2026-01-02T03:04:05+00:00")


def test_now_is_a_moment_with_a_zone():
    assert datetime.fromisoformat(utc_now()).utcoffset() == timedelta(0)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"what": ""}, "needs a name"),
        ({"value": float("nan")}, "'top1': value is nan"),
        ({"value": np.float32("inf")}, "value is inf"),
        ({"spread": float("inf")}, "spread is inf"),
        ({"n": 0}, "n is 0"),
        ({"n": 2**63}, "n is 9223372036854775808"),
        ({"when": "yesterday"}, "not ISO 8601"),
        ({"when": "2026-01-02T03:04:05"}, "no time zone"),
        ({"extra": {"a": np.zeros(2)}}, "extra cannot be written as JSON"),
        ({"extra": {"a": float("nan")}}, "extra cannot be written as JSON"),
    ],
)
def test_wrong_facts(change, says):
    with pytest.raises(ValueError, match=says):
        dataclasses.replace(GOOD, **change)


def test_records_are_values():
    assert dataclasses.replace(GOOD) == GOOD and len({GOOD, dataclasses.replace(GOOD)}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        GOOD.value = 1.0
