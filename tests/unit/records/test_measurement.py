"""The values of the latency database refuse what is no measurement."""

import dataclasses
import math

import pytest

from modelmill.records import Measurement, ModelFacts, Platform, utc_now

P = Platform("ort_cpu", "1.32.0", "AMD EPYC", "avx2")
M = Measurement("aa", P, 1.0, 2.0, 3.0, 5, 0.01, utc_now())


def test_names_of_platforms():
    assert P.name == "ort_cpu float"
    full = dataclasses.replace(P, precision="w8a8", threads=4, batch=2)
    assert full.name == "ort_cpu w8a8, 4 threads, batch 2"


def test_every_field_of_a_platform_is_in_its_key():
    others = [
        dataclasses.replace(P, **{f.name: 2 if f.type == "int" else "other"})
        for f in dataclasses.fields(P)
    ]
    assert len({p.key for p in [P, *others]}) == 8
    assert dataclasses.replace(P).key == P.key and len(P.key) == 16


def test_what_makes_a_measurement_another():
    changes = {
        "model": "bb", "platform": dataclasses.replace(P, threads=2), "p50_ms": 1.5, "p90_ms": 2.5,
        "p99_ms": 3.5, "n": 6, "noise": 0.02, "when": "2026-01-01T00:00:00Z", "machine": "other",
        "reference_ms": 1.0,
    }  # fmt: skip
    keys = {dataclasses.replace(M, **{name: value}).key for name, value in changes.items()}
    assert len({M.key, *keys}) == len(changes) + 1
    assert dataclasses.replace(M, samples_ms=((1.0,),), extra={"a": 1}).key == M.key


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"p50_ms": 0.0}, "p50_ms is 0.0; a time is finite and above 0"),
        ({"p99_ms": math.inf}, "p99_ms is inf"),
        ({"reference_ms": -1.0}, "reference_ms is -1.0"),
        ({"p50_ms": 2.5}, "must rise"),
        ({"noise": math.nan}, "noise is nan"),
        ({"n": 0}, "at least one sample"),
        ({"when": "yesterday"}, "not ISO 8601"),
        ({"when": "2026-01-01T00:00:00"}, "no time zone"),
        ({"extra": {"a": math.nan}}, "cannot be written as JSON"),
        ({"extra": {"a": object()}}, "cannot be written as JSON"),
        ({"model": ""}, "needs the structure"),
    ],
)
def test_what_is_no_measurement(change, said):
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(M, **change)


def test_what_is_no_platform_and_no_model():
    with pytest.raises(ValueError, match="needs a target"):
        dataclasses.replace(P, target="")
    with pytest.raises(ValueError, match="at least 1"):
        dataclasses.replace(P, batch=0)
    with pytest.raises(ValueError, match="needs its structure"):
        ModelFacts("")
    with pytest.raises(ValueError, match="macs is nan"):
        ModelFacts("aa", facts={"macs": math.nan})
