"""ExecuTorch with its XNNPACK back end.

`convert` writes the float graph and its plan as aten operators with quantize and dequantize
operators at the plan's points (`executor.exportable`), exports it with torch, and hands it to
ExecuTorch's lowering: what the XNNPACK partitioner takes becomes one or more delegates, the rest
runs in portable kernels. The file holds fixed shapes; a bigger batch is run image by image.

The thread pool is one for the process and is set before the file is loaded. Which kernels ran, in
which precision and for how long, is told by the engine's own event trace of one inference.
https://docs.pytorch.org/executorch/stable/backends/xnnpack/xnnpack-overview.html
"""

import gc
import importlib.util
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from modelmill.runtimes.inputs import checked
from modelmill.runtimes.protocol import Arrays, ExecutedOp, Kind, SessionOptions
from modelmill.runtimes.slices import in_slices, slices


class ExecuTorch:
    """See `modelmill.runtimes.protocol.Runtime`."""

    name = "executorch"
    supported = ("1.5", "2")
    pip = f'pip install "executorch>={supported[0]},<{supported[1]}" "torch>=2.13"'
    suffix = ".pte"

    def missing(self) -> str | None:
        found = importlib.util.find_spec("executorch") and importlib.util.find_spec("torch")
        return None if found else self.pip

    def version(self) -> str:
        from executorch.extension.pybindings import portable_lib  # noqa: F401 (can it be loaded?)
        from executorch.version import __version__

        return str(__version__).split("+")[0]

    def convert(self, source: str, out: str, options: SessionOptions) -> None:
        import torch
        from executorch.exir import to_edge_transform_and_lower

        from modelmill import ir
        from modelmill.executor.exportable import Exportable

        graph, shown = ir.without_exposed(ir.load(source))
        if ir.is_batch_dynamic(graph):
            graph = ir.with_batch(graph, options.batch or 1)
        graph, plan = ir.from_qdq(graph)
        module = Exportable(graph, plan, tuple(shown.values()), _on_codes(graph)).eval()
        gc.disable()  # millions of small objects that all stay: collecting takes a quarter of it
        with torch.no_grad():
            exported = torch.export.export(module, module.example)
            lowered = to_edge_transform_and_lower(exported, partitioner=[_partitioner()])
            integer = _integer_ops(lowered.exported_program().graph_module)
            program = lowered.to_executorch()
        gc.enable()
        unsigned = [not plan.spec(ir.Point(name)).signed for name in shown.values()]
        facts = {
            "integer": integer,
            "inputs": [
                {"name": name, "shape": list(x.shape), "dtype": str(x.dtype).split(".")[1]}
                for name, x in zip(module.input_names, module.example, strict=True)
            ],
            "outputs": [*module.output_names, *shown],
            "unsigned": [name for name, u in zip(shown, unsigned, strict=True) if u],
        }
        Path(out).with_suffix(".json").write_text(json.dumps(facts))
        Path(out).write_bytes(program.buffer)

    def open(self, path: str, options: SessionOptions) -> "PteSession":
        if not options.optimize:
            raise ValueError("ExecuTorch has no switch for its graph optimisations")
        return PteSession(path, options)


