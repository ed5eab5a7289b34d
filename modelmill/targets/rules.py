"""Load a target, and make sure that its rules mean something: every operator and attribute exists
in the ONNX standard, and every rule can match a node that none before it takes.

A rule is shadowed when an earlier one of the same operator is at least as general: whatever the
later one accepts, the earlier one accepts too, so that the later one is dead. That is decided from
the conditions alone.
"""

from __future__ import annotations

import difflib
from dataclasses import replace
from itertools import zip_longest

from modelmill import ir, plugins
from modelmill.targets.limits import QUANTITIES
from modelmill.targets.target import Limit, OpRule, Role, Target


def load_target(name: str) -> Target:
    """The target of that name, or of the file at that path; NAME@VERSION is the target on that
    version of its engine.

    Raises:
        ValueError: no such target (lists the choices), the file's PLUGIN is something else, a rule
            cannot be meant, or a version of a target that no engine here runs.
    """
    stem, _, version = name.rpartition("@") if "@" in name else (name, "", "")
    found = plugins.load("modelmill.targets", stem)
    if not isinstance(found, Target):
        raise ValueError(f"the PLUGIN of {stem} is a {type(found).__name__}, not a Target")
    validate(found)
    if not version:
        return found
    if found.runtime is None:
        raise ValueError(f"{name}: no engine here runs {stem}, so it has no version; say -t {stem}")
    return replace(found, name=name, runtime=f"{found.runtime}@{version}")


def validate(target: Target) -> None:
    """Raise ValueError at the first rule that cannot be meant, saying which and what is near."""
    for number, rule in enumerate(target.rules, 1):
        where = f"target {target.name}, rule {number} ({rule.op})"
        _known_operator(rule.op, where)
        names = [name for name, _ in rule.attributes]
        for name in names:
            _known_attribute(rule.op, name, where, ())
        for limit in rule.limits:
            _known_attribute(rule.op, limit.what, where, tuple(QUANTITIES))
        for earlier, before in enumerate(target.rules[: number - 1], 1):
            if covers(before, rule):
                raise ValueError(
                    f"{where} is shadowed by rule {earlier}, which takes every node that this one "
                    "takes: put the special rule first, or remove it"
                )
    others = {op for chain in target.fused for op in chain}
    others |= {*target.on_codes, *target.shield, *(op for _, op in target.float_kernels)}
    for op in sorted(others | {op for op, _ in target.refuses}):
        _known_operator(op, f"target {target.name}")


def covers(general: OpRule, special: OpRule) -> bool:
    """Whether every node that matches `special` matches `general`."""
    if general.op != special.op:
        return False
    narrowed = dict(special.attributes)
    attributes = all(
        name in narrowed and set(narrowed[name]) <= set(values)
        for name, values in general.attributes
    )
    constants = set(general.constants) <= set(special.constants)
    limits = all(any(_within(inner, outer) for inner in special.limits) for outer in general.limits)
    return attributes and constants and limits and _roles_cover(general, special)


def _within(inner: Limit, outer: Limit) -> bool:
    return inner.what == outer.what and outer.low <= inner.low and inner.high <= outer.high


def _roles_cover(general: OpRule, special: OpRule) -> bool:
    def tail(rule: OpRule) -> Role:
        return rule.inputs[-1] if rule.variadic and rule.inputs else "float"

    roles = list(zip_longest(general.inputs, special.inputs))
    pairs = [(a or tail(general), b or tail(special)) for a, b in roles]
    pairs.append((tail(general), tail(special)))
    # What is float for the general rule may be anything; what is a constant is float32 as well.
    return all(a in ("float", b) or (a == "activation" and b != "float") for a, b in pairs)


def _known_operator(op: str, where: str) -> None:
    if ir.operator_attributes(op) is None:
        names = {name.lower(): name for name in ir.operator_names()}
        near = [names[n] for n in difflib.get_close_matches(op.lower(), names, 3)]
        hint = f"; nearest: {', '.join(near)}" if near else ""
        raise ValueError(f"{where}: ONNX has no operator {op!r}{hint}")


def _known_attribute(op: str, name: str, where: str, also: tuple[str, ...]) -> None:
    known = sorted(ir.operator_attributes(op) or ())
    if name not in known and name not in also:
        choices = ", ".join([*known, *also]) or "it has none"
        raise ValueError(f"{where}: {op} has no attribute {name!r}. Choices: {choices}")
