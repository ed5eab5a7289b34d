"""Qualcomm's AI Engine Direct (QNN) for the Hexagon processor, on its emulator for x86.

ONNX Runtime's QNN execution provider hands a QDQ model to the vendor's own graph compiler and runs
the result; on x86 its library `QnnHtp` emulates the processor's integer arithmetic. Scores are the
processor's, times are the emulator's. The compiler wants fixed shapes: a free batch is set to one,
and a larger one is run image by image. A node that it does not take stays with ONNX Runtime's CPU
kernels, which `executed` tells.
https://onnxruntime.ai/docs/execution-providers/QNN-ExecutionProvider.html
"""

import importlib.util
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from modelmill.runtimes.protocol import Arrays, ExecutedOp, Kind, SessionOptions
from modelmill.runtimes.slices import in_slices, slices

_PROVIDER = "QNNExecutionProvider"
_SILENT = 3  # of ONNX Runtime's log levels: errors only


class Qnn:
    """See `modelmill.runtimes.protocol.Runtime`."""

    name = "qnn"
    supported = ("2.7", "3")
    pip = f'pip install "onnxruntime-qnn>={supported[0]},<{supported[1]}"'
    suffix = ".onnx"

    def missing(self) -> str | None:
        return None if importlib.util.find_spec("onnxruntime_qnn") else self.pip

    def version(self) -> str:
        from importlib.metadata import version

        import onnxruntime_qnn  # noqa: F401 (shows that it can be loaded)

        return version("onnxruntime-qnn")

    def convert(self, source: str, out: str, options: SessionOptions) -> None:
        raise NotImplementedError("QNN's provider reads ONNX itself")

    def open(self, path: str, options: SessionOptions) -> "QnnSession":
        if not options.optimize:
            raise ValueError("QNN's compiler has no switch for its graph optimisations")
        return QnnSession(path, options)


class QnnSession:
    """See `modelmill.runtimes.protocol.Session`."""

    def __init__(self, path: str, options: SessionOptions) -> None:
        self._path, self._options = path, options
        self._session = _load(path, options, None)
        first = self._session.get_inputs()[0].shape
        self._batch = first[0] if first and isinstance(first[0], int) else 1
        self.inputs = tuple(i.name for i in self._session.get_inputs())
        self.outputs = tuple(o.name for o in self._session.get_outputs())

    def run(self, feeds: Arrays, outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        names = list(self.outputs if outputs is None else outputs)

        def call(piece: dict[str, np.ndarray]) -> Mapping[str, np.ndarray]:
            return dict(zip(names, self._session.run(names, piece), strict=True))

        return in_slices(call, feeds, self._batch)

    def bind(self, feeds: Arrays) -> Callable[[], object]:
        session, parts = self._session, slices(feeds, self._batch)
        return lambda: [session.run(None, part) for part in parts]

    def executed(self) -> list[ExecutedOp]:
        with tempfile.TemporaryDirectory() as folder:
            session = _load(self._path, self._options, str(Path(folder) / "profile"))
            zeros = {i.name: np.zeros(_fixed(i.shape), np.float32) for i in session.get_inputs()}
            session.run(None, zeros)
            events = json.loads(Path(session.end_profiling()).read_text(errors="replace"))
        return [_executed_op(e) for e in events if "input_type_shape" in e.get("args", {})]

    def close(self) -> None:
        del self._session


def _load(path: str, options: SessionOptions, profile: str | None) -> Any:
    import onnxruntime as ort
    import onnxruntime_qnn

    if not any(device.ep_name == _PROVIDER for device in ort.get_ep_devices()):
        ort.register_execution_provider_library(_PROVIDER, onnxruntime_qnn.get_library_path())
    so = ort.SessionOptions()
    so.intra_op_num_threads = options.threads
    so.log_severity_level = _SILENT
    for free in _free_dimensions(path):
        so.add_free_dimension_override_by_name(free, 1)
    if profile is not None:
        so.enable_profiling = True
        so.profile_file_prefix = profile
    devices = [device for device in ort.get_ep_devices() if device.ep_name == _PROVIDER]
    so.add_provider_for_devices(devices[:1], {"backend_path": onnxruntime_qnn.get_qnn_htp_path()})
    return ort.InferenceSession(path, so)


def _free_dimensions(path: str) -> list[str]:
    """Names of the first dimensions that the file leaves open."""
    import onnxruntime as ort

    plain = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    shapes = [i.shape for i in plain.get_inputs()]
    return sorted({shape[0] for shape in shapes if shape and isinstance(shape[0], str)})


def _fixed(shape: Sequence[int | str | None]) -> list[int]:
    return [n if isinstance(n, int) else 1 for n in shape]


def _executed_op(event: dict[str, Any]) -> ExecutedOp:
    """A part that QNN compiled is one kernel; whatever else ran is ONNX Runtime's, in float."""
    args, name = event["args"], event["name"].removesuffix("_kernel_time")
    if args.get("provider") == _PROVIDER:
        return ExecutedOp(name, "QnnGraph", "uint8", "integer", float(event["dur"]))
    converts = args["op_name"] in ("QuantizeLinear", "DequantizeLinear")
    kind: Kind = "conversion" if converts else "float"
    return ExecutedOp(name, args["op_name"], "float32", kind, float(event["dur"]))


PLUGIN = Qnn()
