"""torch compiled by inductor for x86: oneDNN's 8-bit convolutions and matrix products, the rest C++
that inductor writes and the machine's compiler compiles.

The graph and its plan are exported with quantize and dequantize operators at the plan's points
(`executor.exportable`); with frozen weights inductor turns a layer between them into one kernel
(`onednn::qconv_pointwise`), with what it knows to fuse. All is done when a session opens, for the
model's own batch or one picture; a second session finds the compiled C++ in inductor's cache.
https://docs.pytorch.org/ao/stable/pt2e_quantization/pt2e_quant_x86_inductor.html
"""

import importlib.util
import re
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from modelmill.runtimes.inputs import checked
from modelmill.runtimes.protocol import Arrays, ExecutedOp, Kind, SessionOptions
from modelmill.runtimes.slices import in_slices, slices

_COMPILERS = ("g++", "c++", "clang++")
_KERNELS = ("onednn::", "mkldnn::", "aten::", "cpp_fused", "graph_")
# What a C++ kernel's name may hold when it only changes formats or moves elements.
_CONVERTS = re.compile(
    r"graph_\d+|cpp_fused|per_tensor|per_channel|dequantize|quantize|_to_copy|clone|copy|cat|slice"
    r"|select|view|reshape|permute|transpose|constant_pad_nd|unsqueeze|squeeze|split|expand|_|\d"
)
_MOVES = ("empty", "view", "reshape", "as_strided", "item", "to", "_to_copy", "copy", "resize")


class TorchInductor:
    """See `modelmill.runtimes.protocol.Runtime`."""

    name = "torch_inductor"
    supported = ("2.9", "3")
    pip = f'pip install "torch>={supported[0]},<{supported[1]}"'
    suffix = ".onnx"

    def missing(self) -> str | None:
        return None if importlib.util.find_spec("torch") else self.pip

    def version(self) -> str:
        import torch

        return str(torch.__version__).split("+")[0]

    def convert(self, source: str, out: str, options: SessionOptions) -> None:
        raise NotImplementedError("the ONNX file is compiled when it is opened")

    def open(self, path: str, options: SessionOptions) -> "CompiledSession":
        if not options.optimize:
            raise ValueError("a compiled model without optimisations is -t torch_eager")
        if not any(map(shutil.which, _COMPILERS)):
            raise RuntimeError(f"inductor needs a C++ compiler: none of {', '.join(_COMPILERS)}")
        return CompiledSession(path, options)


class CompiledSession:
    """See `modelmill.runtimes.protocol.Session`."""

    def __init__(self, path: str, options: SessionOptions) -> None:
        import torch
        from torch._inductor import config

        from modelmill import ir
        from modelmill.executor.exportable import Exportable

        torch.set_num_threads(options.threads)
        config.freezing = True
        config.compile_threads = 1  # no helper processes that outlive the session
        config.cpp.enable_kernel_profile = True  # names for its own kernels in a profile
        graph, shown = ir.without_exposed(ir.load(path))
        if ir.is_batch_dynamic(graph):
            graph = ir.with_batch(graph, options.batch or 1)
        module = Exportable(*ir.from_qdq(graph), codes=tuple(shown.values()), signed=False).eval()
        self.inputs, self.outputs = module.input_names, (*module.output_names, *shown)
        self._example = module.example
        with torch.no_grad():
            exported = torch.export.export(module, module.example).module()
            self._compiled = torch.compile(exported, fullgraph=True)
            self._compiled(*module.example)

    def run(self, feeds: Arrays, outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        wanted = self.outputs if outputs is None else tuple(outputs)
        return in_slices(lambda part: self._once(part, wanted), feeds, self._batch())

    def _once(self, feeds: Arrays, wanted: Sequence[str]) -> dict[str, np.ndarray]:
        import torch

        with torch.no_grad():
            results = self._compiled(*self._tensors(feeds))
        found = dict(zip(self.outputs, results, strict=True))
        return {name: np.ascontiguousarray(found[name].numpy()).copy() for name in wanted}

    def bind(self, feeds: Arrays) -> Callable[[], object]:
        import torch

        pieces = [self._tensors(part) for part in slices(feeds, self._batch())]

        def call() -> None:
            with torch.no_grad():
                for piece in pieces:
                    self._compiled(*piece)

        return call

    def _batch(self) -> int:
        return int(self._example[0].shape[0]) if self._example and self._example[0].dim() else 1

    def _tensors(self, feeds: Arrays) -> list[Any]:
        """The inputs in order, checked: another shape or type would be compiled anew in silence."""
        import torch

        arrays = [
            checked(feeds, name, str(like.dtype).removeprefix("torch."), like.shape)
            for name, like in zip(self.inputs, self._example, strict=True)
        ]
        return [torch.from_numpy(array.copy()) for array in arrays]

    def executed(self) -> list[ExecutedOp]:
        """From a profile of one inference."""
        import torch
        from torch.profiler import ProfilerActivity, profile

        with torch.no_grad(), profile(activities=[ProfilerActivity.CPU]) as trace:
            self._compiled(*self._example)
        events = sorted(trace.events() or (), key=lambda event: event.time_range.start)
        return [op for event in events if (op := _executed_op(event)) is not None]

    def close(self) -> None:
        import torch

        del self._compiled
        torch._dynamo.reset()


def _executed_op(event: Any) -> ExecutedOp | None:
    """A kernel of the profile; None for bookkeeping and for what runs inside another kernel."""
    name = str(event.name)
    parent = event.cpu_parent
    inside = parent is not None and str(parent.name).startswith(_KERNELS)
    if not name.startswith(_KERNELS) or inside:
        return None
    op = name.rpartition("::")[2]
    if name.startswith("aten::") and op in _MOVES:
        return None
    kind: Kind = "float"
    if name.startswith("onednn::q"):
        kind = "integer"
    elif name.startswith("graph_") and not _CONVERTS.sub("", name):
        kind = "conversion"
    precision = "uint8" if kind == "integer" else "float32"
    return ExecutedOp(name, op, precision, kind, float(event.cpu_time_total))


PLUGIN = TorchInductor()
