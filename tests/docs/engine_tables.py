"""The sections of docs/engines.md, made from the adapters and the targets that run on them.

python tests/docs/engine_tables.py      # writes them; tests/docs/test_complete.py holds them
"""

import ast
import re
from pathlib import Path

from modelmill import plugins
from modelmill.runtimes import load_runtime
from modelmill.targets import load_target

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "engines.md"


def sections() -> dict[str, str]:
    """Name of each engine -> its section between the markers."""
    return {name: _section(name) for name in plugins.names("modelmill.runtimes")}


def held(page: str) -> dict[str, str]:
    """The same, as the page has it."""
    found = re.findall(r"<!-- (\w+): begin -->\n(.*?)\n<!-- \1: end -->", page, re.DOTALL)
    return dict(found)


def _section(name: str) -> str:
    runtime = load_runtime(name)
    low, high = runtime.supported
    text = (ROOT / "modelmill" / "runtimes" / f"{name}.py").read_text(encoding="utf-8")
    said = ast.get_docstring(ast.parse(text)) or ""
    paragraphs = [" ".join(part.split()) for part in said.split("\n\n")]
    found = map(load_target, plugins.names("modelmill.targets"))
    mine = [t for t in found if t.runtime == name]
    listed = ", ".join(
        f"[{t.name}](targets.md#{t.name}) ({', '.join(s.precision for s in t.schemes)})"
        for t in mine
    )
    file = "reads ONNX itself" if runtime.suffix == ".onnx" else f"opens `{runtime.suffix}` files"
    lines = [f"### {name}", "", "\n\n".join(paragraphs), ""]
    lines += [f"- versions: from {low}, below {high}; {file}"]
    lines += [f"- install: `{runtime.pip}`, or `modelmill doctor --install {name}`"]
    return "\n".join([*lines, f"- targets: {listed or 'none'}"])


def main() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for name, text in sections().items():
        begin, end = f"<!-- {name}: begin -->\n", f"\n<!-- {name}: end -->"
        if begin not in page:
            page += f"\n{begin}{end}\n"
        before, _, rest = page.partition(begin)
        page = before + begin + text + end + rest.partition(end)[2]
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
