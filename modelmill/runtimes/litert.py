"""LiteRT on the CPU: the interpreter of `ai-edge-litert`, whose default delegate is XNNPACK.

The file is written by `modelmill.export.litert` from the ONNX file, int8 with the encodings of the
plan; no converter of the engine takes part. Tensors are NHWC: `run` brings inputs and outputs to
and from the order of ONNX, `bind` does so before the clock starts, as an application keeps its
images in the engine's order.

What ran is read from the execution plan: a node that the delegate took is one of XNNPACK's kernels,
the others are the interpreter's own. The engine has no clock for single kernels in Python.
https://ai.google.dev/edge/api/tflite/python/tf/lite/Interpreter
"""

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from modelmill import ir
from modelmill.export import litert
from modelmill.runtimes.inputs import checked
from modelmill.runtimes.protocol import Arrays, ExecutedOp, Kind, SessionOptions
from modelmill.runtimes.slices import in_slices, slices

_CONVERSIONS = frozenset({"QUANTIZE", "DEQUANTIZE", "RESHAPE", "TRANSPOSE"})
_UNSIGNED = 128  # codes of an unsigned format are stored minus this


class LiteRt:
    """See `modelmill.runtimes.protocol.Runtime`."""

    name = "litert"
    supported = ("2.2", "3")  # before 2.2 means round in another order
    pip = f'pip install "ai-edge-litert>={supported[0]},<{supported[1]}" "tflite>=2.18,<3"'
    suffix = ".tflite"

    def missing(self) -> str | None:
        needed = ("ai_edge_litert", "tflite")
        return None if all(importlib.util.find_spec(name) for name in needed) else self.pip

    def version(self) -> str:
        from importlib.metadata import version

        import ai_edge_litert.interpreter  # noqa: F401 (proves that it loads)

        return version("ai-edge-litert")

    def convert(self, source: str, out: str, options: SessionOptions) -> None:
        graph, codes = ir.without_exposed(ir.load(source))
        graph, plan = ir.from_qdq(graph)
        if ir.is_batch_dynamic(graph):
            graph = ir.with_batch(graph, 1)
        Path(out).write_bytes(litert.write(graph, plan, codes))

    def open(self, path: str, options: SessionOptions) -> "LiteRtSession":
        if not options.optimize:
            raise ValueError("LiteRT's interpreter has no graph optimisations to switch off")
        return LiteRtSession(path, options)


class LiteRtSession:
    """See `modelmill.runtimes.protocol.Session`."""

    def __init__(self, path: str, options: SessionOptions) -> None:
        content = Path(path).read_bytes()
        self._facts = litert.facts(content)
        self._content, self._options = content, options
        self._size = int(self._facts["inputs"][0]["shape"][0])
        self._interpreter = self._load(delegate=True)
        self._fed = [i["index"] for i in self._interpreter.get_input_details()]
        self._given = [o["index"] for o in self._interpreter.get_output_details()]
        self.inputs = tuple(str(i["name"]) for i in self._facts["inputs"])
        self.outputs = tuple(str(o["name"]) for o in self._facts["outputs"])

    def run(self, feeds: Arrays, outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        wanted = self.outputs if outputs is None else tuple(outputs)

        def call(part: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            self._give(self._interpreter, self._ordered(part))
            self._interpreter.invoke()
            return {name: self._output(name) for name in wanted}

        given = {name: feeds[name] for name in self.inputs}
        return in_slices(call, given, self._size)

    def bind(self, feeds: Arrays) -> Callable[[], object]:
        interpreter = self._load(delegate=True)
        parts = [self._ordered(part) for part in slices(feeds, self._size)]
        if len(parts) == 1:
            self._give(interpreter, parts[0])
            return interpreter.invoke  # type: ignore[no-any-return]

        def call() -> None:
            for part in parts:
                self._give(interpreter, part)
                interpreter.invoke()

        return call

    def executed(self) -> list[ExecutedOp]:
        plain = self._load(delegate=False)
        nodes = plain._get_ops_details()
        names = {t["index"]: str(t["name"]) for t in plain.get_tensor_details()}
        taken = _delegated(nodes, self._interpreter._get_ops_details())
        return [_executed_op(node, names, i in taken) for i, node in enumerate(nodes)]

    def close(self) -> None:
        del self._interpreter

    def _load(self, delegate: bool) -> Any:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        kinds = OpResolverType
        made = Interpreter(
            model_content=self._content,
            num_threads=self._options.threads,
            experimental_op_resolver_type=kinds.AUTO
            if delegate
            else kinds.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        )
        made.allocate_tensors()
        return made

    def _ordered(self, feeds: Arrays) -> list[np.ndarray]:
        """The inputs in the engine's order of dimensions."""
        found = []
        for facts in self._facts["inputs"]:
            array = checked(feeds, facts["name"], "float32", facts["shape"])
            found.append(np.ascontiguousarray(array.transpose(facts["order"])))
        return found

    def _give(self, interpreter: Any, ordered: list[np.ndarray]) -> None:
        for index, array in zip(self._fed, ordered, strict=True):
            interpreter.set_tensor(index, array)

    def _output(self, name: str) -> np.ndarray:
        facts = self._facts["outputs"][self.outputs.index(name)]
        stored: np.ndarray = self._interpreter.get_tensor(self._given[facts["position"]])
        array = stored.reshape(facts["atoms"]).transpose(facts["places"]).reshape(facts["shape"])
        if facts["codes"] == "uint8":
            return (array.astype(np.int16) + _UNSIGNED).astype(np.uint8)
        return np.array(array, order="C")


def _delegated(nodes: list[dict[str, Any]], ran: list[dict[str, Any]]) -> set[int]:
    """Numbers of the operators that a delegate took: all between its inputs and its outputs."""
    producer = {int(t): i for i, node in enumerate(nodes) for t in node["outputs"]}
    found: set[int] = set()
    for delegate in ran[len(nodes) :]:
        edge = {int(t) for t in delegate["inputs"]}
        left = [int(t) for t in delegate["outputs"]]
        while left:
            number = producer.get(left.pop())
            if number is not None and number not in found:
                found.add(number)
                left += [int(t) for t in nodes[number]["inputs"] if int(t) not in edge]
    return found


def _executed_op(node: dict[str, Any], names: dict[int, str], delegated: bool) -> ExecutedOp:
    """One kernel; "builtin" is what the interpreter runs beside XNNPACK."""
    op, output = str(node["op_name"]), int(node["outputs"][0])
    precision = np.dtype(node["result_types"][0]).name
    kind: Kind = "integer" if precision in ("int8", "uint8") else "float"
    if op in _CONVERSIONS:
        kind = "conversion"
    elif precision in ("int32", "int64", "bool"):
        kind = "other"
    name = names.get(output, f"tensor {output}")
    return ExecutedOp(name, op if delegated else f"{op} (builtin)", precision, kind, None)


PLUGIN = LiteRt()
