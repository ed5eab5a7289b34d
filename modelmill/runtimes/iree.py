"""IREE on the CPU (llvm-cpu), compiled for the processor of this machine.

`convert` goes ONNX -> torch-mlir -> linalg -> .vmfb. A quantized file is first written as explicit
integer arithmetic (`modelmill.export.integer_onnx`). Convolutions are turned to channels last,
which makes them two to four times as fast; what the compiler's own pass for that leaves out,
quantized and depthwise ones, is rewritten in the text of the linalg form
(`modelmill.export.linalg`). The compiled module is for one batch; what it runs is read from the
names of its dispatches, which say operator, shape and types: "conv_32x32x16x3x3x3_i8xi8xi32".
Single dispatches are not timed.
"""

import importlib.metadata
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from modelmill import ir
from modelmill.export import integer_onnx, linalg
from modelmill.runtimes.protocol import Arrays, ExecutedOp, Kind, SessionOptions
from modelmill.runtimes.slices import in_slices, slices

_OPSET = 17  # what torch-mlir's importer was written against
_PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_QUANTIZED = frozenset({"QuantizeLinear", "DequantizeLinear"})
_FUNCTION = "main"
_CHANNELS_LAST = "iree-preprocessing-convert-conv-to-channels-last"
_TARGET = (
    "--iree-llvmcpu-target-cpu=host",
    "--iree-opt-level=O3",
    # Fused loops may keep a whole feature map on the stack; the default of 32 KiB refuses them.
    "--iree-llvmcpu-stack-allocation-limit=1048576",
    f"--iree-preprocessing-pass-pipeline=builtin.module(util.func({_CHANNELS_LAST}))",
)
# Products of codes are fast in IREE's kernels for tiled matrices, float ones are not: windows are
# laid out as rows of a matrix where they hold most of the work, and cost more than they bring where
# it lies in 1x1 kernels.
_KERNELS = "--iree-llvmcpu-enable-ukernels=all"
_BY_TILES = ("--iree-opt-data-tiling", _KERNELS)
_BY_WINDOWS = (
    "--iree-global-opt-use-im2col-for-convs",
    "--iree-global-opt-data-tiling",
    _KERNELS,
)
# Types of operands, then of results; a result in place is written as its operand, the last one.
_DISPATCH = re.compile(rf"flow\.dispatch @\S+::@{_FUNCTION}\$async_dispatch_(\w+)\((.*)")
_ELEMENT = re.compile(r"tensor<(?:[\d?]+x)*([a-z]+\d+)[,>]")
_NUMPY_NAME = {"i8": "int8", "i32": "int32", "i64": "int64", "i1": "bool", "f32": "float32"}
_SUMS = re.compile("conv|matmul|matvec|vecmat|mmt4d|reduction|pooling")


class Iree:
    """See `modelmill.runtimes.protocol.Runtime`."""

    name = "iree"
    supported = ("3.9", "4")
    pip = (
        f'pip install "iree-base-compiler[onnx]>={supported[0]},<{supported[1]}" '
        f'"iree-base-runtime>={supported[0]},<{supported[1]}"'
    )
    suffix = ".vmfb"

    def missing(self) -> str | None:
        try:
            found = all(importlib.util.find_spec(f"iree.{p}") for p in ("compiler", "runtime"))
        except ModuleNotFoundError:
            found = False
        return None if found else self.pip

    def version(self) -> str:
        import iree.runtime  # noqa: F401 (proves that it can be loaded)

        return importlib.metadata.version("iree-base-runtime")

    def convert(self, source: str, out: str, options: SessionOptions) -> None:
        graph = ir.load(source)
        names = [v.name or "" for v in graph.graph.inputs], [v.name for v in graph.graph.outputs]
        graph, arrangement = _compilable(graph)
        facts: dict[str, Any] = {
            "inputs": {
                n: _facts(i) for n, i in zip(names[0], ir.inputs(graph).values(), strict=True)
            },
            "outputs": names[1],
            "products": [n.op_type for n in ir.nodes(graph) if n.op_type in _PRODUCTS],
        }
        with tempfile.TemporaryDirectory() as folder:
            model, torch, loops, last, flow = (
                Path(folder, name) for name in ("m.onnx", "torch", "loops", "last", "flow")
            )
            ir.save(graph, model)
            module = "iree.compiler.tools.import_onnx"
            _run([sys.executable, "-m", module, str(model), "-o", str(torch)])
            _compile(torch, loops, "--compile-to=input")
            last.write_text(linalg.channels_last(loops.read_text()))
            _compile(last, flow, "--iree-input-type=none", "--compile-to=flow", *arrangement)
            facts["dispatches"] = [
                (name, _ELEMENT.findall(rest)) for name, rest in _DISPATCH.findall(flow.read_text())
            ]
            _compile(flow, Path(out), "--compile-from=flow", *arrangement)
        Path(out).with_suffix(".json").write_text(json.dumps(facts))

    def open(self, path: str, options: SessionOptions) -> "IreeSession":
        if not options.optimize:
            raise ValueError("IREE has no switch for its optimisations after compilation")
        return IreeSession(path, options)


