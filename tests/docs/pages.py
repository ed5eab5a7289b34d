"""The pages of the documentation, and the blocks of code in them."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def blocks(language: str) -> list[tuple[str, str]]:
    """(page, code) of every block that is marked with the language."""
    marked = re.compile(rf"^```{language}\n(.*?)^```$", re.DOTALL | re.MULTILINE)
    return [
        (str(page.relative_to(ROOT)), code)
        for page in PAGES
        for code in marked.findall(page.read_text(encoding="utf-8"))
    ]


def commands() -> list[tuple[str, list[str]]]:
    """(page, words) of every command in the blocks marked sh; comments are left out."""
    return [
        (page, words)
        for page, code in blocks("sh")
        for line in code.replace("\\\n", " ").splitlines()
        if (words := shlex.split(line, comments=True))
    ]
