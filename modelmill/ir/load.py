"""Read an ONNX file into a Graph with everything the rest relies on, or say what is wrong with it.

The checks work on the protobuf, before the graph is linked: parse, external data, functions
inlined, operator set, operators, links, order, weights; then constants become initializers, names
are completed, and the standard's shape inference runs.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx.checker
import onnx.defs
import onnx.inliner
import onnx.shape_inference
import onnx.version_converter
import onnx_ir
from google.protobuf.message import DecodeError, Message
from onnx import numpy_helper
from onnx.external_data_helper import ExternalDataInfo

from modelmill.ir.graph import Graph, ModelError, outputs, to_bytes

OLDEST_OPSET = 11


def load(path: str | os.PathLike[str]) -> Graph:
    """Read an ONNX file of opset 11 or later (older ones are converted where possible).

    Raises:
        ModelError: file missing, truncated or not ONNX; external data missing; operator set too old
            or too new; operator unknown; NaN or infinite weights; cyclic or dangling inputs; no
            inputs or outputs. The message names the place.
    """
    path = Path(path)
    try:
        return from_bytes(_read(path), path.parent)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error


def from_bytes(data: bytes, folder: str | os.PathLike[str] = ".") -> Graph:
    """The same for the content of a file; `folder` is where its external data lies."""
    proto = _parse(data)
    _load_external_data(proto, Path(folder))
    proto = _inline_functions(_at_least(proto, OLDEST_OPSET))
    graph = proto.graph
    _check_interface(graph)
    _check_operators(proto)
    _check_links(graph, frozenset())
    _sort(graph)
    _lift_constants(graph)
    _check_weights(graph)
    _complete_names(graph)
    return _link(proto)


def at_opset(graph: Graph, version: int) -> Graph:
    """A graph of at least this opset, through ONNX's own converter (per-channel QDQ needs 13)."""
    proto = _parse(to_bytes(graph))
    if _opset(proto) >= version:
        return graph.clone()
    return from_bytes(_at_least(proto, version).SerializeToString())


def save(graph: Graph, path: str | os.PathLike[str]) -> None:
    """Write the graph as one ONNX file, whole or not at all.

    A temporary file in the same folder is written, flushed to the disk and renamed.

    Raises:
        ModelError: the folder is missing or not writable, or the disk is full.
    """
    path = Path(path)
    try:
        write_whole(path, to_bytes(graph))
    except OSError as error:
        raise ModelError(f"cannot write {path}: {error.strerror or error}") from error


