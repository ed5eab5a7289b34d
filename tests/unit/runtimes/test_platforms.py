import json
import sys

import pytest

from modelmill.runtimes import EngineMissing, find_platform, platforms, remove
from modelmill.runtimes.platforms import MARKER, distribution_of, load_runtime, unfinished
from modelmill.runtimes.protocol import DeploymentError
from modelmill.runtimes.worker import probe

onnxruntime = pytest.importorskip("onnxruntime")
HERE = onnxruntime.__version__


@pytest.fixture
def engines(tmp_path, monkeypatch):
    """make(name, version): an environment of its own that claims to hold ONNX Runtime."""
    monkeypatch.setenv("MODELMILL_ENGINES", str(tmp_path))

    def make(name, version, finished=True):
        packages = tmp_path / name / "lib" / "python3.11" / "site-packages"
        info = packages / f"onnxruntime-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: onnxruntime\nVersion: {version}\n"
        )
        if finished:
            (tmp_path / name / MARKER).write_text(
                json.dumps({"runtime": "onnxruntime", "version": version})
            )
        return tmp_path / name

    return make


def test_the_engine_of_this_environment(engines):
    found = find_platform("onnxruntime")
    assert (found.version, found.python, found.folder) == (HERE, sys.executable, None)
    assert find_platform(f"onnxruntime@{HERE}").folder is None


def test_a_version_in_an_environment_of_its_own_is_a_platform(engines):
    folder = engines("onnxruntime@1.20.1", "1.20.1")
    found = find_platform("onnxruntime@1.20.1")
    assert found.folder == folder and found.version == "1.20.1"
    assert found.python == str(folder / "bin" / "python")
    assert find_platform("onnxruntime").folder is None  # the bare name is not what it answers to
    names = [(p.name, p.version) for p in platforms() if p.runtime == "onnxruntime"]
    assert names == [("onnxruntime", HERE), ("onnxruntime@1.20.1", "1.20.1")]


def test_the_version_is_what_is_installed_not_what_the_folder_says(engines):
    engines("onnxruntime@1.20.1", "1.21.0")
    assert find_platform("onnxruntime@1.21.0").version == "1.21.0"
    with pytest.raises(EngineMissing, match=r"doctor --install onnxruntime@1\.20\.1"):
        find_platform("onnxruntime@1.20.1")


def test_two_environments_that_claim_one_platform(engines):
    engines("onnxruntime", HERE)
    with pytest.raises(
        ValueError, match=r"two environments claim the platform onnxruntime: .* and "
    ):
        find_platform("onnxruntime")
    with pytest.raises(ValueError, match="doctor --remove"):
        find_platform(f"onnxruntime@{HERE}")


def test_an_unfinished_environment_is_none(engines):
    folder = engines("onnxruntime@1.20.1", "1.20.1", finished=False)
    assert unfinished() == [folder]
    with pytest.raises(EngineMissing):
        find_platform("onnxruntime@1.20.1")


def test_a_broken_environment_is_one_failed_deployment(engines):
    engines("onnxruntime@1.20.1", "1.20.1")
    with pytest.raises(DeploymentError, match="cannot start a worker"):
        probe("onnxruntime@1.20.1")


def test_remove(engines):
    folder = engines("onnxruntime@1.20.1", "1.20.1")
    for wrong in ("onnxruntime", "..", "", "a/b"):
        with pytest.raises(ValueError, match=r"no environment of its own.*onnxruntime@1\.20\.1"):
            remove(wrong)
    assert remove("onnxruntime@1.20.1") == folder and not folder.exists()


def test_the_first_requirement_is_the_engine():
    assert distribution_of(load_runtime("openvino")) == "openvino"


def test_an_adapter_that_lacks_something(tmp_path):
    adapter = tmp_path / "half.py"
    adapter.write_text("class Half:\n    name = 'half'\nPLUGIN = Half()\n")
    with pytest.raises(ValueError, match="no engine's adapter: it has no supported, no pip"):
        find_platform(str(adapter))


def test_an_engine_of_the_wrong_version_is_refused_with_the_line_that_mends_it(engines):
    from modelmill.line.artifact import check_engine

    engines("onnxruntime@1.10.0", "1.10.0")
    with pytest.raises(
        ValueError, match=r"needs onnxruntime@1\.10\.0 in a version >=1\.20.*1\.10\.0"
    ):
        check_engine("onnxruntime@1.10.0", "target ort_cpu@1.10.0 needs")
    check_engine("onnxruntime", "this needs")


def test_a_target_on_a_version(engines):
    from modelmill.targets import load_target

    found = load_target("ort_cpu@1.24.4")
    assert (found.name, found.runtime) == ("ort_cpu@1.24.4", "onnxruntime@1.24.4")
    with pytest.raises(ValueError, match="no engine here runs tensorrt"):
        load_target("tensorrt@10")
