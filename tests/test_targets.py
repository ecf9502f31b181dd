"""Names on the command line -> objects: what is found, and what is told when it is not."""

from __future__ import annotations

import sys
from functools import partial

import pytest

from coordcheck import CoordCheckError
from coordcheck.cli.targets import factories, keyword_values, resolve, source_line
from coordcheck.runs.arguments import suggestion

USER_FILE = """
class Family:
    def build(self, width, depth=2):
        return width, depth

family = Family()

def build(width, depth=2, *, tied=False):
    return width, depth, tied

def build_any(width, **options):
    return options
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The user's file in the current folder; its module is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "user_targets.py").write_text(USER_FILE, encoding="utf-8")
    yield "user_targets.py"
    sys.modules.pop("user_targets", None)


def test_labels_are_given_or_the_functions_name(place):
    found = factories([f"{place}:build", f"µP={place}:build_any"], {})
    assert list(found) == ["build", "µP"]
    assert found["build"](64) == (64, 2, False)


def test_keywords_go_to_every_factory(place):
    found = factories([f"a={place}:build", f"b={place}:build_any"], keyword_values(["depth=3", "tied=True"]))
    assert found["a"](64) == (64, 3, True)
    assert found["b"](64) == {"depth": 3, "tied": True}


@pytest.mark.parametrize(
    ("targets", "pairs", "message"),
    [
        (["{place}:biuld"], [], r"has no 'biuld' \(did you mean 'build'\?\)"),
        (["user_target.py:build"], [], r"there is no file 'user_target.py' \(did you mean 'user_targets.py'\?\)"),
        (["{place}:build"], ["detph=3"], r"takes no 'detph' \(did you mean 'depth'\?\); it takes width, depth, tied"),
        (["{place}:build"], ["depth"], "must be KEY=VALUE"),
        (["{place}:build"], ["2=3"], "must be KEY=VALUE"),
        (["{place}:build", "{place}:build"], [], "two factories are labelled 'build'"),
        (["build"], [], "must be MODULE:NAME"),
        (["no_such_package.train:build"], [], "cannot import 'no_such_package.train'"),
    ],
)
def test_what_cannot_be_found_is_told_with_the_nearest_name(place, targets, pairs, message):
    with pytest.raises(CoordCheckError, match=message):
        factories([target.format(place=place) for target in targets], keyword_values(pairs))


def test_names_inside_of_objects_are_found(place):
    assert resolve(f"{place}:family.build")(8) == (8, 2)


def test_texts_are_texts_and_literals_are_values():
    assert keyword_values(["a=1e-3", "b=x=y", "c=[1, 2]", "d=None", "e=", "f='7'"]) == {
        "a": 1e-3,
        "b": "x=y",
        "c": [1, 2],
        "d": None,
        "e": "",
        "f": "7",
    }


def test_a_values_text_is_not_run():
    assert keyword_values(["a=__import__('os').getcwd()"]) == {"a": "__import__('os').getcwd()"}


def test_the_line_of_a_factory(place):
    assert source_line(resolve(f"{place}:build")) == (place, 8)
    assert source_line(partial(resolve(f"{place}:build"), depth=3)) == (place, 8)
    assert source_line(object()) is None
    assert source_line(print) is None


def test_no_suggestion_where_nothing_is_near():
    assert suggestion("zzz", ["build", "batch"]) == ""
