"""Values of a graph while it becomes a Relax module: the forms in which each is there.

A form is a layout ("last": channels last, or "plain": the order of ONNX) and an encoding (None:
real numbers). Forms are made when someone asks for them, and movement only when someone reads it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from modelmill import ir
from modelmill.export import tvm_nest as k
from modelmill.export.tvm_kernels import build
from modelmill.export.tvm_views import Selection, View, selection
from modelmill.ir import Plan, Point
from modelmill.numerics import Encoding

Expr = Any  # of TVM
Form = tuple[str, Encoding | None]
FLOAT = k.Port()


@dataclass(frozen=True)
class Call:
    """A node of the graph in the module: the kernel called for it ("": TVM's own, which TVM may
    fuse with others), and what it works on.
    """

    function: str
    node: str
    op: str
    precision: str


class Forms:
    """The values of one graph, and the Relax function that is being built.

    move(name, layout): make a value of `waiting`, which holds movement that nobody has read yet.
    """

    def __init__(
        self, graph: ir.Graph, plan: Plan, cpu: k.Cpu, move: Callable[[str, str], None]
    ) -> None:
        from tvm import relax

        self.relax, self.bb = relax, relax.BlockBuilder()
        self.plan, self.cpu, self.move = plan, cpu, move
        self.encodings = plan.encodings()
        self.constants = ir.constants(graph)
        self.values = ir.values(graph)
        self.forms: dict[str, dict[Form, Expr]] = {}
        self.views: dict[str, View] = {}
        self.waiting: dict[str, tuple[ir.Node, Encoding | None]] = {}
        self.functions: dict[k.Kernel, Any] = {}
        self.calls: list[Call] = []
        self.whole: dict[Any, Any] = {}  # what a reshape is of

    def shape(self, name: str) -> tuple[int, ...]:
        found = ir.static_shape(self.values[name])
        if found is None:
            producer = self.values[name].producer()
            where = f" (node {producer.name!r})" if producer is not None else ""
            raise ValueError(
                f"TVM: the shape of {name!r}{where} is not known before the run, which compiled "
                "kernels need"
            )
        return found

    def own(self, name: str) -> Encoding | None:
        return self.encodings.get(Point(name))

    def read(self, node: ir.Node, index: int) -> tuple[str, Encoding | None]:
        """The value that a node reads, and the encoding in which it reads it."""
        value = node.inputs[index]
        assert value is not None and value.name is not None
        encoding = self.plan.at(value.name, node.name or "", index)
        return value.name, encoding if isinstance(encoding, Encoding) else None

    def put(self, name: str, form: Form, made: Expr, node: str) -> None:
        """Hold a form of a value; if the plan gives it another encoding, that one instead."""
        own, (layout, encoding) = self.own(name), form
        if own != encoding and own is not None:
            made = self.convert(made, name, layout, (encoding, own), node)
            form = (layout, own)
        self.forms.setdefault(name, {})[form] = made

    def get(self, name: str, form: Form) -> Expr:
        """A value in the form asked for, made now if it is not there."""
        layout, encoding = form
        if name in self.constants:
            return self.constant(name, form)
        forms = self.forms.setdefault(name, {})
        if form in forms:
            return forms[form]
        if name in self.waiting and not forms:
            self.move(name, layout)
            return self.get(name, form)
        there = next((f for f in forms if f[1] == encoding), None)
        if there is not None:
            forms[form] = self.turned(forms[there], name, layout)
            return forms[form]
        held = next((f for f in forms if f[0] == layout), None) or next(iter(forms))
        made = self.convert(forms[held], name, held[0], (held[1], encoding), name)
        forms[(held[0], encoding)] = made
        return self.get(name, form)

    def constant(self, name: str, form: Form) -> Expr:
        array, (layout, encoding) = self.constants[name], form
        if encoding is not None:
            array = encoding.quantize(array)
        if layout == "last":
            array = array.transpose(0, 2, 3, 1)
        return self.relax.const(np.ascontiguousarray(array))

    def layout(self, *names: str) -> str:
        """The layout in which to work on these values."""
        if any(len(self.shape(name)) != 4 for name in names):
            return "plain"
        last = [n for n in names if self.in_layout(n, "last")]
        return "last" if last else "plain"

    def in_layout(self, name: str, layout: str) -> bool:
        if name in self.waiting and not self.forms.get(name):
            view = self.views.get(name)
            if view is None or self.selected(view) is None:
                return layout == "plain"
            return layout == "last" and self.in_layout(view.source, "last")
        return any(f[0] == layout for f in self.forms.get(name, {}))

    def turned(self, made: Expr, name: str, layout: str) -> Expr:
        n, c, h, w = self.shape(name)
        if c == 1 or h * w == 1:
            shape = (n, h, w, c) if layout == "last" else (n, c, h, w)
            return self.shaped(made, shape)
        axes = (0, 2, 3, 1) if layout == "last" else (0, 3, 1, 2)
        return self.bb.emit(self.relax.op.permute_dims(made, axes))

    def convert(
        self,
        made: Expr,
        name: str,
        layout: str,
        change: tuple[Encoding | None, Encoding | None],
        node: str,
    ) -> Expr:
        """The same value in another encoding, element by element."""
        x, y = (port(e) for e in change)
        op = "Quantize" if not x.codes else "Dequantize" if not y.codes else "Requantize"
        kernel = k.Kernel("pointwise", flat_window(self.shape(name)), x, y)
        flat = self.emit(kernel, [self.flat(made, name)], (node, op))
        return self.shaped(flat, self.arranged(name, layout))

    def arranged(self, name: str, layout: str) -> tuple[int, ...]:
        shape = self.shape(name)
        return (shape[0], shape[2], shape[3], shape[1]) if layout == "last" else shape

    def flat(self, made: Expr, name: str) -> Expr:
        return self.shaped(made, (int(np.prod(self.shape(name))),))

    def shaped(self, made: Expr, shape: tuple[int, ...]) -> Expr:
        """`made` in another shape: no copy, so never one reshape of another, which TVM fuses into
        one.
        """
        whole: Any = self.whole.get(made, made)
        for held in (made, whole):
            if tuple(int(d) for d in held.ty.shape) == shape:
                return held
        turned = self.bb.emit(self.relax.op.reshape(whole, shape))
        self.whole[turned] = whole
        return turned

    def emit(self, kernel: k.Kernel, arguments: list[Expr], what: tuple[str, str]) -> Expr:
        """Call a kernel; equal kernels are one function."""
        precision = kernel.y.dtype if kernel.kind == "copy" else kernel.x.dtype
        if kernel not in self.functions:
            stem = f"{kernel.kind}_{precision}_{len(self.functions)}"
            self.functions[kernel] = self.bb.add_func(build(kernel, self.cpu), stem)
        function, v = self.functions[kernel], kernel.window
        self.calls.append(Call(function.name_hint, *what, precision))
        shape: tuple[int, ...] = (v.n, v.oh, v.ow, v.oc)
        if kernel.kind == "pointwise":
            shape = (int(np.prod(shape)),)
        kind = self.relax.TensorType(shape, kernel.y.dtype)
        call = self.relax.call_tir(function, self.relax.Tuple(arguments), kind)
        return self.bb.emit(call)

    def stored(self, array: np.ndarray) -> Expr:
        return self.relax.const(np.ascontiguousarray(array))

    def selected(self, view: View) -> Selection | None:
        return selection(view.index, self.shape(view.source))

    def inlined(self, alone: Any, arguments: list[Expr]) -> list[Expr]:
        """Emit the body of a module's main function on these arguments: its results."""
        function = alone["main"]
        known = dict(zip(function.params, arguments, strict=True))
        for variable, other in alone.functions_items():
            if variable.name_hint != "main":
                known[variable] = self.bb.add_func(other, variable.name_hint)
        mutator = _substitution(known)
        for block in function.body.blocks:
            for binding in block.bindings:
                value = mutator(binding.value)
                known[binding.var] = self.bb.emit(self.bb.normalize(value))
        result = mutator(function.body.body)
        if isinstance(result, self.relax.Tuple):
            return list(result.fields)
        if isinstance(result.ty, self.relax.TupleType):
            count = len(result.ty.fields)
            return [self.bb.emit(self.relax.TupleGetItem(result, i)) for i in range(count)]
        return [result]


def _substitution(known: dict[Any, Expr]) -> Any:
    """A function that puts expressions in the place of variables."""
    from tvm.relax.expr_functor import PyExprMutator, mutator

    @mutator
    class Substitute(PyExprMutator):  # type: ignore[misc]
        def visit_var_(self, op: Any) -> Any:
            return known.get(op, op)

        def visit_global_var_(self, op: Any) -> Any:
            return known.get(op, op)

        def visit_dataflow_var_(self, op: Any) -> Any:
            return known.get(op, op)

    return Substitute().visit_expr


def port(encoding: Encoding | None) -> k.Port:
    """How a kernel reads or writes a value of this encoding."""
    if encoding is None:
        return FLOAT
    spec = encoding.spec
    if spec.axis is not None or spec.bits > 8:
        raise ValueError(f"TVM: {spec} activations; the kernels take 8 bits, per tensor")
    return k.Port(
        str(spec.storage), float(encoding.scale), int(encoding.zero_point), spec.qmin, spec.qmax
    )


def flat_window(shape: tuple[int, ...]) -> k.Window:
    """The window of an elementwise kernel: all elements in one row."""
    size = int(np.prod(shape))
    return k.Window(1, 1, 1, size, 1, 1, size)
