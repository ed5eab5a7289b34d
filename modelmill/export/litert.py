"""Write a LiteRT file (.tflite) from a float graph and a plan: int8 where the plan has encodings,
float elsewhere.

    litert_file     tensors and operators, and how they become a flatbuffer
    litert_layout   values as atoms in memory, so that most layout changes cost nothing
    litert_writer   values to tensors: encodings, conversions, order of dimensions
    litert_layers, litert_ops   one function for each operator

The file's metadata entry "modelmill" says how the tensors of the file become those of ONNX: names,
order of the dimensions, and which outputs are codes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from modelmill import ir
from modelmill.export.litert_file import IDENTIFIER
from modelmill.export.litert_ops import OPS
from modelmill.export.litert_writer import METADATA, Writer
from modelmill.ir import Plan


def write(
    graph: ir.Graph,
    plan: Plan,
    codes: Mapping[str, str] | None = None,
    integer_ends: bool = False,
) -> bytes:
    """The LiteRT file of `graph` under `plan`.

    Args:
        graph: a float graph with fixed shapes and folded constants.
        plan: encodings; empty for a float file.
        codes: {name: value of the graph whose codes are a further output of that name}.
        integer_ends: inputs and outputs that the plan quantizes are int8 tensors, not float ones.

    Raises:
        ValueError: LiteRT has no way to run a node, or a format of the plan.
    """
    return Writer(graph, plan, codes or {}, integer_ends).write(OPS)


def export(graph: ir.Graph, plan: Plan) -> dict[str, bytes]:
    """The file for a chip's toolchain, batch 1, with int8 inputs and outputs: {suffix: bytes}."""
    fixed = ir.with_batch(graph, 1) if ir.is_batch_dynamic(graph) else graph
    return {".tflite": write(fixed, plan, integer_ends=True)}


def facts(content: bytes) -> dict[str, Any]:
    """What a file of `write` says about its inputs and outputs.

    Raises:
        ValueError: the file is damaged, or was not written here.
    """
    import tflite

    try:
        if content[4:8] != IDENTIFIER:
            raise ValueError("no such identifier")
        model = tflite.Model.GetRootAs(content, 0)
        entries = [model.Metadata(i) for i in range(model.MetadataLength())]
        buffers = {entry.Name().decode(): model.Buffers(entry.Buffer()) for entry in entries}
        found: dict[str, Any] = json.loads(buffers[METADATA].DataAsNumpy().tobytes())
    except Exception as error:  # a damaged flatbuffer raises anything
        raise ValueError(f"not a LiteRT file of modelmill: {error}") from error
    return found


PLUGIN = export
