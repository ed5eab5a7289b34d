"""A finished unit of a reconstruction on disk, so that a killed run does not learn it again.

One npz file per unit, written whole or not at all: what became of it, weights, scales and zero
points. Which run it belongs to is the folder's business.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from modelmill import ir
from modelmill.numerics import Encoding, QuantSpec
from modelmill.quant.learn import Learned


def save_unit(path: Path | None, facts: Mapping[str, Any], learned: Learned) -> None:
    """Write a unit; without a path nothing is kept.

    Raises:
        ValueError: the disk is full or the folder cannot be written.
    """
    if path is None:
        return
    arrays = {"facts": np.array(json.dumps(facts))}
    arrays |= {f"weight/{name}": w for name, w in learned.weights.items()}
    for name, encoding in learned.encodings.items():
        arrays[f"scale/{name}"], arrays[f"zero/{name}"] = encoding.scale, encoding.zero_point
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    try:
        ir.write_whole(path, buffer.getvalue())
    except OSError as error:
        raise ValueError(
            f"cannot write {path} ({buffer.tell():,} bytes): {error.strerror}. Finished units are "
            "kept; make room, then run the same command with --resume"
        ) from error


def load_unit(
    path: Path | None, spec: Callable[[str], QuantSpec]
) -> tuple[dict[str, Any], Learned] | None:
    """The unit as it was saved; None where there is none or the file is damaged.

    `spec` gives the format of a value by its name.
    """
    if path is None or not path.exists():
        return None
    try:
        with np.load(path) as held:
            facts = json.loads(str(held["facts"]))
            parts = [tuple(name.split("/", 1)) for name in held.files if "/" in name]
            weights = {n: held[f"weight/{n}"] for kind, n in parts if kind == "weight"}
            encodings = {
                n: Encoding(spec(n), held[f"scale/{n}"], held[f"zero/{n}"])
                for kind, n in parts
                if kind == "scale"
            }
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    facts["layers"] = tuple(facts["layers"])
    learned = Learned(
        facts["loss_before"],
        facts["loss_after"],
        facts["flipped"],
        facts["kept"],
        weights,
        encodings,
    )
    return facts, learned
