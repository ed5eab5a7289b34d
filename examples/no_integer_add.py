"""A target of your own, in a file outside the package: ONNX Runtime, but additions stay in float.

    modelmill check demo-build/digits.onnx -t examples/no_integer_add.py
    python examples/no_integer_add.py [FOLDER]

A real one would state the rules of its engine with their sources; see modelmill/targets.
"""

import sys
from dataclasses import replace
from pathlib import Path

from modelmill import plugins

ORT = plugins.load("modelmill.targets", "ort_cpu")

PLUGIN = replace(
    ORT,
    name="no_integer_add",
    rules=tuple(rule for rule in ORT.rules if rule.op != "Add"),
    fused=tuple(chain for chain in ORT.fused if chain[0] != "Add"),
)


def main(folder: Path) -> None:
    import modelmill

    for target in ("ort_cpu", __file__):
        checked = modelmill.check(folder / "digits.onnx", target)
        print(checked.target, checked.counts)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo-build"))
