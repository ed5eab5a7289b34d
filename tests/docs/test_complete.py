"""Nothing is missing from the documentation, and nothing in it leads nowhere."""

import ast
import dataclasses
import re
import sys
import typing
from pathlib import Path

import click
import pytest

import modelmill
from modelmill import plugins

sys.path.insert(0, str(Path(__file__).parent))
import engine_tables
from pages import PAGES, ROOT
from target_tables import sections, tables

KINDS = {  # package of plug-ins -> the page that must name each of them
    "modelmill.cli": "docs/commands.md",
    "modelmill.targets": "docs/targets.md",
    "modelmill.runtimes": "docs/engines.md",
    "modelmill.quant": "docs/recipe.md",
    "modelmill.audit": "docs/audit.md",
    "modelmill.tasks": "docs/card.md",
    "modelmill.tasks.decoders": "docs/card.md",
}
PLUGINS = [(package, name) for package in KINDS for name in plugins.names(package)]


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_resolve(path):
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.S | re.M)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        place, _, anchor = link.partition("#")
        if "://" in place:
            continue
        target = (path.parent / place).resolve() if place else path
        assert target.exists(), f"{path.name}: {link}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.M)
            assert anchor in {h.lower().replace(" ", "-") for h in headings}, f"{path.name}: {link}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_named_in_code_exist(path):
    text = path.read_text(encoding="utf-8")
    for name in re.findall(r"`((?:modelmill|tests|benchmarks|examples|docs)/[\w./-]+)`", text):
        assert (ROOT / name).exists() or name.endswith("/benchmarks/"), f"{path.name}: {name}"


@pytest.mark.parametrize(("package", "name"), PLUGINS, ids=lambda value: str(value))
def test_plugins_say_what_they_are_and_are_documented(package, name):
    source = ROOT / package.replace(".", "/") / f"{name}.py"
    assert len(ast.get_docstring(ast.parse(source.read_text())) or "") > 20
    word = f"modelmill {name}" if package == "modelmill.cli" else name
    found = rf"`{word}( \w+)?`|^### {word}$"  # of a group, any of its commands
    assert re.search(found, page(KINDS[package]), re.M)


def test_python_functions():
    for name in modelmill.__all__:
        assert f"`modelmill.{name}`" in page("docs/commands.md")


def test_options_of_commands_exist():
    from modelmill.cli.main import main

    known = {"--help", "--version", "--debug"}
    for name in main.list_commands(None):
        command = main.get_command(None, name)
        within = command.list_commands(None) if isinstance(command, click.Group) else []
        for one in (command, *(command.get_command(None, other) for other in within)):
            known |= {option for parameter in one.params for option in parameter.opts}
    for path in PAGES:
        if path.parent.name != "benchmarks":
            for option in re.findall(r"`(--[a-z][a-z0-9-]*)", path.read_text(encoding="utf-8")):
                assert option in known, f"{path.name}: {option}"


def test_fields_of_the_card():
    from modelmill.tasks import schema

    def fields(node):
        for name, below in node.get("properties", {}).items():
            yield name
            yield from fields(below)

    text = page("docs/card.md")
    assert [name for name in fields(schema.CARD) if f"| `{name}` |" not in text] == []
    for choice in (*schema.LAYOUTS, *schema.COLORS, *schema.MODES):
        assert f"`{choice}`" in text
    for method in schema.METHODS:
        assert re.search(rf"`{method.partition('-')[0]}-`.*{method.partition('-')[2]}", text)


def test_fields_of_the_report():
    from modelmill.line import report

    text = page("docs/report.md")
    kinds = [
        k for k in vars(report).values() if isinstance(k, type) and dataclasses.is_dataclass(k)
    ]
    names = {field.name for kind in kinds for field in dataclasses.fields(kind)}
    names -= {"float_score", "folder"}  # written as `float`; not written
    assert [name for name in sorted(names) if f"`{name}`" not in text] == []


def test_options_of_the_recipe():
    from modelmill.line.quantize import DEFAULT

    text = page("docs/recipe.md")
    steps = [getattr(DEFAULT, field.name) for field in dataclasses.fields(DEFAULT)]
    learned = [plugins.load("modelmill.quant", name)() for name in ("adaround", "brecq", "qdrop")]
    for step in [*filter(dataclasses.is_dataclass, steps), *learned]:
        (row,) = [
            line for line in text.splitlines() if line.startswith(f"| `{type(step).__name__}`")
        ]
        for option in dataclasses.fields(step):
            value = option.default
            shown = f"{value:g}" if isinstance(value, float) else str(value)
            shown = f'"{value}"' if isinstance(value, str) else shown
            assert re.search(rf"`{option.name}` \({re.escape(shown)}", row), (
                f"{option.name} = {shown}"
            )


def test_arithmetic_is_explained():
    """Every way of computing that a target may name has its formula at the type."""
    from modelmill.numerics import Arithmetic

    explained = Arithmetic.__doc__ or ""
    for name, kind in typing.get_type_hints(Arithmetic).items():
        assert f"{name}: " in explained
        for way in typing.get_args(kind):
            assert f'"{way}"' in explained, f"{name} {way}"


def test_target_tables_are_in_step():
    assert sections(page("docs/targets.md")) == tables(), "run: python tests/docs/target_tables.py"


def test_engine_sections_are_in_step():
    found = engine_tables.held(page("docs/engines.md"))
    assert found == engine_tables.sections(), "run: python tests/docs/engine_tables.py"


def test_changelog_has_the_version():
    newest = re.search(r"^## (\S+)", page("CHANGELOG.md"), re.M)
    assert newest is not None and newest[1] == modelmill.__version__


def test_log_is_dated():
    dates = re.findall(r"^## (.*)$", page("docs/LOG.md"), re.M)
    assert dates and dates == sorted(dates, reverse=True)
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d", date) for date in dates)


def test_tree_of_the_readme():
    """One line for every part of the package, and none for what is not there."""
    tree = page("README.md").partition("## The tree")[2]
    listed = re.findall(r"^  (\w+(?:/|\.py)) ", tree, re.M)
    parts = {f"{p.parent.name}/" for p in (ROOT / "modelmill").glob("*/__init__.py")}
    assert set(listed) == parts | {"plugins.py"}


def test_benchmarks_say_how_they_are_run():
    for path in ROOT.glob("benchmarks/*.py"):
        docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
        assert f"python benchmarks/{path.name}" in docstring, path.name
