"""Numbers and tables as a person reads them."""

import pytest

from modelmill.cli import tables


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "0.977 KiB"), (403_387, "394 KiB"), (1 << 24, "16 MiB")],
)
def test_sizes(count, text):
    assert tables.size(count) == text


def test_quantities():
    assert tables.quantity(1234567) == "1,234,567" and tables.quantity(None) == "?"


def test_columns_of_numbers_stand_to_the_right(capsys):
    tables.print_table(("name", "n", "mixed"), [("a", "1", "x"), ("long name", "1,000", "22")])
    lines = capsys.readouterr().out.splitlines()
    short = next(line for line in lines if line.split() == ["a", "1", "x"])
    long = next(line for line in lines if "long name" in line)
    assert short.index("1") == long.index("1,000") + 4  # ends where the longer one ends
    assert short.index("x") == long.index("22")  # text begins where text begins


def test_square_brackets_are_no_markup(capsys):
    tables.print_table(("[bold]", "b"), [("[red]text", "1")])
    assert "[red]text" in capsys.readouterr().out


def test_an_empty_table_has_its_head(capsys):
    tables.print_table(("a", "b"), [])
    assert "a" in capsys.readouterr().out