def write_whole(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: under another name, flushed to the disk, then renamed.

    Raises:
        OSError: the folder is missing or not writable, or the disk is full.
    """
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp makes it private
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


# ---------------------------------------------------------------- parse

_OTHER_FORMATS = (
    (b"PK\x03\x04", "a zip archive (a PyTorch .pt or .pt2 file?)"),
    (b"\x80", "a Python pickle (a PyTorch weights file?)"),
    (b"version https://git-lfs", "a Git LFS pointer: run `git lfs pull`"),
    (b"<", "a web page or XML file"),
)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ModelError("no such file") from None
    except OSError as error:
        raise ModelError(f"cannot be read: {error.strerror or error}") from error


def _parse(data: bytes) -> onnx.ModelProto:
    for start, what in _OTHER_FORMATS:
        if data.startswith(start):
            raise ModelError(f"this is not ONNX but {what}")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError:
        raise ModelError(
            f"not an ONNX model, or a truncated one ({len(data)} bytes). Fetch or export it again."
        ) from None
    # Protobuf takes many strange byte strings for an empty or half message.
    if not proto.HasField("graph") or not proto.ir_version or not proto.opset_import:
        raise ModelError(
            f"not an ONNX model, or a truncated one ({len(data)} bytes: no "
            f"{'graph' if not proto.HasField('graph') else 'version'}). Fetch or export it again."
        )
    _check_text(proto)
    for entry in proto.opset_import:
        if entry.domain == "ai.onnx":
            entry.domain = ""
    return proto


def _check_text(message: Message) -> None:
    """Protobuf hands out a string that is not UTF-8 as bytes, which nothing else expects."""
    for field, content in message.ListFields():
        if field.type not in (field.TYPE_STRING, field.TYPE_MESSAGE):
            continue
        single = isinstance(content, Message | str | bytes)
        for part in [content] if single else content:
            if isinstance(part, Message):
                _check_text(part)
            elif isinstance(part, bytes):
                raise ModelError(f"damaged: {field.full_name} holds {part!r}, which is no text")


def _load_external_data(proto: onnx.ModelProto, folder: Path) -> None:
    for tensor in _tensors(proto.graph):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        where = ExternalDataInfo(tensor)
        file = folder / where.location
        inside = not Path(where.location).is_absolute() and ".." not in Path(where.location).parts
        if not where.location or not inside:
            raise ModelError(
                f"the data of {tensor.name!r} lies outside the model's folder "
                f"({where.location!r}), which is refused"
            )
        try:
            with file.open("rb") as stream:
                stream.seek(where.offset or 0)
                data = stream.read(-1 if where.length is None else where.length)
        except OSError as error:
            raise ModelError(
                f"the external data file {where.location!r} with tensor {tensor.name!r} cannot be "
                f"read ({error.strerror or error}). Put it beside the model."
            ) from error
        if where.length is not None and len(data) < where.length:
            raise ModelError(
                f"the external data file {where.location!r} is truncated: tensor {tensor.name!r} "
                f"needs {where.length} bytes at {where.offset or 0}, {len(data)} are there"
            )
        tensor.raw_data = data
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]


def _subgraphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    single = [attr.g for attr in node.attribute if attr.HasField("g")]
    return single + [graph for attr in node.attribute for graph in attr.graphs]


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Initializers and tensor attributes, subgraphs included."""
    yield from graph.initializer
    for node in graph.node:
        for attr in node.attribute:
            if attr.HasField("t"):
                yield attr.t
            yield from attr.tensors
        for inner in _subgraphs(node):
            yield from _tensors(inner)


# ---------------------------------------------------------------- operator set, operators


def _opset(proto: onnx.ModelProto) -> int:
    return max((entry.version for entry in proto.opset_import if entry.domain == ""), default=0)


def _at_least(proto: onnx.ModelProto, version: int) -> onnx.ModelProto:
    found, newest = _opset(proto), onnx.defs.onnx_opset_version()
    if not found:
        raise ModelError("the default operator set is not imported. Export the model again.")
    if found > newest:
        raise ModelError(
            f"opset {found} is newer than the installed onnx package knows ({newest}). "
            "Next: pip install -U onnx, or export with an earlier opset."
        )
    if found >= version:
        return proto
    try:
        return onnx.version_converter.convert_version(proto, version)
    except Exception as error:  # the converter raises bare RuntimeError and others
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "no reason given"
        raise ModelError(
            f"opset {found} is too old and cannot be converted to {version}: {reason}. "
            f"Export the model again with opset {OLDEST_OPSET} or later."
        ) from error


def _inline_functions(proto: onnx.ModelProto) -> onnx.ModelProto:
    if not proto.functions:
        return proto
    try:
        return onnx.inliner.inline_local_functions(proto, True)
    except Exception as error:  # C++ exceptions without a common class
        raise ModelError(f"the model's functions cannot be inlined: {error}") from error


def _check_operators(proto: onnx.ModelProto) -> None:
    versions = {entry.domain: entry.version for entry in proto.opset_import}
    unknown: list[str] = []

    def walk(graph: onnx.GraphProto, inside: str) -> None:
        for index, node in enumerate(graph.node):
            domain = "" if node.domain == "ai.onnx" else node.domain
            node.domain = domain
            where = f"{inside}node {index} of {len(graph.node)}, {_label(node)}"
            if not onnx.defs.has(node.op_type, versions.get(domain, 0), domain):
                unknown.append(f"{domain or 'ai.onnx'}.{node.op_type} ({where})")
            for inner in _subgraphs(node):
                walk(inner, f"{where}, ")

    walk(proto.graph, "")
    if unknown:
        raise ModelError(
            f"{len(unknown)} unknown operator(s): {'; '.join(unknown[:10])}"
            f"{' ...' if len(unknown) > 10 else ''}. "
            "Export with standard ONNX operators, or replace these nodes."
        )


# ---------------------------------------------------------------- links


def _label(node: onnx.NodeProto) -> str:
    return repr(node.name) if node.name else f"{node.op_type} -> {', '.join(node.output)}"


def _check_interface(graph: onnx.GraphProto) -> None:
    weights = {tensor.name for tensor in graph.initializer}
    if graph.sparse_initializer:
        name = graph.sparse_initializer[0].values.name
        raise ModelError(f"weight {name!r} is a sparse tensor. Export dense weights.")
    fed = [value for value in graph.input if value.name not in weights]
    if not fed:
        raise ModelError("the graph has no inputs, so there is nothing to feed. Export it again.")
    if not graph.output:
        raise ModelError("the graph has no outputs. Export it again.")
    for value in fed:
        if not value.type.HasField("tensor_type") or not value.type.tensor_type.HasField("shape"):
            raise ModelError(
                f"input {value.name!r} is not a tensor of known dimensions. Export it again."
            )
    # Old exporters list weights as inputs, too, so that they could be overridden.
    del graph.input[:]
    graph.input.extend(fed)


def _check_links(graph: onnx.GraphProto, outer: frozenset[str]) -> None:
    """Every input has one writer: a graph input, a weight, a node, or the surrounding graph."""
    writer: dict[str, str] = {value.name: "a graph input" for value in graph.input}
    writer.update({tensor.name: "a weight" for tensor in graph.initializer})
    for node in graph.node:
        for name in filter(None, node.output):
            if name in writer or name in outer:
                raise ModelError(
                    f"value {name!r} is written twice: by node {_label(node)} and by "
                    f"{writer.get(name, 'the surrounding graph')}"
                )
            writer[name] = f"node {_label(node)}"
    known = outer | writer.keys()
    for index, node in enumerate(graph.node):
        for slot, name in enumerate(node.input):
            if name and name not in known:
                raise ModelError(
                    f"input {slot} of node {index}, {_label(node)} ({node.op_type}), is "
                    f"{name!r}, which nothing in the graph produces"
                )
        for inner in _subgraphs(node):
            _check_links(inner, frozenset(known))
    for value in graph.output:
        if value.name not in known:
            raise ModelError(f"output {value.name!r} is produced by nothing in the graph")


def _reads(node: onnx.NodeProto) -> set[str]:
    """Names a node depends on, with those its subgraphs take from outside."""
    names = set(node.input)
    for graph in _subgraphs(node):
        own = {value.name for value in graph.input} | {t.name for t in graph.initializer}
        own |= {name for inner in graph.node for name in inner.output}
        taken = {value.name for value in graph.output}
        for inner in graph.node:
            taken |= _reads(inner)
        names |= taken - own
    return names


def _sort(graph: onnx.GraphProto) -> None:
    """Topological order; the order of the file where it is one already."""
    maker = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    before = [{maker[name] for name in _reads(node) if name in maker} for node in graph.node]
    if all(index > max(needs, default=-1) for index, needs in enumerate(before)):
        return
    order: list[int] = []
    done: set[int] = set()
    waiting = list(range(len(graph.node)))
    while waiting:
        ready = [index for index in waiting if before[index] <= done]
        if not ready:
            ring = ", ".join(
                _label(graph.node[index]) for index in _cycle(before, waiting[0], done)
            )
            raise ModelError(f"the graph is not acyclic: {ring} wait for each other")
        order += ready
        done.update(ready)
        waiting = [index for index in waiting if index not in done]
    copies = [onnx.NodeProto() for _ in order]
    for copy, index in zip(copies, order, strict=True):
        copy.CopyFrom(graph.node[index])
    del graph.node[:]
    graph.node.extend(copies)


def _cycle(before: list[set[int]], start: int, done: set[int]) -> list[int]:
    path = [start]
    while True:
        following = min(before[path[-1]] - done)
        if following in path:
            return path[path.index(following) :]
        path.append(following)


# ---------------------------------------------------------------- constants, weights, names


def _lift_constants(graph: onnx.GraphProto) -> None:
    """Constant nodes of the main graph become initializers; text and sparse ones stay nodes."""
    kept: list[onnx.NodeProto] = []
    for node in graph.node:
        tensor = _constant_tensor(node) if node.op_type == "Constant" else None
        if tensor is None:
            kept.append(node)
        else:
            tensor.name = node.output[0]
            graph.initializer.append(tensor)
    if len(kept) < len(graph.node):
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
        del graph.node[:]
        graph.node.extend(copies)


def _constant_tensor(node: onnx.NodeProto) -> onnx.TensorProto | None:
    attr = node.attribute[0] if len(node.attribute) == 1 else None
    if attr is None:
        return None
    if attr.name == "value":
        tensor = onnx.TensorProto()
        tensor.CopyFrom(attr.t)
        return tensor
    if attr.name in ("value_float", "value_floats"):
        number = attr.f if attr.name == "value_float" else list(attr.floats)
        return numpy_helper.from_array(np.array(number, np.float32))
    if attr.name in ("value_int", "value_ints"):
        whole = attr.i if attr.name == "value_int" else list(attr.ints)
        return numpy_helper.from_array(np.array(whole, np.int64))
    return None


def _check_weights(graph: onnx.GraphProto) -> None:
    """No NaN, and no infinity in a weight; a scalar infinity is a limit, as in Clip."""
    for tensor in graph.initializer:
        if tensor.data_type == onnx.TensorProto.STRING:
            continue
        try:
            array = numpy_helper.to_array(tensor)
        except (ValueError, TypeError, KeyError) as error:
            raise ModelError(f"the data of weight {tensor.name!r} is damaged: {error}") from error
        if array.dtype.kind not in "fcV" or not array.size:
            continue
        wide = array.astype(np.complex64 if array.dtype.kind == "c" else np.float64)
        nans = int(np.isnan(wide).sum())
        infinities = int(np.isinf(wide).sum()) if array.ndim else 0
        if nans or infinities:
            raise ModelError(
                f"weight {tensor.name!r} of shape {list(array.shape)} has {nans} NaN and "
                f"{infinities} infinite of {array.size} elements. "
                "The training diverged or the file is damaged: use an earlier checkpoint."
            )


def _complete_names(graph: onnx.GraphProto) -> None:
    """Give every node a unique name; existing ones stay, a repeated one gets a number."""
    taken: set[str] = set()

    def free(stem: str, count: int) -> str:
        while f"{stem}_{count}" in taken:
            count += 1
        return f"{stem}_{count}"

    def walk(inner: onnx.GraphProto, pending: list[tuple[onnx.NodeProto, str, int]]) -> None:
        for index, node in enumerate(inner.node):
            if node.name and node.name not in taken:
                taken.add(node.name)
            else:
                pending.append((node, node.name or node.op_type, 1 if node.name else index))
            for deeper in _subgraphs(node):
                walk(deeper, pending)

    unnamed: list[tuple[onnx.NodeProto, str, int]] = []
    walk(graph, unnamed)
    for node, stem, count in unnamed:
        node.name = free(stem, count)
        taken.add(node.name)


def _link(proto: onnx.ModelProto) -> Graph:
    try:
        proto = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    except Exception as error:  # C++ exceptions without a common class
        raise ModelError(f"shape inference failed: {error}") from error
    try:
        onnx.checker.check_model(proto)
    except onnx.checker.ValidationError as error:
        raise ModelError(f"not valid ONNX: {str(error).strip()}") from error
    try:
        graph = onnx_ir.serde.deserialize_model(proto)
    except onnx_ir.serde.SerdeError as error:
        raise ModelError(f"not valid ONNX: {error.__cause__ or error}") from error
    outputs(graph)  # raises where a shape is missing
    return graph
