"""`Module`: an ONNX graph as a torch module.

The graph becomes a list of steps, one per node and one per point of the plan. A run needs the steps
that lead from what is fed to what is fetched; which these are, and after which of them a value is
no longer needed, is worked out once for each combination and kept.

Values are kept in one dictionary: the value `x` under its name, its fake-quantized version under
its `Point`. Constants that operators want as numbers (axes, sizes, bounds) are read when the module
is built. Integer constants and whatever follows from them and from shapes alone stay on the host: a
Reshape on an accelerator then waits for nothing.

Kernels of convolutions are kept channels-last, and so is what comes out of them: on a CPU, torch's
convolutions are faster in this layout, up to three times with few channels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from modelmill import ir
from modelmill.executor.bind import Call, Reader, Result, bind, tensor, unsupported
from modelmill.executor.fake import FakeQuantize
from modelmill.ir import Plan, Point

Key = str | Point
Feeds = Mapping[str, Tensor | np.ndarray[Any, Any]]

CONVOLUTIONS = ("Conv", "ConvTranspose")
FAKE = "fake quantization"
HOST_RESULTS = ("Shape", "Size")  # on the host wherever their input is
KEPT_SCHEDULES = 256
# results that share memory with no other value, whatever the arguments
NEW_MEMORY = {FAKE, "Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization"}
NEW_MEMORY |= {"Add", "Sub", "Mul", "Div", "Relu", "LeakyRelu", "Sigmoid"}


@dataclass(frozen=True)
class Step:
    """One call. Its arguments are `template`, with `reads` filled in and then `readers` applied.

    in_place: the same function, overwriting its first argument; None where there is none.
    moves: positions of tensors that live on the host while the others may not.
    """

    name: str
    operator: str
    function: Callable[..., Result]
    in_place: Callable[..., Result] | None
    template: tuple[Any, ...]
    reads: tuple[tuple[int, Key], ...]
    readers: tuple[tuple[int, Reader], ...]
    moves: tuple[int, ...]
    outputs: tuple[Key, ...]


@dataclass(frozen=True)
class Schedule:
    """One kind of run.

    steps: each with the values to forget after it. constants: those that the run reads.
    fetch: wanted names, and where their values are found.
    """

    steps: tuple[tuple[Step, tuple[Key, ...]], ...]
    constants: tuple[Key, ...]
    fetch: tuple[tuple[str, Key], ...]


class Module(nn.Module):
    """A graph in torch, with fake quantization at the points of a plan.

    Every float initializer that an operator takes as a tensor is a parameter, without gradient
    until asked for; `weights` finds it by its ONNX name. Change one under `torch.no_grad()`, not
    through `.data`: the kept fake-quantized weights follow the former only. Bounds and sizes that
    an operator takes as numbers (Clip, Resize) are fixed when the module is built.
    """

    def __init__(self, graph: ir.Graph, plan: Plan | None = None) -> None:
        """Build the steps.

        Raises:
            ValueError: an operator or attribute is not supported, or the plan names a point that
                the graph does not have or that has no encoding.
        """
        super().__init__()
        _refuse(unsupported(graph))
        encodings = (plan or Plan()).encodings()
        self._inputs = tuple(v.name or "" for v in graph.graph.inputs if not v.is_initializer())
        self._outputs = tuple(v.name or "" for v in graph.graph.outputs)
        self._schedules: dict[tuple[Any, ...], Schedule] = {}
        self._faked: dict[Point, tuple[tuple[int, int], Tensor, Tensor]] = {}
        with torch.inference_mode(False):  # else the parameters could never have gradients
            self._points = {point: FakeQuantize(e) for point, e in encodings.items()}
            self._fakes = nn.ModuleList(self._points.values())
            _check_points(graph, self._points)
            self._build(graph)

    # ------------------------------------------------------------ what it holds

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the graph's outputs."""
        return self._outputs

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        """The parameters by their ONNX names."""
        return {name: self._weight(name) for name in self._registered}

    def _weight(self, name: str) -> nn.Parameter:
        found = self._parameters[self._registered[name]]
        assert found is not None
        return found

    def _faked_weight(self, point: Point) -> Tensor:
        """A constant after fake quantization; computed again only after the constant changed."""
        weight, fake = self._weight(point.value), self._points[point]
        if weight.requires_grad and torch.is_grad_enabled():
            return fake.forward(weight)
        stamp = (weight.data_ptr(), weight._version)
        kept = self._faked.get(point)
        if kept is None or kept[0] != stamp:
            with torch.inference_mode(False), torch.no_grad():
                # the old tensor is kept so that its address is not given to another
                kept = self._faked[point] = (stamp, weight.detach(), fake.forward(weight))
        return kept[2]

    # ------------------------------------------------------------ run

    def forward(self, feeds: Feeds, fetch: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Compute values of the graph.

        Args:
            feeds: values by name. Usually the graph's inputs; any other value may be fed too, and
                what only serves to compute it is then not run.
            fetch: names of the wanted values, None for the graph's outputs. A value at a point of
                the plan comes fake-quantized. Four-dimensional results may be channels-last.

        Raises:
            ValueError: a name is unknown, an input is missing, or an operator cannot work with what
                it gets; the message names the node.
        """
        schedule = self._schedule(tuple(feeds), self._outputs if fetch is None else tuple(fetch))
        found = self._execute(feeds, schedule)
        return {name: found[key] for name, key in schedule.fetch}

    def visit(
        self,
        feeds: Feeds,
        names: Iterable[str],
        look: Callable[[str, Tensor], Tensor | None],
        fetch: Sequence[str] = (),
    ) -> dict[str, Tensor]:
        """Compute the named values and show each to `look(name, value)` as soon as it is there.

        Values come in graph order, before fake quantization, and are kept no longer than the graph
        needs them. A tensor that `look` gives back takes the value's place. Returns the values
        named in `fetch`, as `forward` does.

        Raises:
            ValueError: as `forward`.
        """
        names = tuple(names)
        schedule = self._schedule(tuple(feeds), tuple(fetch), names)
        found = self._execute(feeds, schedule, look, frozenset(names))
        return {name: found[key] for name, key in schedule.fetch}

    def _execute(
        self,
        feeds: Feeds,
        schedule: Schedule,
        look: Callable[[str, Tensor], Tensor | None] | None = None,
        visited: frozenset[str] = frozenset(),
    ) -> dict[Key, Any]:
        """Run the steps; what is left at the end is what the schedule keeps."""
        found, device = self._start(feeds, schedule)

        def show(keys: Iterable[Key]) -> None:
            for key in keys:
                if isinstance(key, str) and key in visited and look is not None:
                    replaced = look(key, found[key])
                    if replaced is not None:
                        found[key] = replaced

        show(tuple(feeds))
        for step, done in schedule.steps:
            arguments = list(step.template)
            for position, key in step.reads:
                arguments[position] = found[key]
            try:
                result = _call(step, arguments, device)
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, ValueError, TypeError, IndexError) as error:
                raise ValueError(_explain(step, arguments, error)) from error
            if isinstance(result, Tensor):
                found[step.outputs[0]] = result
            else:
                found.update(zip(step.outputs, result, strict=False))
            del arguments, result
            show(step.outputs)
            for key in done:
                found.pop(key, None)
        return found

    def _start(self, feeds: Feeds, schedule: Schedule) -> tuple[dict[Key, Any], torch.device]:
        """The values known before the first step, and the device of the rest."""
        found: dict[Key, Any] = {}
        for key in schedule.constants:
            if isinstance(key, Point):
                found[key] = self._faked_weight(key)
            else:
                found[key] = self._host[key] if key in self._host else self._weight(key)
        held = (*(v for v in feeds.values() if isinstance(v, Tensor)), *self._parameters.values())
        device = next((t.device for t in held if t is not None), torch.device("cpu"))
        for name, value in feeds.items():
            found[name] = value if isinstance(value, Tensor) else tensor(value).to(device)
        return found, device

    # ------------------------------------------------------------ schedule

    def _schedule(
        self, feeds: tuple[str, ...], fetch: tuple[str, ...], visited: tuple[str, ...] = ()
    ) -> Schedule:
        key = (feeds, fetch, visited, torch.is_grad_enabled())
        if key not in self._schedules:
            if len(self._schedules) >= KEPT_SCHEDULES:
                self._schedules.clear()
            self._schedules[key] = self._plan_run(feeds, fetch, visited)
        return self._schedules[key]

    def _plan_run(
        self, feeds: tuple[str, ...], fetch: tuple[str, ...], visited: tuple[str, ...]
    ) -> Schedule:
        self._check_names(feeds, (*fetch, *visited))
        given = set(feeds)
        targets = tuple((name, self._key(Point(name))) for name in fetch)
        wanted = {key for _, key in targets}
        needed: set[Key] = wanted.union(visited)
        chosen: list[Step] = []
        for step in reversed(self._steps):
            source = step.reads[0][1] if step.reads else None
            if step.operator == FAKE and source in self._registered and source not in given:
                continue  # a fake-quantized weight is a constant of the run
            if needed.intersection(step.outputs) - given:
                outputs = tuple("" if key in given else key for key in step.outputs)
                chosen.append(replace(step, outputs=outputs))
                needed.update(key for _, key in step.reads)
        missing = [name for name in self._inputs if name in needed and name not in given]
        if missing:
            names = ", ".join(map(repr, missing))
            raise ValueError(f"input {names} is not fed; fed: {', '.join(feeds) or 'nothing'}")
        constants = needed - given.union(*(step.outputs for step in chosen))
        if not torch.is_grad_enabled():
            chosen = _overwriting(chosen, wanted)
        forgotten = _last_uses(chosen, wanted | constants)
        steps = tuple(zip(reversed(chosen), forgotten, strict=True))
        return Schedule(steps, tuple(constants), targets)

    def _check_names(self, feeds: Iterable[str], fetch: Iterable[str]) -> None:
        for name in (*feeds, *fetch):
            if name not in self._values:
                near = get_close_matches(name, self._values, n=3) or self._inputs
                raise ValueError(f"the graph has no value {name!r}; nearest: {', '.join(near)}")
        for name in feeds:
            if name in self._numbers:
                raise ValueError(f"{name!r} cannot be fed, it is read when the module is built")

    def _key(self, point: Point) -> Key:
        """Where the value at `point` is found: a node's own point comes before the value's."""
        if point in self._points:
            return point
        whole = Point(point.value)
        return whole if whole in self._points else point.value

    # ------------------------------------------------------------ build

    def _build(self, graph: ir.Graph) -> None:
        calls = [(node, bind(node, ir.opset(graph))) for node in ir.nodes(graph)]
        self._values = set(ir.values(graph))
        self._hold_constants(graph, calls)
        host: set[Key] = set(self._host)
        self._steps: list[Step] = []
        for name in (*(v.name or "" for v in graph.graph.inputs), *self._registered):
            self._steps += self._fake_steps(name)
        for node, call in calls:
            self._steps.append(self._step(node, call, host))
            for output in node.outputs:
                self._steps += self._fake_steps(output.name or "")

    def _hold_constants(self, graph: ir.Graph, calls: Sequence[tuple[ir.Node, Call]]) -> None:
        """Parameters from the float constants that are used as tensors; the rest on the host."""
        uses = [
            (value.name, reader is None)
            for node, call in calls
            for value, reader in zip(node.inputs, call.readers, strict=True)
            if value is not None
        ]
        as_tensors = {name for name, is_tensor in uses if is_tensor}
        as_tensors |= {value.name for value in graph.graph.outputs}
        kernels = {
            node.inputs[1].name
            for node, _ in calls
            if node.op_type in CONVOLUTIONS and node.inputs[1] is not None
        }
        self._host: dict[Key, Tensor] = {}
        self._registered: dict[str, str] = {}
        for name, array in ir.constants(graph).items():
            held = tensor(array)
            if not held.is_floating_point() or name not in as_tensors:
                self._host[name] = held
                continue
            if name in kernels and held.dim() == 4:
                held = held.contiguous(memory_format=torch.channels_last)
            self._register(name, held)
        self._numbers = {name for name, is_tensor in uses if not is_tensor and name in self._host}
        for point in self._points:
            if point.value in self._host:
                raise ValueError(f"{point} cannot be quantized: it is not used as a real tensor")

    def _register(self, name: str, value: Tensor) -> None:
        """A parameter whose name torch allows: no dot, nothing that a module already has."""
        key = name.replace(".", "/")
        while hasattr(self, key):
            key += "_"
        self.register_parameter(key, nn.Parameter(value, requires_grad=False))
        self._registered[name] = key

    def _step(self, node: ir.Node, call: Call, host: set[Key]) -> Step:
        """The step of `node`; `host` gains its outputs if they are computed on the host."""
        template: list[Any] = [None] * len(node.inputs)
        reads: list[tuple[int, Key]] = []
        for i, (value, reader) in enumerate(zip(node.inputs, call.readers, strict=True)):
            if value is None or not value.name:
                continue
            array = ir.constant(value) if reader is not None else None
            if reader is not None and array is not None:
                template[i] = reader(tensor(array))
            else:
                reads.append((i, self._key(Point(value.name, node.name or "", i))))
        readers = [(i, call.readers[i]) for i, _ in reads]
        tensors = [(i, key) for i, key in reads if call.readers[i] is None]
        moves = tuple(i for i, key in tensors if key in host)
        outputs = tuple(v.name or "" for v in node.outputs)
        if len(moves) == len(tensors) or node.op_type in HOST_RESULTS:
            host.update(outputs)
            moves = ()
        return Step(
            name=node.name or "",
            operator=node.op_type,
            function=call.function,
            in_place=call.in_place,
            template=tuple(template),
            reads=tuple(reads),
            readers=tuple((i, reader) for i, reader in readers if reader is not None),
            moves=moves,
            outputs=outputs,
        )

    def _fake_steps(self, name: str) -> list[Step]:
        made = []
        for point, fake in self._points.items():
            if point.value == name:
                reads, outputs = ((0, name),), (point,)
                made.append(
                    Step(str(point), FAKE, fake, fake.in_place, (None,), reads, (), (), outputs)
                )
        return made


def _call(step: Step, arguments: list[Any], device: torch.device) -> Result:
    for position, reader in step.readers:
        arguments[position] = reader(arguments[position])
    if device.type != "cpu":
        for position in step.moves:
            arguments[position] = arguments[position].to(device)
    result = step.function(*arguments)
    count = 1 if isinstance(result, Tensor) else len(result)
    if any(step.outputs[count:]):
        raise ValueError(f"it gives {count} outputs here, not {len(step.outputs)}")
    return result


def _overwriting(steps: Sequence[Step], wanted: set[Key]) -> list[Step]:
    """The steps, in place where the first argument is new memory that only this step ever reads.

    A single reader is asked for, not a last one: an earlier one may have made a view.
    """
    reads = Counter(key for step in steps for _, key in step.reads)
    fresh = {key for step in steps if step.operator in NEW_MEMORY for key in step.outputs}
    result = []
    for step in steps:
        position, key = step.reads[0] if step.reads else (-1, "")
        alone = position == 0 and reads[key] == 1 and key in fresh - wanted
        if step.in_place is not None and alone:
            result.append(replace(step, function=step.in_place))
        else:
            result.append(step)
    return result


def _last_uses(backwards: Sequence[Step], kept: set[Key]) -> list[tuple[Key, ...]]:
    """For each step, in forward order, the values that no later step reads and nobody wants."""
    seen, forgotten = set(kept), []
    for step in backwards:
        keys = {key for _, key in step.reads}.union(step.outputs)
        forgotten.append(tuple(keys - seen))
        seen |= keys
    return forgotten[::-1]


def _check_points(graph: ir.Graph, points: Iterable[Point]) -> None:
    values = ir.values(graph)
    inputs = {
        n.name: [v.name if v is not None else None for v in n.inputs] for n in ir.nodes(graph)
    }
    for point in points:
        reads = inputs.get(point.node, [])
        there = 0 <= point.index < len(reads) and reads[point.index] == point.value
        if point.value not in values or (point.node and not there):
            raise ValueError(f"the plan names the point {point}, which the graph does not have")


def _refuse(missing: Sequence[tuple[str, str]]) -> None:
    if missing:
        kinds = ", ".join(sorted({operator for _, operator in missing}))
        node, operator = missing[0]
        raise ValueError(
            f"the executor has no operator {kinds}; the first is node {node!r} ({operator})"
        )


def _explain(step: Step, arguments: Sequence[Any], error: Exception) -> str:
    def told(value: Any) -> str:
        return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)

    given = ", ".join(told(a) for a in arguments)
    return f"node {step.name!r} ({step.operator}) failed on ({given}): {error}"