class PteSession:
    """See `modelmill.runtimes.protocol.Session`."""

    def __init__(self, path: str, options: SessionOptions) -> None:
        from executorch.extension.pybindings import portable_lib

        self._path = path
        facts = json.loads(Path(path).with_suffix(".json").read_text())
        self._facts: list[dict[str, Any]] = facts["inputs"]
        self._unsigned = frozenset(facts["unsigned"])
        self._integer: dict[str, list[bool]] = facts["integer"]
        self.inputs = tuple(str(given["name"]) for given in self._facts)
        self.outputs = tuple(facts["outputs"])
        portable_lib._unsafe_reset_threadpool(options.threads)
        self._program = portable_lib._load_program(
            path, program_verification=portable_lib.Verification.InternalConsistency
        )
        self._method = self._program.load_method("forward")

    def run(self, feeds: Arrays, outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        wanted = self.outputs if outputs is None else tuple(outputs)
        return in_slices(lambda part: self._once(part, wanted), feeds, self._batch())

    def _once(self, feeds: Arrays, wanted: Sequence[str]) -> dict[str, np.ndarray]:
        results = dict(zip(self.outputs, self._method.call(self._tensors(feeds)), strict=True))
        return {name: self._array(name, results[name]) for name in wanted}

    def bind(self, feeds: Arrays) -> Callable[[], object]:
        pieces = [self._tensors(part) for part in slices(feeds, self._batch())]
        method = self._program.load_method("forward")
        if len(pieces) == 1:
            method.set_inputs(pieces[0])
            return lambda: (method.execute(), pieces)

        def one_after_the_other() -> None:
            for piece in pieces:
                method.set_inputs(piece)
                method.execute()

        return one_after_the_other

    def _batch(self) -> int:
        return int(self._facts[0]["shape"][0]) if self._facts and self._facts[0]["shape"] else 1

    def _tensors(self, feeds: Arrays) -> list[Any]:
        """The inputs in order; ExecuTorch aborts the process on a wrong shape or type."""
        import torch

        arrays = [checked(feeds, g["name"], g["dtype"], g["shape"]) for g in self._facts]
        return [torch.from_numpy(array.copy()) for array in arrays]

    def _array(self, name: str, tensor: Any) -> np.ndarray:
        array: np.ndarray = tensor.numpy()
        if name in self._unsigned:  # signed codes stand for unsigned ones, 128 less
            return (array.astype(np.int16) + 128).astype(np.uint8)
        return array

    def executed(self) -> list[ExecutedOp]:
        """From the event trace of one inference, after one that warms up."""
        import torch
        from executorch.devtools import Inspector
        from executorch.extension.pybindings import portable_lib

        traced = portable_lib._load_for_executorch(self._path, enable_etdump=True)
        zeros = [torch.zeros(g["shape"], dtype=getattr(torch, g["dtype"])) for g in self._facts]
        with tempfile.TemporaryDirectory(prefix="modelmill-") as folder:
            traced.forward(zeros)
            traced.forward(zeros)
            traced.write_etdump_result_to_file(f"{folder}/trace.etdp")
            blocks = Inspector(etdump_path=f"{folder}/trace.etdp").event_blocks
        events: list[Any] = next((b.events for b in blocks if b.name == "Execute"), [])
        left = {name: list(flags) for name, flags in self._integer.items()}
        found: list[ExecutedOp] = []
        for event in events:
            if str(event.name) not in _SUMMARIES:
                found.append(_executed_op(event, left, found[-1] if found else None))
        return found

    def close(self) -> None:
        del self._method, self._program


def _partitioner() -> Any:
    """XNNPACK's, which also takes LeakyRelu between codes: XNNPACK has the 8-bit kernel and
    ExecuTorch writes it into the file, only the partitioner does not ask for it.
    """
    from executorch.backends.xnnpack.partition.config import ALL_PARTITIONER_CONFIGS
    from executorch.backends.xnnpack.partition.config.generic_node_configs import LeakyReLUConfig
    from executorch.backends.xnnpack.partition.config.xnnpack_config import ConfigPrecisionType
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

    class QuantizedLeakyRelu(LeakyReLUConfig):  # type: ignore[misc]
        def supported_precision_types(self) -> list[Any]:
            return [ConfigPrecisionType.FP32, ConfigPrecisionType.STATIC_QUANT]

    configs = [QuantizedLeakyRelu if c is LeakyReLUConfig else c for c in ALL_PARTITIONER_CONFIGS]
    return XnnpackPartitioner(configs=configs)


# Kernels whose name in the trace does not tell their precision, and the operator they come from.
_UNTOLD = {
    "Add": "add",
    "Subtract": "sub",
    "Multiply": "mul",
    "Square": "mul",  # of a tensor with itself
    "Mean": "mean",
    "LeakyReLU": "leaky_relu",
}
_SUMMARIES = ("DELEGATE_CALL", "OPERATOR_CALL", "Method::execute")
_MOVES = (
    *("Transpose", "Copy", "Convert", "Static Reshape", "Slice", "Constant Pad", "Concatenate"),
    *("slice_copy", "view_copy", "permute_copy", "constant_pad_nd", "upsample_nearest2d", "cat."),
    *("select_copy", "expand_copy", "index_select", "quantize_per", "dequantize_per"),
    *("unsqueeze_copy", "squeeze_copy", "split", "clone", "alias_copy", "_clone_dim_order"),
)
_PORTABLE = "native_call_"  # kernels of ExecuTorch itself
_EIGHT_BITS = {"QS8", "QC8", "QC8W", "QU8", "S8", "U8"}


def _integer_ops(program: Any) -> dict[str, list[bool]]:
    """For the operators of `_UNTOLD`, in the order of the file: whether each is between codes."""
    from executorch.backends.xnnpack.utils.quant_utils import is_tagged_as_implicit_q_dq
    from executorch.exir.lowered_backend_module import get_lowered_submodules

    found: dict[str, list[bool]] = {name: [] for name in sorted(set(_UNTOLD.values()))}
    for _, lowered, _ in get_lowered_submodules(program):
        for node in lowered.original_module.graph_module.graph.nodes:
            kind = str(node.target).partition("aten.")[2].partition(".")[0]
            if node.op == "call_function" and kind in found:
                found[kind].append(all(map(is_tagged_as_implicit_q_dq, node.all_input_nodes)))
    return found


def _executed_op(event: Any, left: dict[str, list[bool]], before: ExecutedOp | None) -> ExecutedOp:
    """A kernel of the trace. A clamp is the ReLU of what ran before it."""
    name = str(event.name)
    spent = event.perf_data.raw if event.perf_data else []
    us = float(spent[-1]) * 1000 if spent else None
    op = name.partition(" #")[0].partition(" (")[0].removeprefix(_PORTABLE)
    told = set(name.partition("(")[2].partition(")")[0].split(", "))  # "(NHWC, QC8)"
    kind: Kind = "float"
    precision = "float32"
    untold = left.get(_UNTOLD.get(op, ""))
    integer = bool(told & _EIGHT_BITS) or bool(untold and untold.pop(0))
    if op.startswith("Clamp") and before is not None:
        integer = before.integer
    if integer:
        kind, precision = "integer", "int8"
    elif op.startswith(_MOVES):
        kind = "conversion"
        precision = "int8" if "X8" in told else "float32" if "X32" in told else ""
    return ExecutedOp(name, op, precision, kind, us)


def _on_codes(graph: Any) -> list[str]:
    """Names of the nodes that only move elements and that XNNPACK has no 8-bit kernel for."""
    from modelmill import ir

    portable = ("Resize", "Gather", "Split", "Pad")
    names = []
    for node in ir.nodes(graph):
        strided = node.op_type == "Slice" and not _plain_slice(node)
        if node.op_type in portable or strided:
            names.append(node.name or "")
    return names


def _plain_slice(node: Any) -> bool:
    """Whether a Slice is one aten.slice with step 1."""
    from modelmill import ir

    starts, steps = ir.constant(node.inputs[1]), None
    if len(node.inputs) > 4:
        steps = ir.constant(node.inputs[4])
    return starts is not None and starts.size == 1 and (steps is None or (steps == 1).all())


PLUGIN = ExecuTorch()
