"""Manifests: what they refuse, and that every option of a build comes back."""

import json
from dataclasses import asdict, fields

import pytest

from modelmill.line.manifest import VERSION, build_id, options_from, versions
from modelmill.line.options import BuildOptions
from modelmill.line.quantize import Recipe
from modelmill.quant.calibrate import Calibrate
from modelmill.quant.equalize import Equalize

RECIPE = Recipe(Equalize("weights", alpha=0.7), Calibrate("kl", "minmax"), None, None)
ASKED = {
    "model": "m.onnx", "card": "c.json", "data": "d.npz", "calib": None,
    "targets": ["ort_cpu", "openvino_cpu"], "precision": "w8a8", "calibrate": 17, "limit": 5,
    "max_drop": 0.25, "seed": 3, "flags": ["avx2"], "keep_float": ["conv1"], "simulate": 4,
    "timeout_s": 9.0, "allow_fallback": True, "algorithm": "qdrop", "first_last_bits": 0,
    "memory": 2**29, "objective": "latency", "effort": "high",
}  # fmt: skip


def written(folder, **changes):
    held = {"version": VERSION, "options": ASKED, "recipe": asdict(RECIPE)} | changes
    path = folder / "manifest.json"
    path.write_text(json.dumps(held))
    return path


def test_every_option_comes_back(tmp_path):
    found = options_from(written(tmp_path), tmp_path / "out")
    assert found == BuildOptions(
        model="m.onnx", card="c.json", data="d.npz", targets=("ort_cpu", "openvino_cpu"),
        out=tmp_path / "out", calibrate=17, limit=5, max_drop=0.25, seed=3, flags=("avx2",),
        keep_float=("conv1",), simulate=4, timeout_s=9.0, allow_fallback=True, recipe=RECIPE,
        algorithm="qdrop", first_last_bits=0, memory=2**29, objective="latency", effort="high",
    )  # fmt: skip


def test_a_manifest_from_before_there_were_algorithms(tmp_path):
    """It rounded to the nearest, whatever the drop: run again it must do just that."""
    new = ("algorithm", "first_last_bits", "memory", "objective", "effort")
    asked = {k: v for k, v in ASKED.items() if k not in new}
    recipe = {k: v for k, v in asdict(RECIPE).items() if k != "reconstruct"}
    found = options_from(written(tmp_path, options=asked, recipe=recipe), tmp_path / "out")
    assert found.algorithm == "round" and found.recipe == RECIPE and found.first_last_bits == 8


def test_no_option_is_forgotten():
    """What is not in a manifest is where to write, what Python alone can hold, or how to resume."""
    left_out = {f.name for f in fields(BuildOptions)} - set(ASKED)
    assert left_out == {"out", "resume", "recipe", "db", "transform", "attempts"}


@pytest.mark.parametrize(
    "text", ["", "[]", "3", "{}", '{"options": 1, "recipe": {}, "version": 1}', '{"version": 1}']
)
def test_what_is_no_manifest(tmp_path, text):
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(ValueError, match=r"m\.json is not a manifest"):
        options_from(tmp_path / "m.json", tmp_path)
    with pytest.raises(ValueError, match="is not a manifest"):
        options_from(tmp_path / "absent.json", tmp_path)


def test_a_newer_manifest(tmp_path):
    with pytest.raises(ValueError, match="newer modelmill; upgrade"):
        options_from(written(tmp_path, version=VERSION + 1), tmp_path)


@pytest.mark.parametrize("name", ["model", "data"])
def test_python_values_cannot_be_run_again(tmp_path, name):
    with pytest.raises(ValueError, match="Python value"):
        options_from(written(tmp_path, options=ASKED | {name: None}), tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"options": {k: v for k, v in ASKED.items() if k != "targets"}},
        {"options": ASKED | {"colour": "red"}},
        {"recipe": asdict(RECIPE) | {"calibrate": {"activations": "kl", "colour": "red"}}},
        {"recipe": None},
    ],
    ids=["an option lacks", "an option too many", "an option of a step too many", "no recipe"],
)
def test_a_manifest_changed_by_hand(tmp_path, changes):
    with pytest.raises(ValueError, match="manifest"):
        options_from(written(tmp_path, **changes), tmp_path)


def test_ids_and_versions():
    assert build_id({"a": 1, "b": 2}) == build_id({"b": 2, "a": 1}) != build_id({"a": 1, "b": 3})
    found = versions()
    import numpy
    import torch

    assert found["numpy"] == numpy.__version__ and found["torch"] == torch.__version__
