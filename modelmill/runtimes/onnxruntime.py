"""ONNX Runtime on the CPU.

What it runs is read from its own profile: each kernel with the types of its inputs and outputs. A
kernel is an integer one if it takes or gives an 8-bit tensor and does more than convert:
QLinearConv, QGemm, and also MaxPool or Transpose on uint8.
https://onnxruntime.ai/docs/performance/tune-performance/profiling-tools.html
"""

import importlib.util
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from modelmill.runtimes.protocol import PROFILED, Arrays, ExecutedOp, Kind, SessionOptions

_CONVERSIONS = frozenset({
    "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "Cast",
    "ReorderInput", "ReorderOutput", "MemcpyToHost", "MemcpyFromHost",
})  # fmt: skip
_SMALL = frozenset({"uint8", "int8", "uint4", "int4", "uint2", "int2"})
_NUMPY_NAME = {"float": "float32", "double": "float64"}


class OnnxRuntime:
    """See `modelmill.runtimes.protocol.Runtime`."""

    name = "onnxruntime"
    supported = ("1.20", "2")
    pip = f'pip install "onnxruntime>={supported[0]},<{supported[1]}"'
    suffix = ".onnx"

    def missing(self) -> str | None:
        return None if importlib.util.find_spec("onnxruntime") else self.pip

    def version(self) -> str:
        import onnxruntime

        return str(onnxruntime.__version__)

    def convert(self, source: str, out: str, options: SessionOptions) -> None:
        raise NotImplementedError(f"{self.name} reads ONNX itself")

    def open(self, path: str, options: SessionOptions) -> "OrtSession":
        return OrtSession(path, options)


class OrtSession:
    """See `modelmill.runtimes.protocol.Session`."""

    def __init__(self, path: str, options: SessionOptions) -> None:
        self._path = path
        self._options = options
        self._session = _load(path, options, None)
        self._shapes: dict[str, tuple[int, ...]] = {}
        self.inputs = tuple(i.name for i in self._session.get_inputs())
        self.outputs = tuple(o.name for o in self._session.get_outputs())

    def run(self, feeds: Arrays, outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        self._shapes = {name: array.shape for name, array in feeds.items()}
        names = list(self.outputs if outputs is None else outputs)
        return dict(zip(names, self._session.run(names, dict(feeds)), strict=True))

    def bind(self, feeds: Arrays) -> Callable[[], object]:
        self._shapes = {name: array.shape for name, array in feeds.items()}
        session, arrays = self._session, dict(feeds)
        return lambda: session.run(None, arrays)

    def executed(self) -> list[ExecutedOp]:
        with tempfile.TemporaryDirectory() as folder:
            session = _load(self._path, self._options, str(Path(folder) / "profile"))
            feeds = {i.name: self._zeros(i) for i in session.get_inputs()}
            for _ in range(PROFILED):
                session.run(None, feeds)
            events = json.loads(Path(session.end_profiling()).read_text(errors="replace"))
        # Older versions note a fence before and after each kernel too; only the kernel has types.
        ops = [_executed_op(e) for e in events if "input_type_shape" in e.get("args", {})]
        # One inference after the other, each with the same kernels: the input is the same.
        runs = [ops[i :: len(ops) // PROFILED] for i in range(len(ops) // PROFILED)]
        return [replace(run[-1], us=median(op.us or 0.0 for op in run)) for run in runs]

    def close(self) -> None:
        del self._session

    def _zeros(self, value: Any) -> np.ndarray:
        kind = value.type.removeprefix("tensor(").removesuffix(")")
        free = self._options.batch or 1
        shape = [
            n if isinstance(n, int) else free if i == 0 else 1 for i, n in enumerate(value.shape)
        ]
        return np.zeros(self._shapes.get(value.name, shape), _NUMPY_NAME.get(kind, kind))


def _load(path: str, options: SessionOptions, profile: str | None) -> Any:
    import onnxruntime as ort

    so = ort.SessionOptions()
    so.intra_op_num_threads = options.threads
    so.inter_op_num_threads = 1
    so.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    level = ort.GraphOptimizationLevel
    so.graph_optimization_level = (
        level.ORT_ENABLE_ALL if options.optimize else level.ORT_DISABLE_ALL
    )
    if profile is not None:
        so.enable_profiling = True
        so.profile_file_prefix = profile
    return ort.InferenceSession(path, so, providers=["CPUExecutionProvider"])


def _executed_op(event: dict[str, Any]) -> ExecutedOp:
    op = event["args"]["op_name"]
    takes = [next(iter(t.items())) for t in event["args"]["input_type_shape"]]
    gives = [next(iter(t.items())) for t in event["args"]["output_type_shape"]]
    # Scales and zero points are scalars: the first input with an extent is the data.
    data = next((kind for kind, shape in takes if shape), takes[0][0] if takes else "")
    result = gives[0][0] if gives else data
    precision = result if data not in _SMALL and result in _SMALL else data or result
    return ExecutedOp(
        name=event["name"].removesuffix("_kernel_time"),
        op=op,
        precision=_NUMPY_NAME.get(precision, precision),
        kind=_kind(op, precision),
        us=float(event["dur"]),
    )


def _kind(op: str, precision: str) -> Kind:
    if op in _CONVERSIONS:
        return "conversion"
    if precision in _SMALL:
        return "integer"
    return "float" if "float" in precision or precision == "double" else "other"


PLUGIN = OnnxRuntime()
