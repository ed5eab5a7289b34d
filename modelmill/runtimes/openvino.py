"""OpenVINO on the CPU.

Compiled for latency, one stream, arithmetic pinned to float32: on processors with bfloat16 the
default would silently compute in that. Pinning of threads to cores is off, because several sessions
share the machine: each would choose the same first cores. What it runs is read from the compiled
graph, whose kernels carry their precision and time.
https://docs.openvino.ai/2025/openvino-workflow/running-inference/inference-devices-and-modes/cpu-device.html
"""

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from modelmill.runtimes.protocol import PROFILED, Arrays, ExecutedOp, Kind, SessionOptions

_NOT_KERNELS = frozenset({"Input", "Output", "Const", "Parameter", "Result", "Constant"})
_CONVERSIONS = frozenset({"Reorder", "Convert", "FakeQuantize", "Quantize"})
_ELEMENTWISE = frozenset({"Eltwise", "Subgraph"})
_NUMPY_NAME = {
    "u8": "uint8", "i8": "int8", "u4": "uint4", "i4": "int4", "i32": "int32", "i64": "int64",
    "f32": "float32", "f16": "float16", "bf16": "bfloat16", "f64": "float64",
}  # fmt: skip
_WARM = 3  # inferences before kernels are timed
_SMALL = frozenset({"u8", "i8", "u4", "i4", "bin"})


class OpenVino:
    """See `modelmill.runtimes.protocol.Runtime`."""

    name = "openvino"
    supported = ("2025.0", "2027")
    pip = f'pip install "openvino>={supported[0]},<{supported[1]}"'
    suffix = ".onnx"

    def missing(self) -> str | None:
        return None if importlib.util.find_spec("openvino") else self.pip

    def version(self) -> str:
        import openvino

        # "2026.4.1-22982-abcdef-releases/2026/4": the release, then the build
        return str(openvino.get_version()).split("-", 1)[0]

    def convert(self, source: str, out: str, options: SessionOptions) -> None:
        raise NotImplementedError(f"{self.name} reads ONNX itself")

    def open(self, path: str, options: SessionOptions) -> "OvSession":
        if not options.optimize:
            raise ValueError("OpenVINO's CPU plug-in has no switch for its graph optimisations")
        return OvSession(path, options)


