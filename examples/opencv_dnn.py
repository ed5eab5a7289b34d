"""One more engine in the fleet, in one file outside the package: OpenCV's DNN module.

    modelmill build MODEL.onnx -d DATA -t examples/opencv_dnn.py -o OUT --allow-fallback

PLUGIN is the target: what the engine takes. RUNTIME is its adapter: how a model is run, in a worker
process that modelmill starts. OpenCV reads QDQ models and computes the convolutions in float
between the codes: that is what `executed` tells, so a build says that int8 fell back, and is
accepted with --allow-fallback only. It is an example of an adapter, not an advice.
"""

import importlib.util
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from modelmill.numerics import Arithmetic, QuantSpec
from modelmill.runtimes import ExecutedOp, SessionOptions
from modelmill.runtimes.slices import in_slices
from modelmill.targets import OpRule, Scheme, Target

Arrays = Mapping[str, np.ndarray]
CONVERSIONS = ("Quantize", "Dequantize")


class OpenCv:
    name = "opencv_dnn"
    supported = ("4.10", "6")
    pip = 'pip install "opencv-python-headless>=4.10,<6"'
    suffix = ".onnx"  # it reads ONNX itself: there is nothing to convert

    def missing(self) -> str | None:
        return None if importlib.util.find_spec("cv2") else self.pip

    def version(self) -> str:
        import cv2

        return str(cv2.__version__)

    def open(self, path: str, options: SessionOptions) -> "OpenCvSession":
        return OpenCvSession(path, options)


class OpenCvSession:
    def __init__(self, path: str, options: SessionOptions) -> None:
        import cv2

        from modelmill import ir

        cv2.setNumThreads(options.threads)
        graph = ir.load(path)
        self.inputs, self.outputs = tuple(ir.inputs(graph)), tuple(ir.outputs(graph))
        self._unsigned = {name for name, o in ir.outputs(graph).items() if o.dtype == np.uint8}
        classic = getattr(cv2.dnn, "ENGINE_CLASSIC", None)  # since 5.0 there are several
        read = cv2.dnn.readNetFromONNX
        self._net = read(path) if classic is None else read(path, classic)
        self._names = [f"onnx_node!{node.name}" for node in _makers(graph, self.outputs)]

    def run(self, feeds: Arrays, outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        wanted = self.outputs if outputs is None else outputs

        def call(piece: Arrays) -> dict[str, np.ndarray]:
            self._give(piece)
            found = dict(zip(self.outputs, self._net.forward(self._names), strict=True))
            return {name: self._shown(name, found[name]) for name in wanted}

        return in_slices(call, feeds, 1)

    def _shown(self, name: str, array: np.ndarray) -> np.ndarray:
        """OpenCV holds unsigned codes as signed ones, 128 lower."""
        if name in self._unsigned:
            return (array.astype(np.int16) + 128).astype(np.uint8)
        return array.copy()

    def bind(self, feeds: Arrays) -> Callable[[], object]:
        self._give(feeds)
        return lambda: self._net.forward(self._names)

    def _give(self, feeds: Arrays) -> None:
        for name in self.inputs:
            if feeds[name].dtype != np.float32:
                raise ValueError(f"input {name!r} must be float32, not {feeds[name].dtype}")
            self._net.setInput(feeds[name], name)

    def executed(self) -> list[ExecutedOp]:
        found = []
        for name in self._net.getLayerNames():
            op = self._net.getLayer(self._net.getLayerId(name)).type
            integer = op.endswith("Int8")
            kind = "conversion" if op in CONVERSIONS else "integer" if integer else "float"
            found.append(ExecutedOp(name, op, "int8" if integer else "float32", kind, None))
        return found

    def close(self) -> None:
        del self._net


def _makers(graph, outputs):
    """The nodes that make the outputs, whose layers OpenCV names after them."""
    from modelmill import ir

    makers = {value.name: node for node in ir.nodes(graph) for value in node.outputs}
    return [makers[name] for name in outputs]


RUNTIME = OpenCv()
PLUGIN = Target(
    name="opencv_dnn",
    runtime=__file__,
    schemes=(
        Scheme(
            "w8a8",
            activation=QuantSpec(8, signed=False, symmetric=False),
            weight=QuantSpec(8, signed=True, symmetric=True, axis=0),
        ),
    ),
    rules=(
        OpRule("Conv", ("activation", "weight"), float_output=True, anchor=True),
        OpRule("Gemm", ("activation", "weight"), float_output=True, anchor=True),
    ),
    fused=(("Conv", "Relu"), ("Gemm", "Relu")),
    arithmetic=Arithmetic(),
    float_kernels=(("Convolution", "Conv"), ("InnerProduct", "Gemm"), ("Gemm", "Gemm")),
    source="read from OpenCV 5.0 by running it",
)
