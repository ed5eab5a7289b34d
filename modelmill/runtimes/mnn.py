"""MNN on the CPU.

MNN's own converter reads the float model; scales, zero points and weight codes reach its file as
`modelmill.export.mnn_file` says, so the engine's Q/DQ import is not used: it knows four patterns of
nodes around a convolution and drops what fits none. The converter is called through its native
module: the Python script around it would install a package and report to a server.

An activation that a sum fuses is not given to the converter: MNN clamps there at code 0, the zero
point only of a symmetric format, so the saturation of the codes does it. Precision is "high", that
is float32 for what is not on codes. Kernels are told apart and timed by the engine's callbacks.
https://mnn-docs.readthedocs.io/en/latest/tools/convert.html
"""

import contextlib
import importlib
import importlib.util
import json
import tempfile
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np

from modelmill import ir
from modelmill.export.mnn import Deployed, prepare
from modelmill.export.mnn_file import (
    MATMUL,
    UNSIGNED,
    compression_parameters,
    convolutions,
    describe,
    described,
    tensor_names,
)
from modelmill.runtimes.protocol import Arrays, ExecutedOp, Kind, SessionOptions

_CONVERSIONS = frozenset({"FloatToInt8", "Int8ToFloat"})
_OTHER = frozenset({"Raster", "Const", "Shape", "Copy"})
_INT8 = "DT_INT8"


class Mnn:
    """See `modelmill.runtimes.protocol.Runtime`."""

    name = "mnn"
    supported = ("3.4", "3.7")
    pip = f'pip install "MNN>={supported[0]},<{supported[1]}"'
    suffix = ".mnn"

    def missing(self) -> str | None:
        return None if importlib.util.find_spec("MNN") else self.pip

    def version(self) -> str:
        importlib.import_module("MNN")
        return version("MNN")

    def convert(self, source: str, out: str, options: SessionOptions) -> None:
        made, path = prepare(ir.load(source)), Path(out).absolute()
        # The converter leaves a file of its own in the folder that it is called from.
        with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
            names = _convert(made, path)
        path.with_suffix(".json").write_text(json.dumps(made.facts(names)))

    def open(self, path: str, options: SessionOptions) -> "MnnSession":
        return MnnSession(path, options)


def _convert(made: Deployed, out: Path) -> list[str]:
    """Write the file; the names of its tensors."""
    bare, plain, parameters = Path("float.onnx"), Path("float.mnn"), Path("scales.json")
    ir.save(made.graph, bare)
    _run_converter("ONNX", bare, plain)
    model = plain.read_bytes()
    names = tensor_names(model)
    layers = made.layers(names, convolutions(model))
    if layers:
        # In two steps: from ONNX, weights of a MiB and more are not there when they are to be made
        # codes, and the converter writes garbage instead.
        parameters.write_text(compression_parameters(layers))
        more = ("--compressionParamsFile", str(parameters), "--optimizeLevel", "0")
        _run_converter("MNN", plain, out, *more)
        _note_tensors(out, made)
    elif len(made.plan):
        raise ValueError("MNN keeps codes only in a file with a layer on codes, the plan has none")
    else:
        out.write_bytes(model)
    return names


def _run_converter(kind: str, source: Path, out: Path, *more: str) -> None:
    tools = importlib.import_module("_tools")
    out.unlink(missing_ok=True)
    asked = ["mnnconvert", "-f", kind, "--modelFile", str(source), "--MNNModel", str(out), *more]
    if not tools.mnnconvert([*asked, "--bizCode", "modelmill"]) or not out.is_file():
        raise RuntimeError(f"MNN's converter refused {source.name}; its words are above")


def _note_tensors(out: Path, made: Deployed) -> None:
    """Note the codes of every tensor of the plan, and check that the converter took every layer."""
    model = out.read_bytes()
    done = described(model)
    for node, output in made.layer_outputs(convolutions(model)).items():
        if output not in done:
            raise RuntimeError(f"MNN's converter left {node!r} in float; keep it so: --keep-float")
    out.write_bytes(describe(model, made.tensors(tensor_names(model))))


