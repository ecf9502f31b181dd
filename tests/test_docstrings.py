"""Each argument is documented once, and is told in full wherever `help` is asked for it."""

from __future__ import annotations

import inspect
import re
from importlib import import_module

import pytest
from zoo import library

import coordcheck
from coordcheck.common.docstrings import as_for

VERBS = [
    name
    for name in coordcheck.__all__
    if inspect.isfunction(verb := getattr(coordcheck, name)) and inspect.getfullargspec(verb).kwonlyargs
]


def documented(function: object) -> dict[str, str]:
    """The first line of each entry under "Args:"."""
    args = (inspect.getdoc(function) or "").partition("Args:\n")[2].partition("\n\n")[0]
    return dict(re.findall(r"^    (\w+): (.+)", args, flags=re.MULTILINE))


@pytest.mark.parametrize("name", VERBS)
def test_a_verb_documents_every_argument_itself(name):
    verb = getattr(coordcheck, name)
    told = documented(verb)
    assert list(told) == list(inspect.signature(verb).parameters)
    assert [text for text in told.values() if text.startswith("as for")] == []


@pytest.mark.parametrize("framework", ["lightning", "transformers"])
def test_a_callback_documents_every_argument_itself(framework):
    try:
        library(framework)
    except ImportError:
        pytest.skip(f"{framework} is not installed")
    callback = import_module(f"coordcheck.integrations.{framework}").CoordCheckCallback
    told = documented(callback)
    assert list(told) == list(inspect.signature(callback.__init__).parameters)[1:]
    assert [text for text in told.values() if text.startswith("as for")] == []


def test_what_a_verb_does_not_document_is_seen():
    def verb(a, b):
        """Do it.

        Args:
            a: as for `check`.
        """

    assert documented(verb) == {"a": "as for `check`."}


def test_an_argument_that_is_documented_nowhere_is_an_error():
    with pytest.raises(KeyError, match="colour"):

        @as_for(coordcheck.check)
        def verb(colour):
            """Do it.

            Args:
                colour: as for `check`.
            """


def test_a_reference_is_completed_and_what_follows_it_stays():
    @as_for(coordcheck.check)
    def verb(batch, jobs):
        """Do it.

        Args:
            batch: as for `check`; it is small.
            jobs: as for `check`.
        """

    text = inspect.getdoc(verb)
    assert documented(verb)["batch"].startswith("one fixed batch")
    assert "that gives either; it is small.\n    jobs: how many runs side by side" in text
    assert documented(verb)["jobs"] == documented(coordcheck.check)["jobs"]


@pytest.mark.parametrize("name", [*VERBS, "Recorder"])
def test_at_most_three_arguments_go_by_place(name):
    kinds = [parameter.kind for parameter in inspect.signature(getattr(coordcheck, name)).parameters.values()]
    assert kinds.count(inspect.Parameter.POSITIONAL_OR_KEYWORD) <= 3
