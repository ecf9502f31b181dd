"""What a person reads, word for word: the table, the failing assertion, and every class of error.

UPDATE_GOLDEN=1 python -m pytest tests/test_golden.py    writes the files anew; read what differs before you commit it
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch.nn.functional as F
from conftest import pair_batch, power_law_records

import coordcheck
from coordcheck import CoordCheckError, IncompleteCheck, NotWidthInvariant, Report, RunFileError, SweepInterrupted
from coordcheck.cli.main import main
from coordcheck.models import mlp
from coordcheck.runs.words import Outcome

GOLDEN = Path(__file__).parent / "golden"
FLAT = {"activation": 0.0, "change": 0.0}


def as_golden(name: str, text: str) -> None:
    """Hold a text against the file of this name."""
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text + "\n", encoding="utf-8")
    assert text + "\n" == path.read_text(encoding="utf-8")


def without_last_digits(text: str) -> str:
    """Numbers that torch computed may differ in their last digits between machines: 0.97 -> #.##."""
    return re.sub(r"(?<=[+-])\d\.\d+|(?<=± )\d\.\d+|(?<=×)\d[\d.]*", lambda found: re.sub(r"\d", "#", found[0]), text)


def synthetic(**layers: float) -> Report:
    """A check whose layers' changes grow with exactly these exponents."""
    return Report(power_law_records({name: {"activation": 0.0, "change": value} for name, value in layers.items()}))


def test_the_table_of_a_real_check(report):
    as_golden("report", without_last_digits(str(report)))


def test_the_failing_assertion():
    with pytest.raises(NotWidthInvariant) as failure:
        coordcheck.assert_width_invariant(
            mlp("SP", lr=3e-3), pair_batch(), loss=F.cross_entropy, widths=(64, 128, 256), seeds=2
        )
    assert isinstance(failure.value, AssertionError)
    as_golden("not_width_invariant", without_last_digits(str(failure.value)))


def test_the_table_on_the_command_line(tmp_path, capsys):
    symptoms = synthetic(embedding=0.0, attention=0.5, mlp=1.0, readout=-1.0)
    symptoms.save(tmp_path)
    assert main(["show", str(tmp_path)]) == 1
    as_golden("show", capsys.readouterr().out.rstrip())


def test_a_control_that_passes():
    too_weak = mlp("SP", lr=1e-3)
    with pytest.raises(IncompleteCheck) as error:
        coordcheck.assert_width_invariant(
            mlp("µP", lr=3e-3),
            pair_batch(),
            loss=F.cross_entropy,
            widths=(64, 128, 256),
            control=too_weak,
            expect={"*": 5.0},
            tolerance=99.0,
            probe=None,
        )
    as_golden("control", str(error.value))


def test_incomplete():
    records = power_law_records({"hidden": FLAT, "readout": FLAT})
    for record in records[-3:]:
        record.outcome, record.reason = Outcome.FAILED, "Traceback (most recent call last):\nValueError: no such width"
    with pytest.raises(IncompleteCheck) as error:
        Report(records).raise_for_status()
    as_golden("incomplete", str(error.value))


def test_undecided():
    report = Report(
        power_law_records(
            {"hidden": {"activation": 0.0, "change": 0.25}}, noise=lambda w, s, n: 0.3 * (s - 1) * (w == 64)
        )
    )
    with pytest.raises(IncompleteCheck) as error:
        report.raise_for_status()
    as_golden("undecided", str(error.value))


def test_too_few_widths():
    with pytest.raises(CoordCheckError) as error:
        Report(power_law_records({"hidden": FLAT}, widths=(64, 128))).raise_for_status()
    as_golden("too_few_widths", str(error.value))


def refused(**changed: Any) -> str:
    """The message with which a check of the reference MLP refuses one changed argument."""
    given = {"build": mlp("µP"), "batch": pair_batch(), "loss": F.cross_entropy, "widths": (64, 128, 256)}
    with pytest.raises(CoordCheckError) as error:
        coordcheck.check(**(given | changed))
    return str(error.value)


def test_bad_input():
    messages = {
        "a width that is none": refused(widths=(64, "wide")),
        "a loss that is missing": refused(loss=None),
        "a batch that is none": refused(batch="text"),
        "an unknown parametrization": refused(expect="sq"),
        "a factory that ignores the width": refused(build=lambda width: mlp("µP")(64)),
        "a factory of nothing": refused(build=lambda width: None),
    }
    as_golden("bad_input", "\n".join(f"{what}:\n    {message}" for what, message in messages.items()))


def test_a_damaged_file(tmp_path, capsys):
    synthetic(hidden=0.0).save(tmp_path)
    damaged = next(tmp_path.rglob("64-0.json"))
    damaged.write_bytes(damaged.read_bytes()[:-40])
    with pytest.raises(RunFileError) as error:
        coordcheck.load(tmp_path)
    as_golden("damaged", str(error.value).replace(str(tmp_path), "RUNS"))


def test_interrupted(tmp_path, monkeypatch):
    built = []

    def build(width: int) -> Any:
        built.append(width)
        if len(built) > 4:
            raise KeyboardInterrupt
        return mlp("µP")(width)

    with pytest.raises(SweepInterrupted) as stop:
        coordcheck.check(build, pair_batch(), loss=F.cross_entropy, widths=(64, 128, 256), save_to=tmp_path, probe=None)
    as_golden("interrupted", str(stop.value).replace(str(tmp_path), "RUNS"))


def test_the_command_lines_words(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("golden_train.py").write_text("from coordcheck.models import mlp\nbuild = mlp('µP')\n", encoding="utf-8")
    told = []
    for arguments in (
        ["run", "golden_train.py:biuld"],
        ["run", "golden_train.py:build"],
        ["run", "golden_trian.py:build"],
        ["run", "golden_train.py:build", "--widths", "64", "x"],
        ["run", "golden_train.py:build", "--resume", "nowhere"],
        ["run", "golden_train.py:build", "--figure", "check.jpg"],
        ["run", "golden_train.py:build", "--role", "readout"],
        ["show", "nowhere"],
    ):
        assert main(arguments) == 2
        told.append(f"$ coordcheck {' '.join(arguments)}\n{capsys.readouterr().err}")
    sys.modules.pop("golden_train")
    as_golden("command_line", "\n".join(told).rstrip())


def test_a_fix():
    found = coordcheck.fix(
        mlp("SP", lr=3e-3),
        pair_batch(),
        loss=F.cross_entropy,
        base_width=32,
        widths=(32, 64, 128),
        weight_decay="constant",
    )
    as_golden("fix", str(found))
