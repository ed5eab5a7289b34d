"""Float parity: an engine that computes something else is found, with the first node."""

import pytest

from modelmill import ir
from modelmill.line.job import FLOAT_ARTIFACT, Job
from modelmill.line.manifest import keys
from modelmill.line.options import BuildOptions
from modelmill.line.parity import TOLERANCE, check_parity
from modelmill.line.quantize import prepare_graph
from modelmill.line.show import SILENT
from modelmill.line.source import load_images, load_source
from modelmill.line.store import Store

ENGINE = """
import numpy as np
from modelmill.runtimes.onnxruntime import OnnxRuntime, OrtSession


class Wrong(OrtSession):
    def run(self, feeds, outputs=None):
        found = super().run(feeds, outputs)
        return {{n: a {change} if n in {wrong!r} else a for n, a in found.items()}}


class Engine(OnnxRuntime):
    def open(self, path, options):
        return Wrong(path, options)


PLUGIN = Engine()
"""


@pytest.fixture
def job(tiny, tmp_path):
    def make(graph=None):
        options = BuildOptions(tiny.model, tiny.data, ("ort_cpu",), tmp_path / "out", calibrate=8)
        source = load_source(graph or tiny.model, tiny.card)
        images = load_images(source, tiny.data, None, 8, None, 0)
        clean = prepare_graph(source.graph)
        store = Store(options.out, resume=True)
        ir.save(clean, store.path(FLOAT_ARTIFACT))
        key = keys(options, source, images, clean)
        return Job(options, source, images, clean, store, key, 1, SILENT)

    return make


def engine(folder, change, wrong):
    path = folder / "engine.py"
    path.write_text(ENGINE.format(change=change, wrong=wrong))
    return str(path)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_real_engines_agree(job, runtime):
    here = job()
    assert 0 <= check_parity(here, runtime) < 1e-4 < TOLERANCE
    left = {p.name for p in here.store.path("artifacts").iterdir()}
    assert left == {"float.onnx"}  # the exposed model was for this only


def test_it_is_done_once(job):
    check_parity(job(), "onnxruntime")
    again = job()
    check_parity(again, "onnxruntime")
    assert again.store.reused == ["parity-onnxruntime"]


def test_the_first_node_that_differs_is_named(job, tmp_path):
    here = job()
    node = next(n for n in ir.nodes(here.graph) if n.outputs[0].name == "c2")
    wrong = engine(tmp_path, "* np.float32(1.01)", ("c2", "s", "r2", "p", "f", "y"))
    with pytest.raises(ValueError, match="disagree on the float model") as caught:
        check_parity(here, wrong)
    assert f"first at node {node.name!r} (Conv)" in str(caught.value)


def test_rounding_passes(job, tmp_path):
    assert check_parity(job(), engine(tmp_path, "* np.float32(1.0005)", ("y",))) > 1e-4


def test_nan_is_named(job, tmp_path):
    with pytest.raises(ValueError, match="NaN or infinity at 'y'"):
        check_parity(job(), engine(tmp_path, "* np.float32('nan')", ("y",)))


def test_a_fixed_batch_is_filled_up(job, tiny):
    assert check_parity(job(ir.with_batch(ir.load(tiny.model), 70)), "onnxruntime") < 1e-4
