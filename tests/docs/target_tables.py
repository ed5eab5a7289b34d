"""The tables of docs/targets.md, made from the targets.

python tests/docs/target_tables.py      # writes them; tests/docs/test_targets.py holds them
"""

import ast
import re
from pathlib import Path

from modelmill import plugins
from modelmill.line.describe import conditions
from modelmill.numerics import QuantSpec
from modelmill.targets import OpRule, Target

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "targets.md"


def tables() -> dict[str, str]:
    """Name of each target -> its section between the markers."""
    names = plugins.names("modelmill.targets")
    return {name: _section(plugins.load("modelmill.targets", name)) for name in names}


def sections(page: str) -> dict[str, str]:
    """The same, as the page has it."""
    found = re.findall(r"<!-- (\w+): begin -->\n(.*?)\n<!-- \1: end -->", page, re.DOTALL)
    return dict(found)


def _section(target: Target) -> str:
    engine = f"Engine `{target.runtime}`." if target.runtime else "No engine here: simulated."
    lines = [f"### {target.name}", "", _docstring(target), "", f"{engine} Source: {target.source}."]
    lines += [""]
    for scheme in target.schemes:
        kinds = {
            "activations": _format(scheme.activation),
            "weights": _format(scheme.weight, "per output channel"),
            "biases": _format(scheme.bias, "per output channel"),
        }
        said = "; ".join(f"{kind} {text}" for kind, text in kinds.items())
        lines += [f"- `{scheme.precision}`: {said}"]
    ways = ", ".join(
        f"{name.replace('_', ' ')} `{how}`" for name, how in vars(target.arithmetic).items()
    )
    lines += [f"- arithmetic: {ways}"]
    for guard in target.guards:
        flags = " or ".join(guard.needs_one_of)
        lines += [
            f"- guard: on {', '.join(guard.architectures)} without {flags} weights "
            f"get {guard.weight_bits} bits: {guard.why} ({guard.source})"
        ]
    if target.fused:
        lines += [f"- run as one kernel: {', '.join(' + '.join(chain) for chain in target.fused)}"]
    for what, names in {
        "rewritten before planning by": target.passes,
        "written on codes": target.on_codes,
        "shielded where they stay in float": target.shield,
        "files for its tools, `modelmill/export`": target.export,
    }.items():
        if names:
            lines += [f"- {what}: {', '.join(f'`{name}`' for name in names)}"]
    lines += [f"- refuses {op}: {why}" for op, why in target.refuses]
    if target.packed_weights:
        lines += ["- weights of 4 bits or fewer are stored as INT4, two to a byte"]
    if target.host:
        lines += [f"- what stays in float runs on the {target.host}"]
    lines += ["", "| op | inputs | output | anchor | only if |", "|---|---|---|---|---|"]
    return "\n".join(lines + _rows(target.rules))


def _docstring(target: Target) -> str:
    """What the file says about it, as one paragraph for each of its own."""
    file = ROOT / "modelmill" / "targets" / f"{target.name}.py"
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))


def _rows(rules: tuple[OpRule, ...]) -> list[str]:
    """One row for each rule; neighbours that differ in their op alone share it."""
    found: list[tuple[list[str], str]] = []
    for rule in rules:
        rest = _row(rule)
        if found and found[-1][1] == rest:
            found[-1][0].append(rule.op)
        else:
            found.append(([rule.op], rest))
    return [f"| {', '.join(ops)} | {rest}" for ops, rest in found]


def _row(rule: OpRule) -> str:
    inputs = ", ".join(rule.inputs) + (" ..." if rule.variadic else "")
    output = rule.output + (" or float" if rule.float_output and rule.output != "float" else "")
    why = {limit.what: f" ({limit.why})" for limit in rule.limits if limit.why}
    limits = [text + why.get(text.split(" ")[0], "") for text in conditions(rule)]
    anchor = "yes" if rule.anchor else ""
    return f"{inputs} | {output} | {anchor} | {'; '.join(limits)} |"


def _format(spec: QuantSpec | None, instead_of_axis: str = "") -> str:
    if spec is None:
        return "float"
    text = str(spec)
    return re.sub(r"per channel \(axis \d+\)", instead_of_axis, text)


def main() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for name, text in tables().items():
        begin, end = f"<!-- {name}: begin -->\n", f"\n<!-- {name}: end -->"
        if begin not in page:
            page += f"\n{begin}{end}\n"
        before, _, rest = page.partition(begin)
        page = before + begin + text + end + rest.partition(end)[2]
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
