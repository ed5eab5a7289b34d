"""Predicted against measured latencies.

Every prediction that was stored is put beside the newest measurement of the same model on the same
platform. MAPE is the mean of |predicted - measured| / measured, Acc(10 %) the share within 10 % of
the measured one, coverage the share of measurements inside the interval. A prediction is `blind`
if it was made before that measurement: only these tell what the next prediction is worth.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np

Json = dict[str, Any]


def of_model(
    records: Iterable[Json], newest: Mapping[str, Json], platforms: Mapping[str, Json]
) -> list[Json]:
    """The newest prediction for each platform of one model, beside its newest measurement there."""
    found: dict[str, Json] = {}
    for record in records:  # the newest first
        point = _point(record)
        if point is not None and point["platform"] not in found:
            key = point["platform"]
            measured = newest.get(key)
            found[key] = {
                **point,
                "platform_name": platforms.get(key, {}).get("name", key),
                "measured_ms": measured and measured["p50_ms"],
                "error": measured and _error(point, measured),
            }
    return list(found.values())


def compared(
    records: Iterable[Json],
    newest: Mapping[tuple[str, str], Json],
    names: Mapping[str, Json],
    platforms: Mapping[str, Json],
) -> list[Json]:
    """By platform: the pairs, one per model (its newest prediction), and how good they are."""
    found: dict[str, dict[str, Json]] = {}
    waiting: dict[str, int] = {}
    for record in records:  # the newest first
        point = _point(record)
        if point is None:
            continue
        key, structure = point["platform"], record["subject"]
        pairs = found.setdefault(key, {})
        if structure in pairs:
            continue
        measured = newest.get((structure, key))
        if measured is None:
            waiting[key] = waiting.get(key, 0) + 1
            continue
        pairs[structure] = {
            **point,
            "model": structure,
            "name": names.get(structure, {}).get("name", ""),
            "family": names.get(structure, {}).get("family", ""),
            "measured_ms": measured["p50_ms"],
            "error": _error(point, measured),
            "blind": _moment(point["when"]) < _moment(measured["when"]),
        }
    return [
        {
            "platform": key,
            "platform_name": platforms.get(key, {}).get("name", key),
            "not_measured": waiting.get(key, 0),
            "all": scores(list(pairs.values())),
            "blind": scores([p for p in pairs.values() if p["blind"]]),
            "points": list(pairs.values()),
        }
        for key, pairs in sorted(found.items(), key=lambda item: -len(item[1]))
    ]


def scores(points: Sequence[Json]) -> Json:
    """n, and where there are any: mape, acc10, coverage (None where no interval was stored)."""
    if not points:
        return {"n": 0, "mape": None, "acc10": None, "coverage": None}
    apart = np.abs([p["error"] for p in points])
    inside = [
        p["low_ms"] <= p["measured_ms"] <= p["high_ms"] for p in points if p["low_ms"] is not None
    ]
    return {
        "n": len(points),
        "mape": float(apart.mean()),
        "acc10": float((apart <= 0.1).mean()),
        "coverage": float(np.mean(inside)) if inside else None,
    }


def _point(record: Json) -> Json | None:
    """A stored prediction; None where it does not name its platform."""
    extra = record["extra"]
    platform = extra.get("platform")
    if not isinstance(platform, str) or not record["value"] > 0:
        return None
    low, high = extra.get("low_ms"), extra.get("high_ms")
    whole = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (low, high))
    return {
        "platform": platform,
        "predicted_ms": record["value"],
        "low_ms": low if whole else None,
        "high_ms": high if whole else None,
        "when": record["when"],
    }


def _error(point: Json, measured: Json) -> float:
    return float(point["predicted_ms"] / measured["p50_ms"] - 1)


def _moment(when: str) -> datetime:
    return datetime.fromisoformat(when)
