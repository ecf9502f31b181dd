"""Every row of gallery/guide/faults.md has a test that names it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "gallery" / "guide" / "faults.md"


def rows(page: str) -> list[int]:
    """The numbers of the rows of the table."""
    return [int(number) for number in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)]


def marked(source: str) -> set[int]:
    """The rows that a source's tests name: `@pytest.mark.fault(17)`, on a test or among its parameters."""
    return {
        argument.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "fault"
        for argument in node.args
        if isinstance(argument, ast.Constant)
    }


def named() -> set[int]:
    return set().union(*(marked(path.read_text(encoding="utf-8")) for path in TESTS.glob("test_*.py")))


def test_every_row_of_the_page_has_a_test_that_names_it():
    assert sorted(set(rows(PAGE.read_text(encoding="utf-8"))) - named()) == []


def test_no_test_names_a_row_that_is_not_on_the_page():
    listed = rows(PAGE.read_text(encoding="utf-8"))
    assert listed == list(range(1, 66))
    assert named() <= set(listed)


def test_a_row_without_a_test_would_be_found():
    assert rows("| row | what |\n|---|---|\n| 1 | a |\n| 2 | b |\n") == [1, 2]
    assert marked("@pytest.mark.fault(1)\ndef test(): ...\n# pytest.mark.fault(2)\n'pytest.mark.fault(2)'\n") == {1}
    assert marked("x = [pytest.param(1, marks=pytest.mark.fault(3))]") == {3}
