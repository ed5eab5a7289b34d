"""Where an inference spends its time: the engine's kernels, laid on the nodes of the graph.

An engine names a kernel after a node it computes or after the value that comes out, with words of
its own behind: "Conv_4_token_7", "value_9_nchwc", "Conv_6/WithoutBiases". What bears no such name
(a change of layout) is counted to the kernel before it. Names that tell nothing leave all time with
the first kernel, and a profile with fewer than two tells nothing: it is empty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from modelmill import ir
from modelmill.latency.features import GraphFeatures
from modelmill.runtimes import ExecutedOp

LEAST = 2  # kernels with names


@dataclass(frozen=True)
class Shares:
    """kernels: (N,) number of the kernel that computed each unit. parts: (K,) of the time."""

    kernels: np.ndarray
    parts: np.ndarray


def spent(graph: ir.Graph, ops: Sequence[ExecutedOp]) -> dict[str, float]:
    """Microseconds by node of `graph`, in the order of execution; each node stands for the kernel
    that it is part of. {}: the engine does not tell.
    """
    nodes = {node.name or "" for node in graph.graph}
    owners = {v.name: n.name or "" for n in graph.graph for v in n.outputs if v.name}
    owners |= {name: name for name in nodes if name}
    found: dict[str, float] = {}
    waiting, last = 0.0, ""
    for op in ops:
        if op.us is None:
            return {}
        owner = _owner(op.name, owners)
        if owner:
            last = owner
        if not last:
            waiting += op.us
            continue
        found[last] = found.get(last, 0.0) + op.us + waiting
        waiting = 0.0
    return found if len(found) >= LEAST else {}


def _owner(name: str, owners: Mapping[str, str]) -> str:
    """The node of the longest name that `name` begins with, up to a character of no word."""
    for end in range(len(name), 0, -1):
        whole = end == len(name) or not name[end].isalnum()
        if whole and name[:end] in owners:
            return owners[name[:end]]
    return ""


def shares(graph: GraphFeatures, kernels: Mapping[str, float]) -> Shares | None:
    """Kernels as units of the graph; None where the names are not those of this graph.

    A unit that bears no kernel's name was computed by that of the unit it reads from.
    """
    place = {name: number for number, name in enumerate(kernels)}
    owner = np.array([place.get(name, -1) for name in graph.names], dtype=np.int64)
    if np.unique(owner[owner >= 0]).size < LEAST:
        return None
    source = {int(to): int(at) for at, to in graph.edges.T}  # the last that it reads from
    for unit in np.flatnonzero(owner < 0):
        same = np.flatnonzero((graph.kernels == graph.kernels[unit]) & (owner >= 0))
        if len(same):
            owner[unit] = owner[same[0]]
        elif int(unit) in source:
            owner[unit] = owner[source[int(unit)]]
    owner[owner < 0] = owner[owner >= 0][0]
    us = np.array(list(kernels.values()))
    used, numbers = np.unique(owner, return_inverse=True)
    return Shares(numbers, us[used] / us[used].sum())
