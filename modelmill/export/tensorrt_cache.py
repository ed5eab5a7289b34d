"""TensorRT's calibration cache, and the same as dynamic ranges, for implicit quantization.

The cache is text: a first line with version and calibrator, then a line for each tensor, its name
and the bits of its float32 scale in hexadecimal, most significant first. TensorRT skips calibration
when it is given one (trtexec --int8 --calib=FILE). The other file has the largest absolute number
of each tensor, as `ITensor.dynamic_range` and the sample for the INT8 API take it. Weights are not
in either: TensorRT quantizes them itself, per channel, by their largest number.
Source: docs.nvidia.com/deeplearning/tensorrt, sampleINT8 (calibration file) and sampleINT8API.
"""

import struct

from modelmill import ir
from modelmill.export import tensors
from modelmill.ir import Plan

# The last series before calibration was deprecated; another version wants its own number here.
HEADER = "TRT-8601-EntropyCalibration2"
CODES = 127  # TensorRT's scale is the largest absolute number / 127


def write(graph: ir.Graph, plan: Plan) -> dict[str, bytes]:
    """`.calib.cache`, `.ranges.txt` and the float model."""
    found = tensors.activations(graph, plan)
    scales = {name: float(encoding.scale) for name, encoding in found.items()}
    cache = [HEADER, *(f"{name}: {struct.pack('>f', s).hex()}" for name, s in scales.items())]
    ranges = [f"{name}: {scale * CODES!r}" for name, scale in scales.items()]
    return {
        ".calib.cache": ("\n".join(cache) + "\n").encode(),
        ".ranges.txt": ("\n".join(ranges) + "\n").encode(),
        **tensors.float_model(graph),
    }


PLUGIN = write
