"""`--fix`: a network that takes what the device hands over, and the card that says so.

Into the graph goes what is arithmetic on pixels: layout, colour order, scale, mean and std. What
the device gave is first turned back into levels, which are whole numbers, so rounding makes them
exact; then training's own three operations follow, in its order and in float32:

    level = round((x * std_d + mean_d) / scale_d)         x' = (level * scale - mean) / std

Filter, crop and EXIF cannot go there: the card names training's, and the device must follow it.
How files are decoded and where colour is converted stands in no card.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from modelmill import ir
from modelmill.audit import STAGES, Network, Pipeline
from modelmill.audit.deployed import take, words
from modelmill.tasks import Card
from modelmill.tasks.card import Input

IN_GRAPH = ("channel order", "scaling")


def raw(card: Card) -> Card:
    """The card of a device that hands over levels 0 to 255 as pictures lie in memory."""
    spec = card.input
    n = spec.channels
    color = "RGB" if n == 3 else spec.color
    plain = replace(
        spec, layout="NHWC", color=color, scale=1.0, mean=(0.0,) * n, std=(1.0,) * n
    )  # fmt: skip
    return replace(card, input=plain)


def fixed_card(trained: Card, device: Card) -> Card:
    """How the network with its preprocessing inside is fed: as the device scales and orders, with
    training's filter, crop, EXIF and reading.
    """
    ours, theirs = trained.input, device.input
    spec = replace(theirs, resize=ours.resize, exif=ours.exif, size=ours.size)
    return replace(trained, input=spec)


def inside(graph: ir.Graph, trained: Input, device: Input) -> ir.Graph:
    """The graph with its preprocessing inside: it takes what `device` makes of a picture, and
    computes what it did on what `trained` makes of it.
    """
    made = ir.clone(graph)
    fields = ("layout", "color", "scale", "mean", "std")
    if all(getattr(device, field) == getattr(trained, field) for field in fields):
        return made
    source = made.graph.inputs[0]
    consumers = list(source.uses())
    first = next(iter(made.graph))
    axis = 1 if device.layout == "NCHW" else 3

    def add(op: str, x: ir.Value, numbers: Sequence[float] | None = None) -> ir.Value:
        inputs: list[ir.Value | None] = [x]
        if numbers is not None:
            shape = [-1 if i == axis else 1 for i in range(4)]
            array = np.asarray(numbers, np.float32).reshape(shape)
            inputs.append(ir.add_constant(made, f"preprocess_{op}", array))
        return ir.add_node(made, op, inputs, before=first, stem=f"preprocess_{op}")

    x: ir.Value = source
    n = device.channels
    if (device.scale, device.mean, device.std) != (1.0, (0.0,) * n, (1.0,) * n):
        x = add("Mul", x, device.std)
        x = add("Add", x, device.mean)
        x = add("Div", x, [device.scale] * n)
        x = add("Round", x)
    if device.color != trained.color:
        order = ir.add_constant(made, "preprocess_order", np.arange(n)[::-1].copy())
        x = ir.add_node(made, "Gather", [x, order], {"axis": axis}, before=first)
    x = add("Mul", x, [trained.scale] * n)
    x = add("Sub", x, trained.mean)
    x = add("Div", x, trained.std)
    if device.layout != trained.layout:
        turn = [0, 3, 1, 2] if trained.layout == "NCHW" else [0, 2, 3, 1]
        x = ir.add_node(made, "Transpose", [x], {"perm": turn}, before=first)
        dims = list(ir.inputs(graph)[source.name or ""].shape)
        ir.set_shape(source, [dims[turn.index(i)] for i in range(4)])
    for node, index in consumers:
        node.replace_input_with(index, x)
    return made


def mended(
    trained: Pipeline, device: Pipeline, card: Card, network: Network
) -> tuple[list[tuple[str, str]], list[tuple[str, str]], Pipeline]:
    """What becomes of each stage that differs.

    Args:
        trained: the training pipeline.
        device: the device's.
        card: the device's as it was given, with its layout.
        network: the one with the preprocessing inside.

    Returns:
        (stage, how) of what is mended; (stage, what the device does) of what is left; and the
        device with the network and its card.
    """
    fixed = replace(
        device, card=fixed_card(trained.card, card), place=None, resize=None, precision=network
    )
    done, left = [], []
    for stage in (s for s in STAGES if take(s, trained, device) != trained):
        step = {
            "decode": device.decode, "colour": device.colour, "scaling": device.feed,
            "operators": device.rewrites or None, "precision": device.precision,
            "post-processing": device.reading,
        }.get(stage)  # fmt: skip
        if step is not None:
            left.append((stage, words(stage, device)))
        elif stage in IN_GRAPH:
            done.append((stage, "inside the network"))
        else:
            done.append(
                (stage, f"by the card, which the device must follow: {words(stage, trained)}")
            )
    if card.input.layout != trained.card.input.layout:
        done.append(("layout", f"inside the network, which takes {card.input.layout}"))
    return done, left, fixed
