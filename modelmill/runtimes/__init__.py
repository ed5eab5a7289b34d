"""Adapters to real inference engines, each session in a process of its own."""

from modelmill.runtimes.doctor import EngineStatus, doctor
from modelmill.runtimes.install import install, remove
from modelmill.runtimes.platforms import Platform, find_platform, load_runtime, platforms
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
from modelmill.runtimes.worker import (
    RemoteSession,
    Series,
    Worker,
    convert,
    open_session,
    probe,
)

__all__ = [
    "DeploymentError",
    "EngineCrashed",
    "EngineError",
    "EngineMissing",
    "EngineOutOfMemory",
    "EngineStatus",
    "EngineTimeout",
    "ExecutedOp",
    "Platform",
    "RemoteSession",
    "Series",
    "SessionOptions",
    "Worker",
    "convert",
    "doctor",
    "find_platform",
    "install",
    "load_runtime",
    "open_session",
    "platforms",
    "probe",
    "remove",
]