class IreeSession:
    """See `modelmill.runtimes.protocol.Session`."""

    def __init__(self, path: str, options: SessionOptions) -> None:
        import iree.runtime as iree

        facts = json.loads(Path(path).with_suffix(".json").read_text())
        self._inputs: dict[str, Any] = facts["inputs"]
        self._products: list[str] = facts["products"]
        self._dispatches: list[tuple[str, list[str]]] = facts["dispatches"]
        self._batch = next((shape[0] for shape, _ in self._inputs.values() if shape), 1)
        self.inputs, self.outputs = tuple(self._inputs), tuple(facts["outputs"])
        driver = "local-sync"  # in the calling thread
        if options.threads > 1:
            driver = "local-task"
            iree.flags.parse_flags(f"--task_topology_group_count={options.threads}")
        config = iree.Config(device=iree.get_driver(driver).create_default_device())
        content = Path(path).read_bytes()
        if not content:
            raise ValueError("the file is empty")
        module = iree.VmModule.copy_buffer(config.vm_instance, content)
        modules = (*config.default_vm_modules, module)
        self._context = iree.VmContext(config.vm_instance, modules)
        self._function = module.lookup_function(_FUNCTION)
        self._device = config.device
        self._iree = iree

    def run(self, feeds: Arrays, outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        self._check(feeds)
        given = {name: feeds[name] for name in self._inputs}
        one = self._is_one(given)
        found = self._infer(given) if one else in_slices(self._infer, given, self._batch)
        return {name: found[name] for name in (self.outputs if outputs is None else outputs)}

    def bind(self, feeds: Arrays) -> Callable[[], object]:
        self._check(feeds)
        given = {name: feeds[name] for name in self._inputs}
        cut = [given] if self._is_one(given) else slices(given, self._batch)
        parts = [self._give(part) for part in cut]
        invoke, function, results = self._context.invoke, self._function, len(self.outputs)
        made = self._iree.VmVariantList
        if len(parts) == 1:
            return lambda: invoke(function, parts[0], made(results))
        return lambda: [invoke(function, part, made(results)) for part in parts]

    def executed(self) -> list[ExecutedOp]:
        """Float products are named as in ONNX: the compiler makes one dispatch of each."""
        found, products = [], iter(self._products)
        for dispatch in self._dispatches:
            op = _executed_op(*dispatch)
            if op.kind == "float" and _SUMS.search(op.op) and op.op != "reduction":
                op = replace(op, op=next(products, op.op))
            found.append(op)
        return found

    def close(self) -> None:
        del self._context, self._function, self._device

    def _infer(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        results = self._iree.VmVariantList(len(self.outputs))
        self._context.invoke(self._function, self._give(feeds), results)
        found = {}
        for i, name in enumerate(self.outputs):
            view = results.get_as_object(i, self._iree.HalBufferView)
            array = self._iree.DeviceArray(self._device, view, implicit_host_transfer=True)
            found[name] = np.array(array.to_host(), copy=True)
        return found

    def _give(self, feeds: Arrays) -> Any:
        given = self._iree.VmVariantList(len(self._inputs))
        for name in self._inputs:
            array = self._iree.asdevicearray(self._device, np.ascontiguousarray(feeds[name]))
            given.push_ref(array._buffer_view)
        return given

    def _is_one(self, feeds: Arrays) -> bool:
        """Whether that is what the module takes, no larger batch of it."""
        return all(feeds[name].shape == tuple(shape) for name, (shape, _) in self._inputs.items())

    def _check(self, feeds: Arrays) -> None:
        for name, (shape, dtype) in self._inputs.items():
            array = feeds[name]
            if array.dtype != dtype or array.shape[1:] != tuple(shape[1:]) or not array.size:
                raise ValueError(
                    f"input {name!r} must be {dtype} of shape {shape} or several of these, and not "
                    f"empty; it is {array.dtype} of shape {array.shape}"
                )


def _compilable(graph: ir.Graph) -> tuple[ir.Graph, tuple[str, ...]]:
    """The graph that the compiler is given, one batch, known shapes, explicit integers; and the
    arguments that make it fast.
    """
    plain, fetch = ir.without_exposed(graph)
    if ir.is_batch_dynamic(plain):
        plain = ir.with_batch(plain, 1)
    arrangement: tuple[str, ...] = ()
    if any(node.op_type in _QUANTIZED for node in ir.nodes(plain)):
        plain, plan = ir.from_qdq(plain)
        plain = ir.infer_shapes(plain)
        arrangement = _BY_WINDOWS if _mostly_windows(plain) else _BY_TILES
        plain = integer_onnx.write(plain, plan, fetch)
    made = ir.at_opset(plain, max(ir.opset(plain), _OPSET))
    made.graph.name = _FUNCTION
    return made, arrangement


def _mostly_windows(graph: ir.Graph) -> bool:
    """Whether most products are of convolutions over all channels with a kernel above 1x1."""
    products = {cost.name: cost.macs or 0 for cost in ir.statistics(graph).nodes}
    wide = 0
    for node in ir.nodes(graph):
        weight = ir.constant(node.inputs[1]) if node.op_type == "Conv" else None
        if weight is not None and weight.shape[1] > 1 and np.prod(weight.shape[2:]) > 1:
            wide += products[node.name or ""]
    return 2 * wide > sum(products.values())


def _facts(info: ir.ValueInfo) -> tuple[tuple[int, ...], str]:
    if not all(isinstance(d, int) for d in info.shape):
        raise ValueError(f"input {info.name!r} has the open shape {info.shape}; IREE's is fixed")
    return tuple(int(d) for d in info.shape if isinstance(d, int)), str(info.dtype)


def _compile(source: Path, out: Path, *arguments: str) -> None:
    from iree.compiler.tools import binaries

    tool = binaries.find_tool("iree-compile")
    common = (str(source), "-o", str(out), "--iree-hal-target-backends=llvm-cpu", *_TARGET)
    _run([tool, *common, *arguments])


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line.lower()]
        why = "; ".join(line[:400] for line in lines[:3]) or done.stderr[-800:]
        raise RuntimeError(f"{Path(command[0]).name} ended with {done.returncode}: {why}")


def _executed_op(name: str, elements: list[str]) -> ExecutedOp:
    """`name` is "1_conv_32x32x16x3x3x3_i8xi8xi32"; `elements` the types of operands and results."""
    words = name.split("_")[1:]
    sizes = [i for i, word in enumerate(words) if re.fullmatch(r"([\dD]+|[if]\d+)(x\w+)?", word)]
    op = "_".join(words[: sizes[0]] if sizes else words) or "dispatch"
    noted = re.findall(r"[if]\d+", words[-1] if words else "")
    kind: Kind = "other"
    operands, written = elements[:1], elements[-1:]
    if _SUMS.search(op):
        operands = noted or operands
        kind = "integer" if operands[:1] == ["i8"] else "float"
    elif (operands == ["i8"]) != (written == ["i8"]):
        kind, operands = "conversion", written
    elif operands:
        kind = "integer" if operands == ["i8"] else "float" if operands == ["f32"] else "other"
    precision = operands[0] if operands else ""
    return ExecutedOp(name, op, _NUMPY_NAME.get(precision, precision), kind, None)


PLUGIN = Iree()
