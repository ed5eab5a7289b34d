"""The graph as one target wants it: the clean graph after the passes that the target names.

Each is a file `modelmill/passes/NAME.py` with a function NAME. What it leaves must compute the
same: on a few images the outputs may differ by float32 rounding only.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec

import numpy as np
import torch

from modelmill import executor, ir
from modelmill.targets import Target

TOLERANCE = 1e-5  # of the largest output: sums in another order, nothing else


def rewritten(graph: ir.Graph, target: Target) -> ir.Graph:
    """`graph` after the passes of `target`; itself where there are none.

    Raises:
        ValueError: the target names a pass that does not exist.
    """
    for name in target.passes:
        path = f"modelmill.passes.{name}"
        if not name.isidentifier() or find_spec(path) is None:
            raise ValueError(f"target {target.name} names the pass {name!r}, which does not exist")
        graph = getattr(import_module(path), name)(graph)
    return graph


def check_equal(
    before: ir.Graph, after: ir.Graph, target: Target, feeds: Mapping[str, np.ndarray]
) -> None:
    """Raise ValueError if the passes of `target` changed an output."""
    if after is before:
        return
    with torch.inference_mode():
        wanted, found = executor.Module(before)(feeds), executor.Module(after)(feeds)
    for name, y in wanted.items():
        reach = max(float(y.abs().max()) if y.numel() else 0.0, 1e-30)
        if y.is_floating_point() and not torch.allclose(
            found[name], y, rtol=0, atol=TOLERANCE * reach, equal_nan=True
        ):
            raise ValueError(
                f"target {target.name}: its passes ({', '.join(target.passes)}) changed the output "
                f"{name!r} by {float((found[name] - y).abs().max()):.2g}, whose largest element is "
                f"{reach:.2g}. This is a fault of a pass; build for another target"
            )
