"""Plug-ins are files: found by name or path, and errors tell what to do."""

import sys

import pytest

from modelmill import plugins


def test_names_are_file_names():
    assert {"openvino_cpu", "ort_cpu"} <= set(plugins.names("modelmill.targets"))
    assert {"onnxruntime", "openvino"} <= set(plugins.names("modelmill.runtimes"))
    assert "protocol" not in plugins.names("modelmill.runtimes")
    assert {"calibrate", "equalize", "bias_correction"} <= set(plugins.names("modelmill.quant"))
    assert "observe" not in plugins.names("modelmill.quant")


def test_listing_imports_no_plugin():
    import subprocess

    code = (
        "import sys; from modelmill import plugins; plugins.names('modelmill.runtimes');"
        "print([m for m in sys.modules if m in ('onnxruntime', 'torch',"
        " 'modelmill.runtimes.onnxruntime', 'modelmill.runtimes.openvino')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_unknown_name_lists_the_choices():
    with pytest.raises(ValueError, match=r"unknown target 'ort_gpu'; did you mean 'ort_cpu'\?"):
        plugins.load("modelmill.targets", "ort_gpu")
    with pytest.raises(ValueError, match=r"'xyz'\. Choices: .*, or a path"):
        plugins.load("modelmill.targets", "xyz")


@pytest.mark.parametrize("name", ["../ort_cpu", "os", "planning", "__init__", "ort_cpu.PLUGIN", ""])
def test_what_is_no_plugin_is_never_imported(name):
    with pytest.raises(ValueError, match="Choices"):
        plugins.load("modelmill.targets", name)


def test_a_file(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("PLUGIN = 42\n")
    before = set(sys.modules)
    assert plugins.load("modelmill.targets", str(file)) == 42
    assert "mine" not in set(sys.modules) - before


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "does not exist"),
        ("x = 1", "defines no PLUGIN"),
        ("raise KeyError('broken')", "failed to load: KeyError: 'broken'"),
        ("def (", "failed to load: SyntaxError"),
        ("import no_such_package", "failed to load: ModuleNotFoundError"),
    ],
)
def test_a_bad_file(tmp_path, text, words):
    file = tmp_path / "mine.py"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ValueError, match=words) as caught:
        plugins.load("modelmill.targets", str(file))
    assert str(file) in str(caught.value)


def test_ways_to_bind_it(tmp_path, monkeypatch):
    package = tmp_path / "somewhere"
    package.mkdir()
    (package / "__init__.py").write_text("")
    texts = {
        "a": "PLUGIN = 1", "b": "PLUGIN: int = 2", "c": "def PLUGIN():\n    return 3",
        "_hidden": "PLUGIN = 4", "d": "def f():\n    PLUGIN = 5", "e": "OTHER = 6",
    }  # fmt: skip
    for name, text in texts.items():
        (package / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    assert plugins.names("somewhere") == ["a", "b", "c"]
    assert plugins.load("somewhere", "b") == 2
    with pytest.raises(ModuleNotFoundError):
        plugins.names("somewhere.a")
