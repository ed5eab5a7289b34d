"""A graph and its plan as a module of TVM's Relax, compiled to a shared library.

The graph is walked once. Convolutions, matrix products, pools, sums, activations and movement of
pictures become kernels of `tvm_kernels`, pictures held with their channels last; what follows a
convolution up to the next tensor that is used twice or quantized is done in its registers. Every
other operator is imported by TVM's own ONNX front end, one node at a time, and fused by TVM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from modelmill import ir
from modelmill.export import tvm_nest as k
from modelmill.export.tvm_border import LOWEST
from modelmill.export.tvm_convolution import pack
from modelmill.export.tvm_forms import Call, Expr, Forms, flat_window, port
from modelmill.export.tvm_views import LARGEST, MOVES, Selection, View, moved
from modelmill.ir import Plan, Point
from modelmill.numerics import Encoding

MATRIX = ("Gemm", "MatMul")


@dataclass(frozen=True)
class Made:
    """A Relax module, its calls of our kernels in order, and shape and type of each input."""

    module: Any
    calls: tuple[Call, ...]
    inputs: dict[str, tuple[tuple[int, ...], str]]


def module(graph: ir.Graph, plan: Plan, codes: Mapping[str, str], cpu: k.Cpu, names: Any) -> Made:
    """The Relax module of a float graph with a plan.

    Args:
        graph: fixed shapes.
        plan: encodings.
        codes: {name of an output that holds codes: the value they stand for}.
        cpu: what kernels may use.
        names: all outputs wanted, in order: of the graph, or of `codes`.

    Raises:
        ValueError: a shape that is not known, or a node that TVM's front end cannot take.
    """
    return _Walk(graph, plan, cpu).walk(codes, list(names))


class _Walk:
    def __init__(self, graph: ir.Graph, plan: Plan, cpu: k.Cpu) -> None:
        self.graph = graph
        self.of = Forms(graph, plan, cpu, self.move)
        self.order = {n.name or "": i for i, n in enumerate(ir.nodes(graph))}
        self.started: set[str] = set()  # names of nodes
        self.made: set[str] = set()  # those that are done, alone or in another's kernel

    # ------------------------------------------------------------ the walk

    def walk(self, codes: Mapping[str, str], names: list[str]) -> Made:
        fed = ir.inputs(self.graph)
        inputs = {n: (self.of.shape(n), str(info.dtype)) for n, info in fed.items()}
        parameters = {
            n: self.of.relax.Var(f"input_{i}", self.of.relax.TensorType(shape, kind))
            for i, (n, (shape, kind)) in enumerate(inputs.items())
        }
        with self.of.bb.function("main", list(parameters.values())):
            with self.of.bb.dataflow():
                for name, parameter in parameters.items():
                    self.of.put(name, ("plain", None), parameter, "input")
                for node in ir.nodes(self.graph):
                    self.node(node)
                found = []
                for name in names:
                    value = codes.get(name, name)
                    own = self.of.own(value) if name in codes else None
                    found.append(self.of.get(value, ("plain", own)))
                result = self.of.bb.emit_output(self.of.relax.Tuple(found))
            self.of.bb.emit_func_output(result)
        return Made(self.of.bb.get(), tuple(self.of.calls), inputs)

    def node(self, node: ir.Node) -> None:
        name, made = node.name or "", False
        if name in self.started:
            return
        self.started.add(name)
        if node.op_type in ("Conv", *MATRIX):
            made = self.product(node)
        elif node.op_type in ("MaxPool", "AveragePool", "GlobalAveragePool"):
            made = self.pool(node)
        elif node.op_type in ("Add", "Mul", "Relu", "LeakyRelu", "Clip"):
            made = self.pointwise(node)
        elif node.op_type == "Concat":
            made = self.concat(node)
        else:
            made = self.movement(node)
        if not made:
            self.imported(node, None)
        self.made.add(name)

    # ------------------------------------------------------------ what a kernel also does

    def chain(self, node: ir.Node, layout: str) -> tuple[list[k.Step], list[Expr], str]:
        """The nodes behind `node` that its kernel does too, while each result has one reader:
        steps, their other tensors, and the value that comes out.
        """
        steps: list[k.Step] = []
        others: list[Expr] = []
        value = node.outputs[0]
        while self.of.own(value.name or "") is None and ir.used_once(value):
            (use,) = value.uses()
            own_point = Point(value.name or "", use.node.name or "", use.idx)
            if own_point in self.of.plan:
                break
            found = self.step(use.node, use.idx, layout)
            if found is None:
                break
            steps.append(found[0])
            others.extend(found[1])
            self.started.add(use.node.name or "")
            self.made.add(use.node.name or "")
            value = use.node.outputs[0]
        return steps, others, value.name or ""

    def step(self, node: ir.Node, index: int, layout: str) -> tuple[k.Step, list[Expr]] | None:
        """A node as something done to the tensor that is its input `index`."""
        attributes, op = ir.attributes(node), node.op_type
        if op == "Relu":
            return k.Step(op), []
        if op == "LeakyRelu":
            return k.Step(op, (float(np.float32(attributes.get("alpha", 0.01))),)), []
        if op == "Clip":
            limits = _limits(node)
            return None if limits is None else (k.Step(op, limits), [])
        if op not in ("Add", "Mul"):
            return None
        name, encoding = self.of.read(node, 1 - index)
        shape = self.of.shape(node.outputs[0].name or "")
        if not self.there(name) or self.of.shape(name) != shape:
            return None
        step = k.Step(op, port=port(encoding))
        return step, [self.of.get(name, (layout if len(shape) == 4 else "plain", encoding))]

    def there(self, name: str) -> bool:
        """Make a value now, before its turn; False if it waits for a node that is being made."""
        needed: list[ir.Node] = []
        asked = [name]
        while asked:
            node = self.of.values[asked.pop()].producer()
            if node is None or node in needed or node.name in self.made:
                continue
            if node.name in self.started:
                return False
            needed.append(node)
            asked += [v.name or "" for v in node.inputs if v is not None]
        for node in sorted(needed, key=lambda n: self.order[n.name or ""]):
            self.node(node)
        return True

    # ------------------------------------------------------------ products

    def product(self, node: ir.Node) -> bool:
        """A convolution or a matrix product with constant weights."""
        w = ir.constant(node.inputs[1])
        output = self.of.shape(node.outputs[0].name or "")
        if w is None or (node.op_type == "Conv" and len(output) != 4):
            return False
        found = self.geometry(node, w, output) if node.op_type == "Conv" else self.rows(node, w)
        if found is None:
            return False
        window, axis = found
        (name, x), (_, encoding) = self.of.read(node, 0), self.of.read(node, 1)
        integer = x is not None and encoding is not None
        integer = integer and x.spec.storage.itemsize == 1  # type: ignore[union-attr]
        x = x if integer else None
        if integer and encoding is not None:
            zero_point = encoding.zero_point
            if encoding.spec.axis is not None:
                zero_point = zero_point.reshape(
                    [-1 if d == encoding.spec.axis else 1 for d in range(w.ndim)]
                )
            w = encoding.quantize(w).astype(np.int32) - zero_point
        elif encoding is not None:
            w = encoding.fake(w)
        weights = w if node.op_type == "Conv" else _as_convolution(w, axis)
        planar = node.op_type == "Conv" and window.c <= 4 and not self.of.in_layout(name, "last")
        kind = "convolution"
        if window.groups == window.c == window.oc > 1 and weights.shape[1] == 1:
            kind, planar = "depthwise", False
        layout = "last" if node.op_type == "Conv" else "plain"
        steps, others, end = self.chain(node, layout)
        if kind == "convolution":
            window = _flattened(window, planar)
        kernel = k.Kernel(
            kind,
            window,
            port(x),
            port(self.of.own(end)),
            tuple(steps),
            planar,
            bool(integer and np.abs(weights).max(initial=0) > 127),
        )
        fed = self.of.get(name, ("last" if layout == "last" and not planar else "plain", x))
        v = kernel.window
        shape = (v.n, v.c, v.h, v.w) if planar else (v.n, v.h, v.w, v.c)
        arguments = [self.of.shaped(fed, shape), self.of.stored(pack(kernel, self.of.cpu, weights))]
        arguments += self.offsets(node, window.oc, weights, (x, encoding))
        written = (v.n, v.oh, v.ow, v.oc)
        arguments += [self.of.shaped(other, written) for other in others]
        made = self.of.emit(kernel, arguments, (node.name or "", node.op_type))
        made = self.of.shaped(made, self.of.arranged(end, layout))
        self.of.put(end, (layout, self.of.own(end)), made, node.name or "")
        return True

    def offsets(
        self,
        node: ir.Node,
        channels: int,
        w_OIHW: np.ndarray,
        encodings: tuple[Encoding | None, Encoding | None],
    ) -> list[Expr]:
        """First sum and scale of each channel of an integer product, and the bias."""
        bias = np.zeros(channels, np.float32)
        first = np.zeros(channels, np.int64)
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            _, own = self.of.read(node, 2)
            given = np.asarray(ir.constant(node.inputs[2]))
            if own is not None and encodings[0] is not None:
                first += own.quantize(given).astype(np.int64) - own.zero_point
            else:
                bias += np.broadcast_to((own.fake(given) if own else given).reshape(-1), channels)
        x, w = encodings
        if x is None or w is None:
            return [self.of.stored(bias)]
        first -= int(x.zero_point) * w_OIHW.astype(np.int64).sum((1, 2, 3))
        scale = np.broadcast_to(np.asarray(x.scale * w.scale, np.float32), channels)
        return [self.of.stored(first.astype(np.int32)), self.of.stored(scale), self.of.stored(bias)]

    def geometry(
        self, node: ir.Node, w: np.ndarray, output: tuple[int, ...]
    ) -> tuple[k.Window, int] | None:
        attributes = ir.attributes(node)
        n, c, h, width = self.of.shape(node.inputs[0].name or "")  # type: ignore[union-attr]
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if bias is not None and ir.constant(bias) is None:
            return None
        taps, strides, dilations, start = _taps(attributes, w.shape[2:], (h, width), output[2:])
        groups = int(attributes.get("group", 1))
        window = k.Window(
            n,
            h,
            width,
            c,
            output[2],
            output[3],
            w.shape[0],
            taps,
            strides,
            dilations,
            start,
            groups,
        )
        return window, 0

    def rows(self, node: ir.Node, w: np.ndarray) -> tuple[k.Window, int] | None:
        """A matrix product as a convolution of one tap over the rows of its first input."""
        attributes = ir.attributes(node)
        shape = self.of.shape(node.inputs[0].name or "")  # type: ignore[union-attr]
        plain = all(attributes.get(a, 1.0) == 1.0 for a in ("alpha", "beta"))
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        given = ir.constant(bias)
        if w.ndim != 2 or len(shape) < 2 or not plain or attributes.get("transA", 0):
            return None
        axis = 0 if attributes.get("transB", 0) else 1
        whole = given is not None and given.size in (1, w.shape[axis]) and given.ndim < 2
        if bias is not None and not whole:
            return None
        m = int(np.prod(shape[:-1]))
        window = k.Window(1, 1, m, shape[-1], 1, m, w.shape[axis])
        return window, axis

    # ------------------------------------------------------------ pools

    def pool(self, node: ir.Node) -> bool:
        attributes, op = ir.attributes(node), node.op_type
        output = self.of.shape(node.outputs[0].name or "")
        name, x = self.of.read(node, 0)
        if len(output) != 4 or (len(node.outputs) > 1 and node.outputs[1].name):
            return False
        n, c, h, w = self.of.shape(name)
        taps = tuple(attributes.get("kernel_shape", (h, w)))
        taps, strides, dilations, start = _taps(attributes, taps, (h, w), output[2:])
        window = k.Window(n, h, w, c, output[2], output[3], c, taps, strides, dilations, start)
        arguments = [self.of.get(name, ("last", x))]
        layout = "last"
        if op == "MaxPool":
            steps, others, end = self.chain(node, layout)
            kernel = k.Kernel("maximum", window, port(x), port(self.of.own(end)), tuple(steps))
            arguments += others
        else:
            end = node.outputs[0].name or ""
            y = self.of.own(end)
            if x is not None and y is None:
                x, arguments = None, [self.of.get(name, ("last", None))]
            if x is not None and x.spec.storage.itemsize != 1:
                return False
            kernel = k.Kernel("average", window, port(x), port(y))
            count = _counts(window, attributes)
            if x is not None and y is not None:
                factor = np.float32(x.scale) / (np.float32(y.scale) * count)
            else:
                factor = np.float32(1) / count
            arguments.append(self.of.stored(factor.astype(np.float32)))
        made = self.of.emit(kernel, arguments, (node.name or "", op))
        self.of.put(end, (layout, self.of.own(end)), made, node.name or "")
        return True

    # ------------------------------------------------------------ element by element

    def pointwise(self, node: ir.Node) -> bool:
        output = node.outputs[0].name or ""
        kind = ir.dtype(node.outputs[0])
        name, x = self.of.read(node, 0)
        if (
            kind != np.float32
            or name in self.of.constants
            or self.of.shape(name) != self.of.shape(output)
        ):
            return False
        layout = self.of.layout(name)
        first = self.step(node, 0, layout)
        if first is None:
            return False
        steps, others, end = self.chain(node, layout)
        every = (first[0], *steps)
        kernel = k.Kernel(
            "pointwise", flat_window(self.of.shape(output)), port(x), port(self.of.own(end)), every
        )
        arguments = [self.of.get(name, (layout, x)), *first[1], *others]
        flat = [self.of.flat(argument, output) for argument in arguments]
        made = self.of.emit(kernel, flat, (node.name or "", node.op_type))
        made = self.of.shaped(made, self.of.arranged(end, layout))
        self.of.put(end, (layout, self.of.own(end)), made, node.name or "")
        return True

    # ------------------------------------------------------------ movement

    def movement(self, node: ir.Node) -> bool:
        """Note a movement of one tensor; it is made when its outcome is read."""
        name, _ = (
            self.of.read(node, 0) if node.inputs and node.inputs[0] is not None else ("", None)
        )
        if node.op_type not in MOVES or not name or name in self.of.constants:
            return False
        if ir.dtype(self.of.values[name]) != np.float32:
            return False
        shape, form = self.of.shape(name), self.of.read(node, 0)[1]
        if int(np.prod(shape)) > LARGEST:
            return False
        view = self.of.views.get(name)
        if view is None or view.form != form or self.of.own(name) != form:
            index = np.arange(int(np.prod(shape)), dtype=np.int32).reshape(shape)
            view = View(name, form, index)
        found = moved(node, view.index)
        if found is None:
            return False
        for output, index in zip(node.outputs, found, strict=True):
            if output.name:
                self.of.waiting[output.name] = (node, form)
                self.of.views[output.name] = View(view.source, view.form, index)
        return True

    def move(self, name: str, layout: str) -> None:
        """Make a value that a movement gives: one copy of channels, or what TVM makes of the
        node.
        """
        node, form = self.of.waiting[name]
        view = self.of.views[name]
        chosen = self.of.selected(view)
        if chosen is None or not (layout == "last" or self.of.in_layout(view.source, "last")):
            self.imported(node, form)
            return
        encoding = view.form if isinstance(view.form, Encoding) else None
        own = self.of.own(name)
        made = self.copied([(view, chosen)], self.of.shape(name), port(own or encoding), node)
        self.of.put(name, ("last", own or encoding), made, node.name or "")

    def concat(self, node: ir.Node) -> bool:
        output = node.outputs[0].name or ""
        shape, own = self.of.shape(output), self.of.own(output)
        inputs = [self.of.read(node, i) for i in range(len(node.inputs))]
        axis = int(ir.attributes(node).get("axis", 0)) % max(len(shape), 1)
        dynamic = all(name not in self.of.constants for name, _ in inputs)
        if not dynamic or ir.dtype(node.outputs[0]) != np.float32:
            return False
        if len(shape) != 4 or axis != 1:
            coded = own is not None and all(form is not None for _, form in inputs)
            self.imported(node, own if coded else None)
            return True
        parts = []
        for name, form in inputs:
            view = self.of.views.get(name) if not self.of.forms.get(name) else None
            chosen = self.of.selected(view) if view is not None else None
            if view is None or chosen is None or view.form != form or self.of.own(name) != form:
                index = np.arange(int(np.prod(self.of.shape(name))), dtype=np.int32)
                view = View(name, form, index.reshape(self.of.shape(name)))
                chosen = self.of.selected(view)
            assert chosen is not None
            parts.append((view, chosen))
        made = self.copied(parts, shape, port(own), node)
        self.of.put(output, ("last", own), made, node.name or "")
        return True

    def copied(
        self,
        parts: list[tuple[View, Selection]],
        shape: tuple[int, ...],
        y: k.Port,
        node: ir.Node,
    ) -> Expr:
        made, arguments = [], []
        for view, chosen in parts:
            encoding = view.form if isinstance(view.form, Encoding) else None
            _, c, h, w = self.of.shape(view.source)
            arguments.append(self.of.get(view.source, ("last", encoding)))
            if chosen.rows is not None and chosen.columns is not None:
                arguments.append(self.of.stored(np.array(chosen.rows, np.int32)))
                arguments.append(self.of.stored(np.array(chosen.columns, np.int32)))
            made.append(k.Part(port(encoding), (h, w, c), chosen.runs, chosen.rows is not None))
        n, c, h, w = shape
        window = k.Window(n, h, w, c, h, w, c)
        kernel = k.Kernel("copy", window, y, y, parts=tuple(made))
        return self.of.emit(kernel, arguments, (node.name or "", node.op_type))

    # ------------------------------------------------------------ everything else

    def imported(self, node: ir.Node, form: Encoding | None) -> None:
        """A node as TVM's ONNX front end has it; `form`: it moves or joins codes of this
        encoding.
        """
        from tvm.relax.frontend.onnx import from_onnx

        given: dict[int, np.ndarray] = {}
        kinds: dict[int, np.dtype[Any]] = {}
        arguments = []
        for index, value in enumerate(node.inputs):
            if value is None:
                continue
            name, encoding = self.of.read(node, index)
            if name in self.of.constants:
                if encoding is not None:
                    given[index] = encoding.fake(self.of.constants[name])
            elif form is not None and (index == 0 or node.op_type == "Concat"):
                kinds[index] = form.spec.storage
                arguments.append(self.of.get(name, ("plain", form)))
            else:
                arguments.append(self.of.get(name, ("plain", None)))
        if form is not None and node.op_type == "Pad":
            given[2] = form.zero_point.astype(form.spec.storage)
        try:
            alone = from_onnx(ir.single(self.graph, node, kinds, given))
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            raise ValueError(
                f"TVM's ONNX front end cannot take {node.op_type} (node {node.name!r}): {text}"
            ) from error
        precision = str(form.spec.storage if form else ir.dtype(node.outputs[0]))
        self.of.calls.append(Call("", node.name or "", node.op_type, precision))
        outputs = self.of.inlined(alone, arguments)
        names = [v.name for v in node.outputs if v.name]
        for name, made in zip(names, outputs, strict=True):
            self.of.waiting.pop(name, None)
            self.of.put(name, ("plain", form), made, node.name or "")


# ---------------------------------------------------------------- numbers of nodes


def _flattened(v: k.Window, planar: bool) -> k.Window:
    """A convolution of one tap on every pixel, as one long row."""
    plain = v.taps == v.strides == (1, 1) and v.start == (0, 0) and not planar
    if not plain or (v.h, v.w) != (v.oh, v.ow):
        return v
    size = v.n * v.h * v.w
    return k.Window(1, 1, size, v.c, 1, size, v.oc, groups=v.groups)


def _as_convolution(w: np.ndarray, axis: int) -> np.ndarray:
    return (w if axis == 0 else w.T)[:, :, None, None]


def _taps(
    attributes: Mapping[str, Any],
    taps: tuple[int, ...],
    size: tuple[int, int],
    output: tuple[int, ...],
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Taps, strides, dilations and the padding above and to the left, of rows and columns."""
    strides = tuple(attributes.get("strides", (1, 1)))
    dilations = tuple(attributes.get("dilations", (1, 1)))
    pads = tuple(attributes.get("pads", (0, 0, 0, 0)))[:2]
    where = attributes.get("auto_pad", "NOTSET")
    if where in ("SAME_UPPER", "SAME_LOWER"):
        whole = [
            max((o - 1) * s + (t - 1) * d + 1 - i, 0)
            for o, s, t, d, i in zip(output, strides, taps, dilations, size, strict=True)
        ]
        pads = tuple(p // 2 if where == "SAME_UPPER" else p - p // 2 for p in whole)
    return (
        (int(taps[0]), int(taps[1])),
        (int(strides[0]), int(strides[1])),
        (int(dilations[0]), int(dilations[1])),
        (int(pads[0]), int(pads[1])),
    )


def _counts(v: k.Window, attributes: Mapping[str, Any]) -> np.ndarray:
    """How many elements the average at each place is of, float32."""
    whole = tuple(attributes.get("pads", (v.start[0], v.start[1], v.start[0], v.start[1])))
    padded = bool(attributes.get("count_include_pad", 0))
    sides = []
    for axis, size, out in ((0, v.h, v.oh), (1, v.w, v.ow)):
        first = np.arange(out) * v.strides[axis] - v.start[axis]
        places = first[:, None] + np.arange(v.taps[axis]) * v.dilations[axis]
        low, high = (-v.start[axis], size + whole[axis + 2]) if padded else (0, size)
        sides.append(((places >= low) & (places < high)).sum(1))
    return np.outer(sides[0], sides[1]).astype(np.float32)


def _limits(node: ir.Node) -> tuple[float, float] | None:
    """Of a Clip with constant limits."""
    attributes = ir.attributes(node)
    found = []
    for index, (name, free) in enumerate((("min", LOWEST), ("max", -LOWEST)), 1):
        value = node.inputs[index] if index < len(node.inputs) else None
        array = ir.constant(value)
        if value is not None and array is None:
            return None
        found.append(float(array) if array is not None else float(attributes.get(name, free)))
    return found[0], found[1]
