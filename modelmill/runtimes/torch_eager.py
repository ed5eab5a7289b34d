"""torch, operator by operator: a reference that computes every layer in float32.

The file is the ONNX file itself, run by the executor. A QuantizeLinear gives codes and a
DequantizeLinear real numbers, as the standard says; what stands between them is float arithmetic on
numbers that codes can express ("fake quantization"), not an 8-bit kernel. It is the arithmetic that
quantization-aware training sees, and its latency says nothing about integers.
"""

import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from modelmill.runtimes.protocol import Arrays, ExecutedOp, Kind, SessionOptions

_CONVERSIONS = frozenset({"QuantizeLinear", "DequantizeLinear", "Cast"})
_MOVES = frozenset(
    [
        *("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Gather", "Split"),
        *("Concat", "Pad", "Identity", "Expand", "Shape", "Constant", "ConstantOfShape"),
    ]
)


class TorchEager:
    """See `modelmill.runtimes.protocol.Runtime`."""

    name = "torch_eager"
    supported = ("2.6", "3")
    pip = f'pip install "torch>={supported[0]},<{supported[1]}"'
    suffix = ".onnx"

    def missing(self) -> str | None:
        return None if importlib.util.find_spec("torch") else self.pip

    def version(self) -> str:
        import torch

        return str(torch.__version__).split("+")[0]

    def convert(self, source: str, out: str, options: SessionOptions) -> None:
        raise NotImplementedError("the ONNX file is what is run")

    def open(self, path: str, options: SessionOptions) -> "EagerSession":
        if not options.optimize:
            raise ValueError("torch's eager mode has no graph optimisations to switch off")
        return EagerSession(path, options)


class EagerSession:
    """See `modelmill.runtimes.protocol.Session`."""

    def __init__(self, path: str, options: SessionOptions) -> None:
        import torch

        from modelmill import ir
        from modelmill.executor import Module

        torch.set_num_threads(options.threads)
        graph = ir.load(path)
        self._taken = ir.inputs(graph)
        self._nodes = [(n.name or "", n.op_type) for n in ir.nodes(graph)]
        self._module = Module(graph)
        self.inputs, self.outputs = tuple(self._taken), tuple(ir.outputs(graph))

    def run(self, feeds: Arrays, outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        import torch

        given = self._tensors(feeds)
        with torch.inference_mode():
            found = self._module(given, self.outputs if outputs is None else tuple(outputs))
        return {name: np.ascontiguousarray(y.numpy()).copy() for name, y in found.items()}

    def bind(self, feeds: Arrays) -> Callable[[], object]:
        import torch

        given = self._tensors(feeds)

        def call() -> object:
            with torch.inference_mode():
                return self._module(given)

        call()  # refuses a wrong input now
        return call

    def _tensors(self, feeds: Arrays) -> dict[str, Any]:
        import torch

        for name, info in self._taken.items():
            array = np.asarray(feeds[name])
            fits = len(array.shape) == len(info.shape) and all(
                not isinstance(want, int) or want == n
                for want, n in zip(info.shape, array.shape, strict=False)
            )
            if array.dtype != info.dtype or not fits or array.size == 0:
                raise ValueError(
                    f"input {name!r} must be {info.dtype} of shape {info.shape} and not empty;"
                    f" it is {array.dtype} of shape {array.shape}"
                )
        return {n: torch.from_numpy(np.array(feeds[n], order="C")) for n in self._taken}

    def executed(self) -> list[ExecutedOp]:
        """The nodes of the file, which is what runs; none is timed alone."""
        found = []
        for name, op in self._nodes:
            kind: Kind = "conversion" if op in _CONVERSIONS else "float"
            if op in _MOVES:
                kind = "other"
            found.append(ExecutedOp(name, op, "float32", kind, None))
        return found

    def close(self) -> None:
        del self._module


PLUGIN = TorchEager()
