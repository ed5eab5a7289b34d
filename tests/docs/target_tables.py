"""The tables of docs/targets.md, made from the targets.

python tests/docs/target_tables.py      # writes them; tests/docs/test_targets.py holds them
"""

import re
from pathlib import Path

from modelmill import plugins
from modelmill.numerics import QuantSpec
from modelmill.targets import OpRule, Target

PAGE = Path(__file__).resolve().parents[2] / "docs" / "targets.md"


def tables() -> dict[str, str]:
    """Name of each target -> its section between the markers."""
    names = plugins.names("modelmill.targets")
    return {name: _section(plugins.load("modelmill.targets", name)) for name in names}


def sections(page: str) -> dict[str, str]:
    """The same, as the page has it."""
    found = re.findall(r"<!-- (\w+): begin -->\n(.*?)\n<!-- \1: end -->", page, re.DOTALL)
    return dict(found)


def _section(target: Target) -> str:
    lines = [f"### {target.name}", "", f"Engine `{target.runtime}`. Source: {target.source}.", ""]
    for scheme in target.schemes:
        kinds = {
            "activations": _format(scheme.activation),
            "weights": _format(scheme.weight, "per output channel"),
            "biases": _format(scheme.bias, "per output channel"),
        }
        said = "; ".join(f"{kind} {text}" for kind, text in kinds.items())
        lines += [f"- `{scheme.precision}`: {said}"]
    a = target.arithmetic
    lines += [
        f"- arithmetic: requantize `{a.requantize}`, add `{a.add}`, average pool "
        f"`{a.average_pool}`, float to code `{a.quantize}`"
    ]
    for guard in target.guards:
        flags = " or ".join(guard.needs_one_of)
        lines += [
            f"- guard: on {', '.join(guard.architectures)} without {flags} weights "
            f"get {guard.weight_bits} bits: {guard.why} ({guard.source})"
        ]
    chains = ", ".join(" + ".join(chain) for chain in target.fused)
    lines += [f"- run as one kernel: {chains}"]
    if target.on_codes:
        lines += [f"- written on codes: {', '.join(target.on_codes)}"]
    if target.shield:
        lines += [f"- shielded where they stay in float: {', '.join(target.shield)}"]
    lines += ["", "| op | inputs | output | anchor | only if |", "|---|---|---|---|---|"]
    return "\n".join(lines + [_row(rule) for rule in target.rules])


def _row(rule: OpRule) -> str:
    inputs = ", ".join(rule.inputs) + (" ..." if rule.variadic else "")
    output = rule.output + (" or float" if rule.float_output and rule.output != "float" else "")
    limits = [f"{name} is {' or '.join(map(str, values))}" for name, values in rule.attributes]
    limits += [f"input {index} is {number:g} or absent" for index, number in rule.constants]
    anchor = "yes" if rule.anchor else ""
    return f"| {rule.op} | {inputs} | {output} | {anchor} | {'; '.join(limits)} |"


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
