"""eval, bench, compare, inspect, check, doctor: what they print and which code they leave."""

import json

import pytest

ENGINES = ("onnxruntime", "openvino")
pytestmark = pytest.mark.usefixtures("quick")


def as_json(result):
    return json.loads(result.stdout)


def test_inspect(run, tiny):
    result = run("inspect", tiny.model, "--nodes")
    assert result.exit_code == 0
    for word in ("input x: Nx1x8x8 float32", "output y: Nx4 float32", "GlobalAveragePool", "Gemm"):
        assert word in result.stdout
    found = as_json(run("inspect", tiny.model, "--format", "json"))
    weights = 8 * 9 + 8 + 8 * 8 * 9 + 8 + 4 * 8 + 4
    assert found["params"] == weights
    assert found["macs"] == 16 * (8 * 9 + 8 * 8 * 9) + 4 * 8


def test_check(run, tiny):
    result = run("check", tiny.model, "-t", "ort_cpu", "-t", "openvino_cpu", "--all")
    assert result.exit_code == 0
    assert "tiny for ort_cpu w8a8" in result.stdout and "rule Conv" in result.stdout


def test_check_tells_the_guard(run, tiny):
    result = run("check", tiny.model, "-t", "ort_cpu", "--cpu-flags", "avx2")
    assert result.exit_code == 0 and "weights have 7 bits" in result.stdout
    result = run("check", tiny.model, "-t", "ort_cpu", "--cpu-flags", "avx2,avx512_vnni")
    assert "weights have 7 bits" not in result.stdout


def test_cpu_flags_from_a_file(run, tiny, tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor : 0\nmodel name : Old\nflags : sse4_1 avx2\n")
    result = run("check", tiny.model, "-t", "ort_cpu", "--cpu-flags", cpuinfo)
    assert "weights have 7 bits" in result.stdout
    cpuinfo.write_text("nothing here")
    result = run("check", tiny.model, "-t", "ort_cpu", "--cpu-flags", cpuinfo)
    assert result.exit_code == 2 and "/proc/cpuinfo" in result.stderr


@pytest.mark.parametrize("text", ["", "AVX2!", "avx2;fma", "/no/such/file"])
def test_cpu_flags_that_are_none(run, tiny, text):
    result = run("check", tiny.model, "-t", "ort_cpu", "--cpu-flags", text)
    assert result.exit_code == 2 and "--cpu-flags" in result.stderr


def test_check_finds_what_stays_float(run, tiny, tmp_path):
    chip = tmp_path / "chip.py"
    chip.write_text(
        "from dataclasses import replace\n"
        "from modelmill.targets.ort_cpu import PLUGIN as ORT\n"
        "rules = tuple(r for r in ORT.rules if r.op != 'Conv')\n"
        "PLUGIN = replace(ORT, name='chip', rules=rules)\n"
    )
    result = run("check", tiny.model, "-t", chip)
    assert result.exit_code == 1
    assert "has weights and would run in float" in result.stdout
    found = as_json(run("check", tiny.model, "-t", chip, "--format", "json"))
    assert [v["op"] for v in found[0]["heavy"]] == ["Conv", "Conv"]


def test_check_needs_a_target(run, tiny):
    assert run("check", tiny.model).exit_code == 2


def test_eval(run, tiny):
    result = run("eval", tiny.model, "-t", "ort_cpu", "-d", tiny.data, "--format", "json")
    assert result.exit_code == 0
    found = as_json(result)
    assert found["value"] == 1.0 and found["n"] == 60 and found["runtime"] == "onnxruntime"


def test_eval_as_a_gate(run, tiny):
    asked = ("eval", tiny.model, "--runtime", "openvino", "-d", tiny.data)
    assert run(*asked, "--min", "1.0").exit_code == 0
    result = run(*asked, "--min", "1.01")
    assert result.exit_code == 1 and "below 1.01" in result.stderr


@pytest.mark.parametrize("engines", [(), ("-t", "ort_cpu", "--runtime", "openvino")])
def test_eval_wants_one_engine(run, tiny, engines):
    result = run("eval", tiny.model, *engines, "-d", tiny.data)
    assert result.exit_code == 2 and "one engine" in result.stderr


def test_bench(run, tiny, demo_build):
    result = run("bench", tiny.model, "-t", "ort_cpu", "-t", "openvino_cpu")
    assert result.exit_code == 0
    for word in ("tiny on onnxruntime", "tiny on openvino", "reference", "normal random numbers"):
        assert word in result.stdout
    asked = ("bench", tiny.model, demo_build / "digits.onnx", "-t", "ort_cpu", "--format", "json")
    result = run(*asked)
    found = as_json(result)
    assert result.exit_code == 1 and found["accepted"] is False  # the larger network is slower
    assert found["rows"][1]["speedup"]["verdict"] == "slower"


def test_compare_with_itself(run, tiny):
    result = run("compare", tiny.model, "-t", "ort_cpu", "-t", "openvino_cpu", "-d", tiny.data)
    assert result.exit_code == 0 and "no significant difference" in result.stdout


def test_compare_finds_a_worse_one(run, tiny, make_tiny, tmp_path):
    other = make_tiny(tmp_path, hair=True)  # another network, right on other images
    result = run("compare", tiny.model, other.model, "-t", "ort_cpu", "-d", tiny.data)
    assert result.exit_code == 1 and "candidate: worse" in result.stdout
    result = run(
        "compare", other.model, tiny.model, "-t", "ort_cpu", "-d", tiny.data, "--format", "json"
    )
    assert result.exit_code == 0 and as_json(result)["verdict"] == "better"


def test_compare_needs_two_sides(run, tiny):
    assert run("compare", tiny.model, "-t", "ort_cpu", "-d", tiny.data).exit_code == 2


def test_doctor(run, engines, monkeypatch):
    """What the engines were found to be is printed either way."""
    monkeypatch.setattr("modelmill.runtimes.doctor", lambda: engines)
    result = run("doctor")
    assert result.exit_code == 0
    for word in (*ENGINES, "torch", "pycocotools", "A build is possible here."):
        assert word in result.stdout
    found = as_json(run("doctor", "--format", "json"))
    assert {e["name"] for e in found["engines"]} >= set(ENGINES) and found["works"]


def test_doctor_without_an_engine(run, monkeypatch):
    from modelmill.runtimes import EngineStatus

    none = [EngineStatus("onnxruntime", False, "", ">=1,<2", False, "", "pip install x", "")]
    monkeypatch.setattr("modelmill.runtimes.doctor", lambda: none)
    result = run("doctor")
    assert result.exit_code == 1 and "pip install x" in result.stdout


def test_every_command_names_the_choices(run, tiny):
    for command in ("check", "eval", "bench", "compare", "build"):
        rest = () if command in ("check", "bench") else ("-d", tiny.data)
        both = (tiny.model,) * (2 if command == "compare" else 1)
        result = run(command, *both, "-t", "ort_gpu", *rest)
        assert result.exit_code == 2, result.output
        assert "ort_gpu" in result.stderr and "openvino_cpu" in result.stderr


def test_targets(run):
    result = run("targets")
    assert result.exit_code == 0 and "vitis_dpu" in result.stdout and "simulated" in result.stdout
    assert "PG338" in run("targets", "vitis_dpu").stdout
    found = json.loads(run("targets", "--diff", "nxp_imx", "ti", "--format", "json").stdout)
    assert {"what": "Split", "nxp_imx": "", "ti": "activation -> same"} in found
    assert run("targets", "--diff", "ti").exit_code == 2
    assert set(json.loads(run("targets", "ti", "--format", "json").stdout)) == {"ti"}
