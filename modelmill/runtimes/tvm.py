"""TVM on the CPU: Relax, compiled ahead of time with LLVM for the CPU that converts.

TVM's own schedules need hours of tuning to be fast, so the loops of the operators that matter are
written here (`modelmill.export.tvm_kernels`); the rest comes from TVM's ONNX front end. `convert`
needs a C++ compiler (`g++` or `clang++`) to link the library, and writes the names of inputs and
outputs beside it. A library runs on CPUs that have the instructions of the one it was made on,
which it refuses to miss.
"""

import importlib.util
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from modelmill import ir
from modelmill.export.tvm_nest import Cpu, Dot
from modelmill.records.machine import this_machine
from modelmill.runtimes.inputs import checked
from modelmill.runtimes.protocol import Arrays, ExecutedOp, Kind, SessionOptions
from modelmill.runtimes.slices import in_slices, slices

_PROFILED = 5  # runs, of which `executed` gives the medians
_SMALL = ("uint8", "int8")
_CONVERSIONS = ("Quantize", "Dequantize", "Requantize")
_SETS = ("sse", "ssse", "avx", "fma", "f16c", "bmi", "popcnt", "lzcnt", "movbe", "gfni", "vaes",
         "vpclmul", "neon", "dotprod", "i8mm", "sve", "fullfp16")  # fmt: skip
_SHOWN = ("avx", "fma", "f16c", "sse4.", "gfni", "vaes", "vpclmul")  # in /proc/cpuinfo too
_ORDER = {"reshape", "transpose", "squeeze", "flatten"}  # of functions that only arrange


class Tvm:
    """See `modelmill.runtimes.protocol.Runtime`."""

    name = "tvm"
    supported = ("0.27", "0.28")
    pip = f'pip install "apache-tvm>={supported[0]},<{supported[1]}"'
    suffix = ".so"

    def missing(self) -> str | None:
        return None if importlib.util.find_spec("tvm") else self.pip

    def version(self) -> str:
        import tvm  # noqa: F401 (proves that it can be loaded)

        return version("apache-tvm")

    def convert(self, source: str, out: str, options: SessionOptions) -> None:
        from modelmill.export import tvm_relax

        if shutil.which("g++") is None and shutil.which("clang++") is None:
            raise RuntimeError("TVM needs a C++ compiler (g++ or clang++) to link the library")
        _threads(options)
        opened, codes = ir.without_exposed(ir.load(source))
        names = tuple(ir.outputs(ir.load(source)))
        graph, plan = ir.from_qdq(opened)
        if ir.is_batch_dynamic(graph):
            graph = ir.with_batch(graph, 1)
        target, cpu = host()
        made = tvm_relax.module(ir.infer_shapes(graph), plan, codes, cpu, names)
        library, functions = _compiled(made.module, target)
        library.export_library(out)
        facts = {
            "inputs": {n: [list(shape), kind] for n, (shape, kind) in made.inputs.items()},
            "outputs": list(names),
            "features": sorted(_features(target)),
            "calls": [vars(call) for call in made.calls],
            "functions": functions,
        }
        Path(out).with_suffix(".json").write_text(json.dumps(facts, indent=1))

    def open(self, path: str, options: SessionOptions) -> "TvmSession":
        if not options.optimize:
            raise ValueError("TVM compiles ahead of time; there is no switch to turn it off")
        return TvmSession(path, options)


