"""ncnn on the CPU.

`convert` writes ncnn's two files itself (`modelmill.export.ncnn`) and a third that maps the names
of the ONNX file to blobs. float16 and bfloat16 storage are off, so that float layers compute in
float32 and what runs is what the file says; packed layouts, Winograd transforms of float
convolutions and int8 inference are ncnn's defaults. ncnn runs one image at a time. It fuses nothing
when it loads, so the layers of the file are the kernels it runs; it cannot time them one by one.
"""

import importlib.util
import json
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from modelmill import ir
from modelmill.export.ncnn import write
from modelmill.ir import Plan
from modelmill.runtimes.protocol import Arrays, ExecutedOp, Kind, SessionOptions
from modelmill.runtimes.slices import in_slices, slices

_PRODUCTS = frozenset({"Convolution", "ConvolutionDepthWise", "InnerProduct"})
_CONVERSIONS = frozenset({"Quantize", "Dequantize", "Requantize", "Cast", "Packing"})
_NO_KERNELS = frozenset({"Input", "Split", "MemoryData"})
_MOVEMENT = frozenset(
    {"Reshape", "Permute", "ShuffleChannel", "Concat", "Slice", "Crop", "Padding", "Tile"}
)
_INT8_TERM = "8="  # the parameter that makes a layer work on int8


class Ncnn:
    """See `modelmill.runtimes.protocol.Runtime`."""

    name = "ncnn"
    supported = ("1.0.20260114", "2")
    pip = f'pip install "ncnn>={supported[0]},<{supported[1]}"'
    suffix = ".param"

    def missing(self) -> str | None:
        return None if importlib.util.find_spec("ncnn") else self.pip

    def version(self) -> str:
        import ncnn

        return str(ncnn.__version__)

    def convert(self, source: str, out: str, options: SessionOptions) -> None:
        graph, codes = ir.without_exposed(ir.load(source))
        plan = Plan()
        if any(node.op_type == "QuantizeLinear" for node in ir.nodes(graph)):
            graph, plan = ir.from_qdq(graph)
        graph = ir.with_batch(graph, 1) if ir.is_batch_dynamic(graph) else ir.infer_shapes(graph)
        model = write(graph, plan, codes)
        path = Path(out)
        sums = {".param": _sum(model.param.encode()), ".bin": _sum(model.weights)}
        path.with_suffix(".bin").write_bytes(model.weights)
        path.with_suffix(".json").write_text(json.dumps({**model.tensors, "crc32": sums}))
        path.write_text(model.param)

    def open(self, path: str, options: SessionOptions) -> "NcnnSession":
        if not options.optimize:
            raise ValueError("ncnn has no switch for its graph optimisations: it has none")
        return NcnnSession(Path(path), options)


