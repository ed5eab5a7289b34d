"""Score against latency of deployments on all platforms, from the records that builds file.

A build files its metric as "top1", "simulated_top1" and "float_top1" (see `line.filing`); the first
of these is what the engine gave. A deployment is the records of one build with one target.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

Json = dict[str, Any]
FLOAT = "float_"


def accuracies(records: Iterable[Json]) -> list[Json]:
    """By metric: every deployment that was scored and timed, best score first."""
    deployments: dict[tuple[str, str], dict[str, Json]] = {}
    for record in records:
        key = (record["build"], str(record["extra"].get("target", "")))
        deployments.setdefault(key, {}).setdefault(record["what"], record)
    found: dict[str, list[Json]] = {}
    for (build, target), held in deployments.items():
        for what in held:
            metric = what.removeprefix(FLOAT)
            scored = what.startswith(FLOAT) and metric in held and f"simulated_{metric}" in held
            if scored and "latency_p50_ms" in held:
                point = _point(held, metric)
                place = {"build": build, "target": target}
                found.setdefault(metric, []).append({**place, **point})
    return [
        {"metric": metric, "points": sorted(points, key=lambda p: -p["score"])}
        for metric, points in sorted(found.items(), key=lambda item: -len(item[1]))
    ]


def _point(held: dict[str, Json], metric: str) -> Json:
    scored, timed = held[metric], held["latency_p50_ms"]
    reference, size = held.get("float_latency_p50_ms"), held.get("artifact_bytes")
    extra = scored["extra"]
    return {
        "name": str(extra.get("model", "")),
        "precision": str(extra.get("precision", "")),
        "engine": f"{scored['engine']} {scored['version']}",
        "device": scored["device"],
        "threads": timed["threads"],
        "score": scored["value"],
        "images": scored["n"],
        "float_score": held[f"{FLOAT}{metric}"]["value"],
        "p50_ms": timed["value"],
        "float_p50_ms": reference and reference["value"],
        "bytes": size and size["value"],
        "when": scored["when"],
    }
