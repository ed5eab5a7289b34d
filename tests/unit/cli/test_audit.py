"""audit: what it prints, and which code it leaves."""

import json

import pytest

FEW = ("--noise", "resize", "--noise", "channel_order", "--workers", "1")


def test_table(run, photos, tmp_path):
    out = tmp_path / "out"
    result = run("audit", photos.model, "-d", photos.data, "-o", out, *FEW, "--all")
    assert result.exit_code == 0
    for word in ("coloured on executor, 40 images, top-1 100.00", "opencv-nearest", "(mistake)",
                 "costs most (resize)", "--deployed DEVICE.json", "audit.html"):  # fmt: skip
        assert word in result.stdout, word
    again = run("audit", photos.model, "-d", photos.data, "-o", out, *FEW)
    assert again.exit_code == 2 and "--resume" in again.stderr


def test_json_and_the_gate(run, photos, tmp_path):
    out = tmp_path / "out"
    base = ("audit", photos.model, "--task", "classification", "-d", photos.data, *FEW)
    result = run(*base, "-o", out, "--format", "json", "--tolerance", "0.005")
    held = json.loads(result.stdout)
    assert result.exit_code == 1 and not held["accepted"] and held["tolerance"] == 0.005
    assert held == json.loads((out / "audit.json").read_text())
    result = run(*base, "-o", out, "--resume", "--tolerance", "1")
    assert result.exit_code == 0 and "TOLERANCE" not in result.stdout


def test_device(run, photos, tmp_path):
    held = json.loads(photos.card.read_text())
    held["input"]["color"] = "BGR"
    (tmp_path / "device.json").write_text(json.dumps(held))
    base = ("audit", photos.model, "-d", photos.data, "--workers", "1")
    more = ("--deployed", tmp_path / "device.json", "-o", tmp_path / "out", "--tolerance", "0.01")
    result = run(*base, *more, "--fix")
    assert result.exit_code == 1
    assert "this stage costs the accuracy (channel order)" in result.stdout
    assert "fixed (fixed.onnx, fixed.json)" in result.stdout


@pytest.mark.parametrize(
    "words, said",
    [
        (["--noise", "blur"], "unknown noise 'blur'"),
        (["--task", "detection"], "the card says classification"),
        (["-t", "ort_cpu", "--runtime", "openvino"], "Name one engine at most"),
        (["--with", "resize=nothing"], "no option 'nothing'"),
        (["--card", "gone.json"], "does not exist"),
    ],
)
def test_wrong_input(run, photos, tmp_path, words, said):
    result = run("audit", photos.model, "-d", photos.data, "-o", tmp_path / "out", *words)
    assert result.exit_code == 2 and said in result.stderr


def test_no_such_data(run, photos, tmp_path):
    result = run("audit", photos.model, "-d", "nowhere", "-o", tmp_path / "out")
    assert result.exit_code == 2 and "nowhere does not exist" in result.stderr