class NcnnSession:
    """See `modelmill.runtimes.protocol.Session`."""

    def __init__(self, path: Path, options: SessionOptions) -> None:
        import ncnn

        tensors = _read(path)
        self._inputs, self._outputs = tensors["inputs"], tensors["outputs"]
        self.inputs = tuple(str(t["name"]) for t in self._inputs)
        self.outputs = tuple(str(t["name"]) for t in self._outputs)
        self._layers = path.read_text().splitlines()[2:]
        self._net = ncnn.Net()
        option = self._net.opt
        option.num_threads = options.threads
        option.use_fp16_packed = option.use_fp16_storage = option.use_fp16_arithmetic = False
        option.use_bf16_packed = option.use_bf16_storage = False
        for load, file in (
            (self._net.load_param, path),
            (self._net.load_model, path.with_suffix(".bin")),
        ):
            if load(str(file)) != 0:
                raise ValueError(f"ncnn refuses {file.name}: it is of another version")

    def run(self, feeds: Arrays, outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        wanted = self.outputs if outputs is None else tuple(outputs)
        given = self._checked(feeds)
        if self._is_one(given):
            return self._one(given, wanted)
        return in_slices(lambda one: self._one(one, wanted), given, self._inputs[0]["shape"][0])

    def bind(self, feeds: Arrays) -> Callable[[], object]:
        given, size = self._checked(feeds), self._inputs[0]["shape"][0]
        cut = [given] if self._is_one(given) else slices(given, size)
        parts = [self._given(part) for part in cut]
        blobs = [t["blob"] for t in self._outputs]

        def call() -> None:
            for part in parts:
                with self._net.create_extractor() as extractor:
                    for blob, mat in part:
                        extractor.input(blob, mat)
                    for blob in blobs:
                        extractor.extract(blob)

        return call

    def executed(self) -> list[ExecutedOp]:
        found = (_executed_op(line.split()) for line in self._layers)
        return [op for op in found if op is not None]

    def close(self) -> None:
        self._net.clear()

    def _is_one(self, feeds: Arrays) -> bool:
        """Whether that is what the net takes, no larger batch of it."""
        return all(list(feeds[t["name"]].shape) == t["shape"] for t in self._inputs)

    def _one(self, feeds: Arrays, wanted: Sequence[str]) -> dict[str, np.ndarray]:
        """One image."""
        found = {}
        with self._net.create_extractor() as extractor:
            for blob, mat in self._given(feeds):
                extractor.input(blob, mat)
            for name in wanted:
                tensor = self._outputs[self.outputs.index(name)]
                code, mat = extractor.extract(tensor["blob"])
                if code != 0:
                    raise RuntimeError(f"ncnn cannot compute {name!r}: its error is {code}")
                array = np.array(mat).reshape(tensor["shape"])
                found[name] = array.astype(np.int8) if tensor["codes"] else array
        return found

    def _given(self, feeds: Arrays) -> list[tuple[str, Any]]:
        """Blobs and their contents, copied: a Mat does not keep the array alive that it was made
        of, and ncnn may compute in an input's memory.
        """
        import ncnn

        arrays = [np.ascontiguousarray(feeds[t["name"]].reshape(t["dims"])) for t in self._inputs]
        mats = [ncnn.Mat(array).clone() for array in arrays]
        return [(t["blob"], mat) for t, mat in zip(self._inputs, mats, strict=True)]

    def _checked(self, feeds: Arrays) -> dict[str, np.ndarray]:
        found = {}
        for tensor in self._inputs:
            name, shape = tensor["name"], tuple(tensor["shape"])
            array = np.asarray(feeds[name])
            if array.dtype != np.float32 or array.shape[1:] != shape[1:] or array.size == 0:
                raise ValueError(
                    f"input {name!r} must be float32 of shape {('n', *shape[1:])} and not empty; "
                    f"it is {array.dtype} of shape {array.shape}"
                )
            found[name] = array
        return found


def _read(path: Path) -> dict[str, Any]:
    """Inputs and outputs; the files must be those that were written, for ncnn would take any
    numbers for weights.
    """
    try:
        tensors = json.loads(path.with_suffix(".json").read_text())
        keys = {key for kind in ("inputs", "outputs") for tensor in tensors[kind] for key in tensor}
        sums = {s: _sum(path.with_suffix(s).read_bytes()) for s in tensors["crc32"]}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path.stem}.json beside {path.name} is damaged: {error}") from error
    if sums != tensors["crc32"] or keys != {"name", "blob", "shape", "dims", "codes"}:
        raise ValueError(f"{path.stem}.param, .bin or .json was changed since it was written")
    return dict(tensors)


def _sum(content: bytes) -> int:
    return zlib.crc32(content)


def _executed_op(words: list[str]) -> ExecutedOp | None:
    """What a line of the .param file runs."""
    kind, name = words[0], words[1]
    if kind in _NO_KERNELS:
        return None
    if kind in _PRODUCTS and any(word.startswith(_INT8_TERM) for word in words[4:]):
        return ExecutedOp(name, kind, "int8", "integer", None)
    if kind in _CONVERSIONS:
        return ExecutedOp(name, kind, "int8", "conversion", None)
    work: Kind = "other" if kind in _MOVEMENT else "float"
    return ExecutedOp(name, kind, "float32", work, None)


PLUGIN = Ncnn()
