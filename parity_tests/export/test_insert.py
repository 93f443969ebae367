"""Entries in tables of somebody else's file."""

from __future__ import annotations

import ast
import difflib

import pytest

from porter.export import ExportError
from porter.export.insert import add_import, add_lines, keys_of, remove_entry, set_entry

TABLE = """# head
A = {
    # of one
    "one": 1,  # one
    # of two
    "two": (
        2,
    ),
    **other,
}
A["three"] = A["one"]


def f():
    pass
"""


def changed(before: str, after: str) -> list[str]:
    lines = difflib.ndiff(before.splitlines(), after.splitlines())
    return [line for line in lines if line.startswith(("+", "-"))]


def test_an_entry_comes_after_its_kin_and_touches_nothing_else():
    found = set_entry(TABLE, "A", "new", "(\n        3,\n    )", ["one"])
    assert changed(TABLE, found) == ['+     "new": (', "+         3,", "+     ),"]
    assert found.index("# one") < found.index('"new"') < found.index("# of two")
    assert set_entry(found, "A", "new", "(\n        3,\n    )", ["one"]) == found
    assert remove_entry(found, "A", "new") == TABLE


def test_an_entry_without_kin_comes_last():
    found = set_entry(TABLE, "A", "new", "3")
    assert changed(TABLE, found) == ['+     "new": 3,']
    assert keys_of(found, "A") == ["one", "two", "new"]
    assert remove_entry(found, "A", "new") == TABLE


def test_an_empty_table_takes_an_entry():
    found = set_entry("A = {\n}\n", "A", "new", "3")
    assert ast.literal_eval(found.removeprefix("A = ")) == {"new": 3}


def test_an_entry_is_exchanged_where_it_stands():
    assert changed(TABLE, set_entry(TABLE, "A", "one", "5", ["two"])) == [
        '-     "one": 1,  # one',
        '+     "one": 5,  # one',
    ]


def test_statements_come_after_the_last_that_changes_the_table():
    found = add_lines(TABLE, 'A["four"] = 4\n', "A")
    assert changed(TABLE, found) == ['+ A["four"] = 4']
    assert found.index("three") < found.index("four") < found.index("def f")


@pytest.mark.parametrize(("module", "line"), [("aa", 2), ("cc", 3), ("zz", 4)])
def test_imports_stay_sorted(module, line):
    text = "import os\n\nfrom p.bb import B\nfrom p.dd import D\n\nx = 1\n"
    found = add_import(text, f"from p.{module} import X\n")
    assert changed(text, found) == [f"+ from p.{module} import X"]
    assert found.splitlines()[line] == f"from p.{module} import X"
    assert add_import(found, f"from p.{module} import X\n") == found


def test_a_table_that_is_not_there_is_an_error():
    with pytest.raises(ExportError, match="no table B"):
        set_entry(TABLE, "B", "x", "1")
    assert remove_entry(TABLE, "B", "x") == TABLE
