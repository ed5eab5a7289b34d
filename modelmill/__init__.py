"""modelmill: a trained vision model in, verified low-bit artifacts on real engines out.

    import modelmill
    report = modelmill.build("model.onnx", data="images/", targets=["ort_cpu", "openvino_cpu"])
    quantized = modelmill.quantize("model.onnx", batches, target="ort_cpu")

Every command has its function here; they are loaded when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modelmill.line.audit import audit_deployment
    from modelmill.line.bench import bench
    from modelmill.line.check import check
    from modelmill.line.compare import compare
    from modelmill.line.describe import describe
    from modelmill.line.doctor import doctor
    from modelmill.line.entry import build
    from modelmill.line.evaluate import evaluate
    from modelmill.line.explain import explain
    from modelmill.line.inspect import inspect
    from modelmill.line.quantize import quantize

__version__ = "0.1.0"
__all__ = [
    "audit_deployment",
    "bench",
    "build",
    "check",
    "compare",
    "describe",
    "doctor",
    "evaluate",
    "explain",
    "inspect",
    "quantize",
]

_MODULES = {name: name for name in __all__} | {"audit_deployment": "audit", "build": "entry"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'modelmill' has no attribute {name!r}")
    return getattr(import_module(f"modelmill.line.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