class MnnSession:
    """See `modelmill.runtimes.protocol.Session`."""

    def __init__(self, path: str, options: SessionOptions) -> None:
        mnn = importlib.import_module("MNN")
        facts = json.loads(Path(path).with_suffix(".json").read_text())
        tensor_names(Path(path).read_bytes())  # an error that says more than MNN's
        self._mnn = mnn
        self._codes: dict[str, dict[str, Any]] = facts["codes"]
        self._fences = frozenset(facts["fences"])
        self._shown: dict[str, str] = facts["outputs"]
        self._config = {
            "backend": "CPU",
            "precision": "high",
            "numThread": options.threads,
            "saveTensors": tuple(
                dict.fromkeys([*self._shown.values(), *(c["tensor"] for c in self._codes.values())])
            ),
        }
        self._net = mnn.Interpreter(path)
        self._session = self._net.createSession(self._config)
        self.inputs = tuple(facts["inputs"])
        self.outputs = (*self._shown, *self._codes)
        self._feeds: dict[str, np.ndarray] = {}

    def run(self, feeds: Arrays, outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        self._feed(self._session, feeds)
        self._check(self._net.runSession(self._session))
        return {name: self._take(name) for name in (self.outputs if outputs is None else outputs)}

    def bind(self, feeds: Arrays) -> Callable[[], object]:
        session = self._net.createSession(self._config)
        self._feed(session, feeds)
        self._check(self._net.runSession(session))
        return lambda: self._net.runSession(session)

    def executed(self) -> list[ExecutedOp]:
        found: list[ExecutedOp] = []
        started = 0

        def before(tensors: list[Any], info: Any) -> bool:
            nonlocal started
            started = perf_counter_ns()
            return True

        def after(tensors: list[Any], info: Any) -> bool:
            us = (perf_counter_ns() - started) / 1000
            found.append(self._executed_op(info.getName(), info.getType(), us))
            return True

        self._feed(self._session, self._feeds or self._noise())
        self._check(self._net.runSession(self._session))
        self._check(self._net.runSessionWithCallBackInfo(self._session, before, after))
        return found

    def close(self) -> None:
        del self._session, self._net

    def _executed_op(self, name: str, kernel: str, us: float) -> ExecutedOp:
        """The engine's type of a kernel tells the type it works in: "Convolution [ DT_INT8 ] "."""
        op, _, noted = kernel.partition("[")
        op = "FullyConnected" if name.endswith(MATMUL) else op.strip()
        kind: Kind = "integer" if _INT8 in noted else "float"
        if op in _CONVERSIONS or name in self._fences:
            kind = "conversion"
        elif op in _OTHER:
            kind = "other"
        return ExecutedOp(name, op, "int8" if _INT8 in noted else "float32", kind, us)

    def _check(self, code: int) -> None:
        if code != 0:
            raise RuntimeError(f"MNN could not run the model (code {code}); its words are above")

    def _noise(self) -> dict[str, np.ndarray]:
        shapes = {name: list(self._input(self._session, name).getShape()) for name in self.inputs}
        random = np.random.default_rng(0)
        return {name: random.random(shape, np.float32) for name, shape in shapes.items()}

    def _input(self, session: Any, name: str) -> Any:
        return self._net.getSessionInput(session, name)

    def _feed(self, session: Any, feeds: Arrays) -> None:
        stale = False
        for name in self.inputs:
            array = np.asarray(feeds[name])
            if array.dtype != np.float32 or array.size == 0:
                raise ValueError(
                    f"input {name!r} must be float32 and not empty; it is {array.dtype} of shape "
                    f"{array.shape}"
                )
            if tuple(self._input(session, name).getShape()) != array.shape:
                self._net.resizeTensor(self._input(session, name), array.shape)
                stale = True
        if stale:
            self._net.resizeSession(session)
        for name in self.inputs:
            array = np.ascontiguousarray(feeds[name])
            self._input(session, name).copyFrom(self._host(array))
        self._feeds = dict(feeds)

    def _host(self, array: np.ndarray) -> Any:
        mnn = self._mnn
        return mnn.Tensor(array.shape, mnn.Halide_Type_Float, array, mnn.Tensor_DimensionType_Caffe)

    def _take(self, name: str) -> np.ndarray:
        code = self._codes.get(name)
        tensor = self._shown[name] if code is None else code["tensor"]
        if tensor in self.inputs:  # the engine uses its memory again
            real = self._feeds[tensor]
        else:
            held = self._net.getSessionOutput(self._session, tensor)
            host = self._host(np.zeros(held.getShape(), np.float32))
            held.copyToHostTensor(host)
            real = np.array(host.getNumpyData())
        return real if code is None else _codes(real, code)


def _codes(real: np.ndarray, code: dict[str, Any]) -> np.ndarray:
    """The codes of a tensor; MNN gives back the real numbers, of which whole steps are codes and
    anything else is a float that it rounds when a layer reads it: half away from zero.
    """
    steps = real * (np.float32(1) / np.float32(code["scale"])) + np.float32(code["zero"])
    steps = steps.clip(np.float32(code["low"]), np.float32(code["high"]))
    signed = np.trunc(steps + np.where(steps < 0, np.float32(-0.5), np.float32(0.5)))
    kind = np.dtype(code["type"])
    moved: np.ndarray = (signed + (UNSIGNED if kind == np.uint8 else 0)).astype(kind)
    return moved


PLUGIN = Mnn()
