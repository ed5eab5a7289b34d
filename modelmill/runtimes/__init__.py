"""Adapters to real inference engines, each session in a process of its own."""

from modelmill.runtimes.doctor import EngineStatus, doctor
from modelmill.runtimes.protocol import (
    DeploymentError,
    EngineCrashed,
    EngineError,
    EngineMissing,
    EngineOutOfMemory,
    EngineTimeout,
    ExecutedOp,
    SessionOptions,
)
from modelmill.runtimes.worker import RemoteSession, open_session

__all__ = [
    "DeploymentError",
    "EngineCrashed",
    "EngineError",
    "EngineMissing",
    "EngineOutOfMemory",
    "EngineStatus",
    "EngineTimeout",
    "ExecutedOp",
    "RemoteSession",
    "SessionOptions",
    "doctor",
    "open_session",
]
