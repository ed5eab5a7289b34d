"""upsample: how a network enlarges its feature maps: filter, and which points of two grids meet.

Libraries differ in the default of both: pixel centres (half_pixel), corners (align_corners) or
the top left (asymmetric); converters have replaced one by another. See ONNX, operator Resize.
"""

from __future__ import annotations

from functools import partial

from modelmill import ir
from modelmill.audit.noise import LeftOut, Noise, Offer, Option, Subject
from modelmill.audit.pipeline import Step
from modelmill.audit.pooling import add_rewrite, fits

# name, words, mode, coordinate_transformation_mode, nearest_mode
WAYS = (
    ("nearest-floor", "nearest, top left meets top left", "nearest", "asymmetric", "floor"),
    ("nearest-half-pixel", "nearest by pixel centres", "nearest", "half_pixel",
     "round_prefer_floor"),
    ("bilinear", "bilinear by pixel centres", "linear", "half_pixel", "round_prefer_floor"),
    ("bilinear-align-corners", "bilinear, corners meet corners", "linear", "align_corners",
     "round_prefer_floor"),
    ("bilinear-asymmetric", "bilinear, top left meets top left", "linear", "asymmetric",
     "round_prefer_floor"),
)  # fmt: skip
DEFAULTS = ("nearest", "half_pixel", "round_prefer_floor")
NAMES = ("mode", "coordinate_transformation_mode", "nearest_mode")


def enlarge_by(graph: ir.Graph, mode: str, grid: str, nearest: str) -> ir.Graph:
    """Every Resize (opset 11 or later) in one way."""
    found = ir.clone(graph)
    for node in ir.nodes(found):
        if node.op_type == "Resize":
            for name, content in zip(NAMES, (mode, grid, nearest), strict=True):
                ir.set_attribute(node, name, content)
    return found


def _way(node: ir.Node) -> tuple[str, ...]:
    """How a Resize works now; the rounding of nearest says nothing where it is not nearest."""
    held = ir.attributes(node)
    mode, grid, nearest = (held.get(n, d) for n, d in zip(NAMES, DEFAULTS, strict=True))
    return (mode, grid, nearest if mode == "nearest" else "")


def options(subject: Subject) -> Offer:
    nodes = [n for n in ir.nodes(subject.graph) if n.op_type == "Resize"]
    if not nodes or ir.opset(subject.graph) < 11:
        return [LeftOut("", "the network enlarges nothing (no Resize)")]
    now = {_way(node) for node in nodes}
    found: list[Option | LeftOut] = []
    for name, words, mode, grid, nearest in WAYS:
        if now == {(mode, grid, nearest if mode == "nearest" else "")}:
            continue
        rewrite = partial(enlarge_by, mode=mode, grid=grid, nearest=nearest)
        why = fits(subject.graph, rewrite)
        step = Step(f"upsample {name}", rewrite)
        found.append(
            LeftOut(name, why) if why else Option(name, words, partial(add_rewrite, step=step))
        )
    return found


PLUGIN = Noise("upsample", "operators", "filter and grid of enlarged feature maps", options)
