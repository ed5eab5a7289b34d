"""Run an ONNX graph in torch, with gradients, one function per operator; simulate quantization."""

from modelmill.executor.bind import operators, unsupported
from modelmill.executor.module import Module

__all__ = ["Module", "operators", "unsupported"]