class TvmSession:
    """See `modelmill.runtimes.protocol.Session`."""

    def __init__(self, path: str, options: SessionOptions) -> None:
        _threads(options)
        import tvm
        from tvm import relax

        beside = Path(path).with_suffix(".json")
        if not beside.is_file():
            raise ValueError(f"{beside.name}, which convert writes beside the library, is missing")
        facts = json.loads(beside.read_text())
        missing = set(facts["features"]) - _features(host()[0])
        if missing:
            raise RuntimeError(f"compiled for a CPU with {', '.join(sorted(missing))}")
        self._tvm: Any = tvm
        self._relax: Any = relax
        self._facts = facts
        self._library = self._tvm.runtime.load_module(path)
        self._machine = self._load()
        self.inputs, self.outputs = tuple(facts["inputs"]), tuple(facts["outputs"])
        shape = next(iter(facts["inputs"].values()))[0] if self.inputs else []
        self._batch = shape[0] if shape else 1

    def _load(self) -> Any:
        return self._relax.VirtualMachine(self._library, self._tvm.cpu())

    def run(self, feeds: Arrays, outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        wanted = self.outputs if outputs is None else tuple(outputs)

        def call(given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            found = self._machine["main"](*self._given(given))
            return {name: found[self.outputs.index(name)].numpy() for name in wanted}

        if not all(np.ndim(array) for array in feeds.values()):
            return call(dict(feeds))
        return in_slices(call, feeds, self._batch)

    def bind(self, feeds: Arrays) -> Callable[[], object]:
        main = self._machine["main"]
        cut = all(np.ndim(array) for array in feeds.values())
        given = [self._given(part) for part in (slices(feeds, self._batch) if cut else [feeds])]
        if len(given) == 1:
            return lambda: main(*given[0])
        return lambda: [main(*arrays) for arrays in given]

    def executed(self) -> list[ExecutedOp]:
        zeros = {n: np.zeros(shape, kind) for n, (shape, kind) in self._facts["inputs"].items()}
        given = self._given(zeros)
        self._machine["main"](*given)
        runs: list[list[tuple[str, float]]] = []
        start = 0

        def note(function: Any, name: str, before: bool, result: Any, *arguments: Any) -> None:
            nonlocal start
            if before:
                start = time.perf_counter_ns()
            else:
                runs[-1].append((str(name), (time.perf_counter_ns() - start) / 1e3))

        machine = self._load()
        machine.set_instrument(note)
        for _ in range(_PROFILED):
            runs.append([])
            machine["main"](*given)
        medians = [
            (calls[0][0], float(np.median([us for _, us in calls])))
            for calls in zip(*runs, strict=True)
        ]
        return _executed(self._facts, medians)

    def close(self) -> None:
        del self._machine, self._library

    def _given(self, feeds: Arrays) -> list[Any]:
        """Tensors of the engine, in order; of another shape or type they are refused."""
        given = self._facts["inputs"].items()
        arrays = [checked(feeds, name, kind, shape) for name, (shape, kind) in given]
        return [self._tvm.runtime.tensor(array) for array in arrays]


def _threads(options: SessionOptions) -> None:
    """Threads of the pool, which reads this when the engine starts it."""
    os.environ["TVM_NUM_THREADS"] = str(options.threads)


def host() -> tuple[Any, Cpu]:
    """The target for LLVM that this CPU is, and what kernels may use of it.

    LLVM tells the features by the model of the processor; a virtual machine may hide some.
    """
    import tvm
    from tvm.target import codegen

    facts = {"kind": "llvm", "mcpu": codegen.llvm_get_system_cpu()}
    known = {_letters(flag) for flag in this_machine().flags}
    features = _features(tvm.target.Target(facts))
    hidden = [f for f in features if f.startswith(_SHOWN) and _letters(f) not in known]
    if known and hidden:
        facts["mattr"] = [f"-{f}" for f in sorted(hidden)]
    target = tvm.target.Target(facts)
    features = _features(target)
    wide = {"avx512f", "avx512bw", "avx512vl"} <= features
    x86 = "sse2" in features
    vnni = (wide and "avx512vnni" in features) or "avxvnni" in features
    lanes = 16 if wide else 8 if "avx2" in features else 4
    dot: Dot = "vnni" if vnni else "madd" if x86 else "multiply"
    registers = 32 if wide or not x86 else 16
    return target, Cpu(lanes, registers, dot, not x86 or "fma" in features)


def _features(target: Any) -> set[str]:
    """Instruction sets of a target, without LLVM's hints on what is fast."""
    from tvm.target import codegen

    return {f for f in map(str, codegen.llvm_get_cpu_features(target)) if f.startswith(_SETS)}


def _letters(name: str) -> str:
    return "".join(c for c in name if c.isalnum())


def _compiled(module: Any, target: Any) -> tuple[Any, dict[str, list[str]]]:
    """The executable, and the tensor types of each of its functions."""
    import tvm
    from tvm import relax

    with target:
        module = tvm.ir.transform.Sequential(
            [
                relax.transform.LegalizeOps(),
                relax.transform.AnnotateTIROpPattern(),
                relax.transform.FoldConstant(),
                relax.transform.FuseOps(),
                relax.transform.FuseTIR(),
                relax.transform.DeadCodeElimination(),
            ]
        )(module)
    functions = {
        var.name_hint: [str(p.dtype) for p in function.params]
        for var, function in module.functions_items()
        if isinstance(function, tvm.tirx.PrimFunc)
    }
    return tvm.compile(module, target), functions


def _executed(facts: dict[str, Any], spans: list[tuple[str, float]]) -> list[ExecutedOp]:
    """What ran: our kernels by the node they stand for, TVM's functions by their own names. The
    nodes that TVM fused into its functions follow, without a time.
    """
    calls = {name: [c for c in facts["calls"] if c["function"] == name] for name, _ in spans}
    found = []
    for name, us in spans:
        if calls[name]:
            found.append(_node(calls[name].pop(0), us))
        elif name in facts["functions"]:
            types = facts["functions"][name]
            floats = [t for t in types if t.startswith("float")]
            words = set(re.findall("[a-z]+", name)) - {"fused", "expand", "dims"}
            kind: Kind = "conversion" if words <= _ORDER else "other"
            found.append(ExecutedOp(name, "TVM", (floats or types)[0], kind, us))
    return found + [_node(c, None) for c in facts["calls"] if not c["function"]]


def _node(call: dict[str, str], us: float | None) -> ExecutedOp:
    kind: Kind = "other"
    if call["precision"] in _SMALL:
        kind = "integer"
    elif call["precision"].startswith("float"):
        kind = "float"
    if call["op"] in _CONVERSIONS:
        kind = "conversion"
    return ExecutedOp(call["node"], call["op"], call["precision"], kind, us)


PLUGIN = Tvm()
