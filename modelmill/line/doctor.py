"""What works on this computer: engines, packages, and what its instruction set means for 8 bits."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from modelmill import plugins, runtimes, targets
from modelmill.records.machine import Machine, has_vnni, this_machine
from modelmill.runtimes import EngineStatus

# module, distributions that bring it, what it is for, the line that installs it
PACKAGES = (
    ("torch", ("torch",), "quantizing and simulating", "pip install 'modelmill[torch]'"),
    ("onnxscript", ("onnxscript",), "PyTorch models", "pip install 'modelmill[torch]'"),
    ("safetensors", ("safetensors",), "PyTorch weights", "pip install 'modelmill[torch]'"),
    (
        "cv2",
        ("opencv-python-headless", "opencv-python", "opencv-contrib-python"),
        "cards with resize opencv-*",
        "pip install 'modelmill[detection]'",
    ),
    ("pycocotools", ("pycocotools",), "scoring detection", "pip install 'modelmill[detection]'"),
    ("av", ("av",), "audit with FFmpeg", "pip install 'modelmill[audit]'"),
    ("simplejpeg", ("simplejpeg",), "audit with libjpeg-turbo", "pip install 'modelmill[audit]'"),
    ("sklearn", ("scikit-learn",), "modelmill demo", "pip install 'modelmill[demo]'"),
)
ESSENTIAL = "torch"
X86 = ("x86_64", "AMD64")


@dataclass(frozen=True)
class Package:
    """One optional package; version "" if it is not installed, pip "" if it is."""

    name: str
    version: str
    use: str
    pip: str


@dataclass(frozen=True)
class Health:
    """The state of this computer. instructions: sentences on its integer arithmetic. schemes:
    (engine, precision) of the targets that run on an engine.
    """

    machine: Machine
    engines: tuple[EngineStatus, ...]
    packages: tuple[Package, ...]
    instructions: tuple[str, ...]
    schemes: tuple[tuple[str, str], ...]

    @property
    def works(self) -> bool:
        """Whether a build is possible: an engine works and what it stands on is installed."""
        essential = all(p.version for p in self.packages if p.name == ESSENTIAL)
        return essential and any(engine.works for engine in self.engines)

    def precisions(self, platform: str) -> tuple[str, ...]:
        """What can run there: float, and the precisions of the targets that have this engine."""
        engine = platform.partition("@")[0]
        return ("float", *(p for runtime, p in self.schemes if runtime == engine))

    def to_json(self) -> dict[str, Any]:
        """All fields, and what follows from them."""
        engines = [
            {**asdict(e), "works": e.works, "precisions": self.precisions(e.name)}
            for e in self.engines
        ]
        held = asdict(self)
        del held["schemes"]
        return {**held, "engines": engines, "works": self.works}


def doctor() -> Health:
    """Examine this computer; every engine is loaded once, in a process of its own."""
    machine = this_machine()
    packages = tuple(_package(*row) for row in PACKAGES)
    return Health(machine, tuple(runtimes.doctor()), packages, _instructions(machine), _schemes())


def _schemes() -> tuple[tuple[str, str], ...]:
    found = map(targets.load_target, plugins.names("modelmill.targets"))
    return tuple(sorted({(t.runtime, s.precision) for t in found if t.runtime for s in t.schemes}))


def _package(module: str, distributions: tuple[str, ...], use: str, pip: str) -> Package:
    if find_spec(module) is not None:
        for name in distributions:
            try:
                return Package(name, version(name), use, "")
            except PackageNotFoundError:
                continue
        return Package(distributions[0], "unknown", use, "")
    return Package(distributions[0], "", use, pip)


def _instructions(machine: Machine) -> tuple[str, ...]:
    """What the best integer instruction of this CPU means for each target."""
    if machine.arch not in X86:
        found = [f"{machine.arch}, best instruction set for 8 bits: {machine.isa}"]
    elif has_vnni(machine.flags):
        found = ["VNNI is there: products of 8-bit numbers are added in 32 bits, exactly and fast"]
    else:
        found = [
            f"no VNNI (best: {machine.isa}): products of 8-bit numbers are added in pairs in 16 "
            "bits, which can saturate"
        ]
    for name in plugins.names("modelmill.targets"):
        target = targets.load_target(name)
        for scheme in target.schemes:
            flags = frozenset(machine.flags)
            narrowed, guard = targets.guarded_scheme(target, scheme.precision, machine.arch, flags)
            if guard is not None:
                found.append(
                    f"{name} {scheme.precision}: weights get {narrowed.weight.bits} bits here, so "
                    "that no sum saturates; --cpu-flags names another machine"
                )
    return tuple(found)
