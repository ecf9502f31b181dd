"""The glossary holds every word that a report may print, and explains no column that does not exist."""

from __future__ import annotations

import inspect
import subprocess
import sys
from enum import Enum
from typing import Any

import pandas as pd
import pytest
import torch.nn.functional as F
from conftest import pair_batch
from test_golden import as_golden

import coordcheck
from coordcheck import CoordCheckError
from coordcheck.analysis.findings import Cause
from coordcheck.analysis.targets import PARAMETRIZATIONS
from coordcheck.analysis.verdicts import Verdict
from coordcheck.cli.main import main
from coordcheck.models import mlp
from coordcheck.reporting import text
from coordcheck.reporting.glossary import ALSO, FRAMES, TERMS, explain, found, listing
from coordcheck.reporting.glossary.columns import HOLDS
from coordcheck.reporting.glossary.terms import KINDS
from coordcheck.runs.words import Kind, Outcome, Quantity, Role, Status

WORDS: list[tuple[str, type[Enum]]] = [
    ("verdict", Verdict),
    ("cause", Cause),
    ("role", Role),
    ("quantity", Quantity),
    ("status", Status),
    ("outcome", Outcome),
    ("kind of layer", Kind),
]


@pytest.mark.parametrize(("kind", "words"), WORDS)
def test_every_word_of_a_report_is_explained_and_no_other(kind, words):
    explained = {term.name for term in TERMS if term.kind == kind}
    printed = {word.value for word in words}
    assert printed - explained == set()
    assert explained - printed <= {"too few widths"}  # of a slope, which is no value


def test_parametrizations_are_explained():
    assert {targets.name for targets in PARAMETRIZATIONS.values()} == {
        term.name for term in TERMS if term.kind == "parametrization"
    }


@pytest.mark.parametrize(
    "word",
    [
        *(
            "multiplier",
            "provisional",
            "own",
            "inherited",
            "@linear",
            "/sdpa",
            "alignment",
            "degree",
            "gain",
            "response",
        ),
        *("readout", "role", "m", "culprit", "by design", "VIOLATED", "UNDECIDED", "t", "fan-in", "exponent", "eps"),
    ],
)
def test_what_new_readers_asked_for_is_there(word):
    assert found(word)


def frames(report: coordcheck.Report) -> dict[str, pd.DataFrame]:
    """Every frame that the package hands out."""
    plan = coordcheck.plan(mlp("µP"), widths=(8, 16, 32))
    options: dict[str, Any] = {"lrs": [2.0**-9, 2.0**-8, 2.0**-7], "widths": (8, 16), "seeds": 1, "steps": 1}
    sweep = coordcheck.transfer_sweep(lambda w, lr: mlp(lr=lr)(w), pair_batch(), loss=F.cross_entropy, **options)
    fix = coordcheck.fix(mlp("SP"), pair_batch(), loss=F.cross_entropy, base_width=8, widths=(8, 16, 32), seeds=1)
    owners = {"": report, "plan": plan, "sweep": sweep, "fix": fix}
    return {name: getattr(owners[name.rpartition(".")[0]], name.rpartition(".")[2]) for name in FRAMES}


def test_every_column_is_described_and_none_that_does_not_exist(report):
    for name, frame in frames(report).items():
        assert [column.name for column in FRAMES[name]] == list(frame.columns), name
    assert list(report.culprits.columns) == [column.name for column in FRAMES["verdicts"]]


def kind_of(values: pd.Series) -> str:
    """What the values of a real column are, in the words of the page."""
    if pd.api.types.is_bool_dtype(values):
        return "yes or no"
    if pd.api.types.is_integer_dtype(values):
        return "integer"
    if pd.api.types.is_float_dtype(values):
        return "number"
    return "tuple" if len(values) and isinstance(values.iloc[0], tuple) else "text"


def test_columns_hold_what_the_page_says(report):
    for name, frame in frames(report).items():
        for column in FRAMES[name]:
            said = column.holds.partition(",")[0]
            assert said in HOLDS
            seen = kind_of(frame[column.name])
            # numbers that may be missing are integers where none is
            assert seen == said or (seen, said) == ("integer", "number"), f"{name}.{column.name}"


def test_what_is_mentioned_can_be_looked_up():
    for term in TERMS:
        assert term.kind in KINDS
        assert term.meaning.endswith((".", "change.", ")")), term.name
        for other in term.see:
            assert found(other), f"{term.name} -> {other}"
    for word, name in ALSO.items():
        assert found(name), word


@pytest.mark.parametrize("spelled", ["blows up", "blows-up", "BLOWS_UP", "Blows  Up", "blow up"])
def test_spellings_do_not_matter(spelled):
    assert [entry.name for entry in found(spelled)] == ["blows up"]


def test_two_words_are_one_term_or_two():
    assert explain(["blows", "up"]) == explain(["blows up"])
    assert explain(["own", "inherited"]).count("\n\n") == 1


@pytest.mark.parametrize(
    ("word", "near"), [("inheritted", "inherited"), ("multplier", "multiplier"), ("gain_targt", "gain_target")]
)
def test_an_unknown_word_suggests_the_nearest(word, near):
    with pytest.raises(
        CoordCheckError, match=rf"'{word}' is not in the glossary \(did you mean '{near}'\?\); `coordcheck"
    ):
        explain([word])
    with pytest.raises(CoordCheckError, match="'xyzzy' is not in the glossary; `coordcheck explain` lists what is"):
        explain(["xyzzy"])


def test_the_words_of_the_glossary():
    as_golden("explain", "\n\n".join([listing(), *(explain([word]) for word in ("m", "blows-up", "input", "@linear"))]))


def test_the_command_line_explains(capsys):
    assert main(["explain", "blows", "up"]) == 0
    assert capsys.readouterr().out.startswith("blows up (verdict): ")
    assert main(["explain"]) == 0
    assert "\ncauses: what is wrong" in capsys.readouterr().out
    assert main(["explain", "multplier"]) == 2
    assert "did you mean 'multiplier'?" in capsys.readouterr().err


def test_explaining_needs_no_library():
    code = (
        "import sys\n"
        "for name in ('torch', 'numpy', 'pandas', 'rich', 'matplotlib'): sys.modules[name] = None\n"
        "from coordcheck.reporting.glossary import explain, listing; explain(['gain']); listing()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_report_points_to_the_words_it_uses(report):
    (line,) = [line for line in str(report).splitlines() if line.startswith("what these words mean: ")]
    assert line == "what these words mean: coordcheck explain provisional"
    assert "what these words mean" not in str(report.select(["µP"]))


@pytest.mark.parametrize(
    "word", ["inherited", "provisional", "multiplier", "attention-scale", "forward-scale", "gradient-fan-in", "@"]
)
def test_the_words_that_a_report_points_to_are_there(word):
    assert f'"{word}": ' in inspect.getsource(text._words)
    assert found(word)