class OvSession:
    """See `modelmill.runtimes.protocol.Session`."""

    def __init__(self, path: str, options: SessionOptions) -> None:
        self._path = path
        self._options = options
        self._compiled = _compile(path, options, profile=False)
        self._request = self._compiled.create_infer_request()
        self._given: list[Any] = []
        self._shapes: dict[str, tuple[int, ...]] = {}
        self.inputs = tuple(_name(i) for i in self._compiled.inputs)
        self.outputs = tuple(_name(o) for o in self._compiled.outputs)

    def run(self, feeds: Arrays, outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        self._given = self._give(self._request, feeds)
        self._request.infer()
        wanted = self.outputs if outputs is None else outputs
        found = {name: self._request.get_output_tensor(self.outputs.index(name)) for name in wanted}
        return {name: tensor.data.copy() for name, tensor in found.items()}

    def bind(self, feeds: Arrays) -> Callable[[], object]:
        request = self._compiled.create_infer_request()
        given = self._give(request, feeds)
        return lambda: (request.infer(), given)

    def _give(self, request: Any, feeds: Arrays) -> list[Any]:
        """Set the inputs without a copy; who calls must keep the tensors as long as they are used.

        Left to itself OpenVINO converts another type in silence, and takes an empty batch for one.
        """
        import openvino as ov

        tensors = []
        for i, port in enumerate(self._compiled.inputs):
            array = np.asarray(feeds[self.inputs[i]], order="C")
            expected = np.dtype(port.element_type.to_dtype())
            if array.dtype != expected or array.size == 0:
                raise ValueError(
                    f"input {self.inputs[i]!r} must be {expected} and not empty;"
                    f" it is {array.dtype} of shape {array.shape}"
                )
            tensors.append(ov.Tensor(array, shared_memory=True))
            request.set_input_tensor(i, tensors[-1])
        self._shapes = {name: array.shape for name, array in feeds.items()}
        return tensors

    def executed(self) -> list[ExecutedOp]:
        compiled = _compile(self._path, self._options, profile=True)
        request, zeros = compiled.create_infer_request(), [self._zeros(i) for i in compiled.inputs]
        before = _spent_us(request, zeros, _WARM)
        after = _spent_us(request, zeros, PROFILED)
        us = {
            name: max((_WARM + PROFILED) * mean - _WARM * before.get(name, mean), 0.0) / PROFILED
            for name, mean in after.items()
        }
        ops = [_executed_op(node) for node in compiled.get_runtime_model().get_ordered_ops()]
        return [replace(op, us=us.get(op.name, op.us)) for op in ops if op is not None]

    def close(self) -> None:
        del self._request, self._given, self._compiled

    def _zeros(self, port: Any) -> np.ndarray:
        free = self._options.batch or 1
        shape = [
            n.get_length() if n.is_static else free if i == 0 else 1
            for i, n in enumerate(port.partial_shape)
        ]
        return np.zeros(self._shapes.get(_name(port), shape), port.element_type.to_dtype())


def _compile(path: str, options: SessionOptions, profile: bool) -> Any:
    import openvino as ov

    core = ov.Core()
    model = core.read_model(path)
    if options.batch is not None:
        _fix_batch(model, options.batch)
    return core.compile_model(model, "CPU", {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": options.threads,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,
        "PERF_COUNT": profile,
    })  # fmt: skip


def _fix_batch(model: Any, batch: int) -> None:
    """Known shapes compile to faster code; a first dimension that is not free stays."""
    shapes = {}
    for port in model.inputs:
        shape = port.partial_shape
        if len(shape) and shape[0].is_dynamic:
            shape[0] = batch
            shapes[port] = shape
    if shapes:
        model.reshape(shapes)


def _name(port: Any) -> str:
    """The name in the file: of several aliases, the one that the node keeps."""
    name = str(port.node.get_friendly_name()).split("/sink_port_")[0]
    return name if name in port.get_names() else str(port.get_any_name())


def _executed_op(node: Any) -> ExecutedOp | None:
    facts = _facts(node)
    spent = facts.get("execTimeMcs", "not_executed")
    op = facts.get("layerType", node.get_type_name())
    if op in _NOT_KERNELS or spent == "not_executed":
        return None
    precision = facts.get("runtimePrecision", "")
    kind: Kind = "float" if precision in ("f32", "f16", "bf16", "f64") else "other"
    if op in _CONVERSIONS or (op in _ELEMENTWISE and _only_converts(node, facts)):
        kind = "conversion"
    elif precision in _SMALL:
        kind = "integer"
    name, number = node.get_friendly_name(), _NUMPY_NAME.get(precision, precision)
    return ExecutedOp(name, op, number, kind, float(spent))


def _only_converts(node: Any, facts: dict[str, str]) -> bool:
    """Whether an elementwise kernel is a QuantizeLinear or DequantizeLinear and nothing more.

    It has 8 bits on one side only and stands for one node of the file, or for two after a Convert:
    minus the zero point, times the scale. What else was fused into it would add a name.
    """
    source = node.input_value(0).get_node()
    after_convert = _facts(source).get("layerType") == "Convert"
    taken = (source if after_convert else node).input_value(0).get_element_type().get_type_name()
    names = facts.get("originalLayersNames", "").split(",")
    one_side = (taken in _SMALL) != (facts.get("outputPrecisions") in _SMALL)
    return one_side and len(names) <= 1 + after_convert


def _spent_us(request: Any, feeds: list[Any], inferences: int) -> dict[str, float]:
    """Microseconds of each kernel after so many more inferences: the mean of all so far, which is
    what the plug-in keeps.
    """
    for _ in range(inferences):
        request.infer(feeds)
    found = request.get_profiling_info()
    return {kernel.node_name: kernel.real_time.total_seconds() * 1e6 for kernel in found}


def _facts(node: Any) -> dict[str, str]:
    """What the plug-in notes at a node of the compiled graph."""
    return {key: str(getattr(value, "value", value)) for key, value in node.get_rt_info().items()}


PLUGIN = OpenVino()
