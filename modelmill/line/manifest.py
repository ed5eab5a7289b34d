"""What a build was made from: enough to run it again to the same artifact bytes, and to tell when
it cannot be.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import modelmill
from modelmill import ir, plugins
from modelmill.line.options import BuildOptions
from modelmill.line.quantize import Recipe
from modelmill.line.report import Report
from modelmill.line.source import Images, Source
from modelmill.line.store import Json, Store, file_hash
from modelmill.quant.bias_correction import BiasCorrection
from modelmill.quant.calibrate import Calibrate
from modelmill.quant.equalize import Equalize
from modelmill.quant.protect import Protect
from modelmill.records.machine import this_machine

VERSION = 1
PACKAGES = (
    "numpy",
    "torch",
    "onnx",
    "onnx-ir",
    "onnxruntime",
    "openvino",
    "pillow",
    "opencv-python-headless",
)


def keys(options: BuildOptions, source: Source, images: Images, graph: ir.Graph) -> Json:
    """What every step of this build depends on, as JSON; steps add what is their own."""
    return {
        "modelmill": modelmill.__version__,
        "model": ir.fingerprint(graph),
        "card": source.card.to_json(),
        "calibration": images.calibration.fingerprint(),
        "evaluation": images.evaluation.fingerprint(),
        "precision": options.precision,
        "seed": options.seed,
        "first_last_bits": options.first_last_bits,
        "recipe": recipe_json(options.recipe) if options.recipe is not None else None,
        "keep_float": list(options.keep_float),
        "versions": versions(),
        "flags": list(options.flags if options.flags is not None else this_machine().flags),
    }


def recipe_json(recipe: Recipe) -> Json:
    """The recipe as JSON: options by step; of the reconstruction also the name of its file."""
    held, step = asdict(recipe), recipe.reconstruct
    if step is not None:
        held["reconstruct"] = {"step": type(step).__module__.rpartition(".")[2], **asdict(step)}
    return held


def recipe_from(held: Json) -> Recipe:
    """The inverse of `recipe_json`; of older manifests, too, which know no reconstruction.

    Raises:
        KeyError, TypeError, ValueError: not a recipe as this modelmill writes it.
    """
    named = {"reconstruct": None, **held}["reconstruct"]
    reconstruct = None
    if named is not None:
        options = {name: value for name, value in named.items() if name != "step"}
        reconstruct = plugins.load("modelmill.quant", named["step"])(**options)
    return Recipe(
        Equalize(**held["equalize"]) if held["equalize"] else None,
        Calibrate(**held["calibrate"]),
        BiasCorrection(**held["bias_correction"]) if held["bias_correction"] else None,
        Protect(**held["protect"]) if held["protect"] else None,
        reconstruct,
        held.get("effort", "normal"),
    )


def build_id(key: Json) -> str:
    """Short hash of what a build depends on."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]


def versions(more: Sequence[str] = ()) -> dict[str, str]:
    """Versions of the packages that numbers depend on, and of `more`; those not installed are left
    out.
    """
    found = {"python": platform.python_version()}
    for name in (*PACKAGES, *more):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def manifest(
    options: BuildOptions, source: Source, images: Images, key: Json, report: Report, store: Store
) -> Json:
    """The manifest as JSON: resolved options, inputs by hash, machine, versions, and the artifacts
    by hash.
    """
    machine = this_machine()
    named = {d.qdq or d.artifact for d in report.deployments}
    named |= {name for d in report.deployments for name in d.exports}
    artifacts = {
        name: file_hash(store.path(name)) for name in sorted(named) if store.path(name).is_file()
    }
    return {
        "version": VERSION,
        "build": build_id(key),
        "options": {
            "model": _place(options.model),
            "card": _place(options.card) if not hasattr(options.card, "to_json") else None,
            "data": _place(options.data),
            "calib": _place(options.calib),
            "targets": list(options.targets),
            "precision": options.precision,
            "calibrate": options.calibrate,
            "limit": options.limit,
            "max_drop": options.max_drop,
            "seed": options.seed,
            "flags": list(options.flags) if options.flags is not None else None,
            "keep_float": list(options.keep_float),
            "simulate": options.simulate,
            "timeout_s": options.timeout_s,
            "allow_fallback": options.allow_fallback,
            "algorithm": options.algorithm,
            "first_last_bits": options.first_last_bits,
            "memory": options.memory,
            "objective": options.objective,
            "effort": options.effort,
        },
        "inputs": {
            "card": source.card.to_json(),
            "model": key["model"],
            "calibration": {"images": len(images.calibration), "sha256": key["calibration"]},
            "evaluation": {"images": len(images.evaluation), "sha256": key["evaluation"]},
        },
        "recipe": key["recipe"],
        "machine": asdict(machine),
        "versions": key["versions"] | {"modelmill": key["modelmill"]},
        "artifacts": artifacts,
        "steps": {"done": store.redone, "reused": store.reused},
    }


def _place(value: Any) -> str | None:
    """A path or spec as the user gave it, made absolute where it is a file; None for values only
    Python can hold.
    """
    if value is None or not isinstance(value, str | Path):
        return None
    path = Path(value)
    return str(path.resolve()) if path.exists() else str(value)


def options_from(
    manifest_path: Path, out: Path, given: Mapping[str, Any] | None = None
) -> BuildOptions:
    """The options of an earlier build, to run it again into `out`; `given` ones take the place of
    its own.

    Raises:
        ValueError: not a manifest, a newer version, or it was built from Python values that a file
        cannot name.
    """
    try:
        held = json.loads(manifest_path.read_bytes())
        asked, recipe = {**held["options"], **(given or {})}, held["recipe"]
        asked["attempts"] = held.get("attempts")
        newer = held["version"] > VERSION
        named = asked["model"] is not None and asked["data"] is not None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{manifest_path} is not a manifest of a build: {error}") from error
    if newer:
        raise ValueError(
            f"{manifest_path} was written by a newer modelmill; upgrade: pip install -U modelmill"
        )
    if not named:
        raise ValueError(
            f"{manifest_path}: the model or the data was a Python value; run build() from Python "
            "again"
        )
    try:
        return _options(asked, recipe, out)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{manifest_path} is not a manifest as this modelmill writes it: {error!r}"
        ) from error


def _options(asked: Json, recipe: Json, out: Path) -> BuildOptions:
    # Before there were algorithms, every build rounded to the nearest.
    listed = {"algorithm": "round", **asked, "targets": tuple(asked["targets"])}
    listed["keep_float"] = tuple(asked["keep_float"])
    listed["flags"] = tuple(asked["flags"]) if asked["flags"] is not None else None
    return BuildOptions(out=out, recipe=recipe_from(recipe), **listed)
