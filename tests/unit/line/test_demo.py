"""The demo: what it leaves, that it can be repeated, and what it never touches."""

import json
import shutil

import numpy as np
import pytest

from modelmill.line.demo import DemoOptions, demo, train


def test_what_it_leaves(demo_build):
    for name in (
        "digits.onnx", "digits.json", "train.npz", "test.npz", "report.json", "report.html",
        "manifest.json", "records.db", "artifacts/ort_cpu.onnx", "artifacts/openvino_cpu.onnx",
    ):  # fmt: skip
        assert (demo_build / name).stat().st_size > 0, name
    report = json.loads((demo_build / "report.json").read_bytes())
    assert report["float"]["n"] == 500
    assert report["float"]["score"] > 0.8  # after one epoch; chance is 0.1
    assert [d["target"] for d in report["deployments"]] == ["ort_cpu", "openvino_cpu"]
    assert all(d["failed"] is None for d in report["deployments"])


def test_no_image_trains_and_scores(demo_build):
    with np.load(demo_build / "train.npz") as a, np.load(demo_build / "test.npz") as b:
        assert len(a["x"]) == 1297 and len(b["x"]) == 500
        assert set(a["y"]) == set(b["y"]) == set(range(10))
        trained = {image.tobytes() for image in a["x"]}
        assert sum(image.tobytes() in trained for image in b["x"]) == 0


def test_the_same_seed_trains_the_same_network(demo_build, tmp_path):
    shutil.copy(demo_build / "digits.json", tmp_path)
    with np.load(demo_build / "train.npz") as arrays:
        np.savez(tmp_path / "train.npz", x=arrays["x"][:128], y=arrays["y"][:128])
    first, second, other = (train(tmp_path, 1, seed).state_dict() for seed in (0, 0, 1))
    assert all((first[name] == second[name]).all() for name in first)
    assert not all((first[name] == other[name]).all() for name in first)


def test_a_second_demo_replaces_the_first(demo_build, quick, tmp_path):
    out = shutil.copytree(demo_build, tmp_path / "again")
    (out / "left over").write_text("")
    demo(DemoOptions(out, ("ort_cpu",), epochs=1, simulate=5))
    assert not (out / "left over").exists()
    same = "artifacts/ort_cpu.onnx"
    assert (out / same).read_bytes() == (demo_build / same).read_bytes()


def test_what_is_not_a_demo_is_never_removed(tmp_path):
    (tmp_path / "thesis.tex").write_text("ten years of work")
    with pytest.raises(ValueError, match="no demo made"):
        demo(DemoOptions(tmp_path))
    assert (tmp_path / "thesis.tex").read_text() == "ten years of work"
    with pytest.raises(ValueError, match="no demo made"):
        demo(DemoOptions(tmp_path / "thesis.tex"))
    with pytest.raises(ValueError, match="cannot make"):
        demo(DemoOptions(tmp_path / "thesis.tex" / "below"))


def test_without_scikit_learn(monkeypatch, tmp_path):
    import sys

    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ValueError, match=r"pip install 'modelmill\[demo\]'"):
        demo(DemoOptions(tmp_path / "out"))
