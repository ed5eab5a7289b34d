"""A target in words: formats, rules and where they come from; and how two of them differ."""

from __future__ import annotations

from modelmill import plugins
from modelmill.line.report import SIMULATED
from modelmill.targets import OpRule, Target, load_target


def describe(target: str) -> dict[str, str]:
    """What a target says, as {what: words}; two targets that agree in something have equal words.

    Args:
        target: its name, or the path of a file with one.

    Raises:
        ValueError: no such target (lists the choices), or one whose rules cannot be meant.
    """
    found = load_target(target)
    said = {"engine": found.runtime or SIMULATED}
    for scheme in found.schemes:
        kinds = {"activations": scheme.activation, "weights": scheme.weight, "biases": scheme.bias}
        for kind, spec in kinds.items():
            said[f"{scheme.precision} {kind}"] = "float" if spec is None else str(spec)
    said |= {f"arithmetic, {name}": how for name, how in vars(found.arithmetic).items()}
    said |= {f"{' + '.join(chain)}": "one kernel" for chain in found.fused}
    said |= _rules(found)
    said |= {op: f"refused, {why}" for op, why in found.refuses}
    if found.host:
        said["what stays in float runs on"] = found.host
    for guard in found.guards:
        said[f"without {' or '.join(guard.needs_one_of)}"] = f"{guard.weight_bits}-bit weights"
    said["files for its tools"] = ", ".join(found.export) or "none"
    said["source"] = found.source
    return said


def differences(target: str, other: str) -> list[tuple[str, str, str]]:
    """What two targets say differently: (what, words of the one, words of the other); empty where
    one says nothing.
    """
    one, two = describe(target), describe(other)
    return [
        (what, one.get(what, ""), two.get(what, ""))
        for what in dict.fromkeys([*one, *two])
        if one.get(what) != two.get(what)
    ]


def shipped() -> list[Target]:
    """Every target of the package, by name."""
    return [load_target(name) for name in plugins.names("modelmill.targets")]


def _rules(target: Target) -> dict[str, str]:
    """The rules of each operator, in their order."""
    found: dict[str, list[str]] = {}
    for rule in target.rules:
        found.setdefault(rule.op, []).append(rule_in_words(rule))
    return {op: "; else ".join(words) for op, words in found.items()}


def rule_in_words(rule: OpRule) -> str:
    """Inputs, output, and what it holds for."""
    inputs = ", ".join(rule.inputs) + (" ..." if rule.variadic else "")
    output = rule.output + (" or float" if rule.float_output and rule.output != "float" else "")
    only = ", ".join(conditions(rule))
    return f"{inputs} -> {output}" + (f" if {only}" if only else "")


def conditions(rule: OpRule) -> list[str]:
    """What must hold of a node, in words."""
    held = [f"{name} is {' or '.join(map(str, values))}" for name, values in rule.attributes]
    held += [f"input {index} is {number:g} or absent" for index, number in rule.constants]
    return held + [f"{limit.what} {limit.range}" for limit in rule.limits]
