"""Folders and files that nobody meant to write: each is told, at little cost, and none crashes what reads it."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.fuzz import CRAFTED, NASTY, cost_of, outcomes, sealed
from conftest import power_law_records
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_records import records

import coordcheck
from coordcheck import CoordCheckError, Report
from coordcheck.analysis.criteria import Criteria
from coordcheck.common.errors import RunFileError
from coordcheck.pytest_plugin.baselines.files import read_baseline
from coordcheck.runs.documents import LIMITS
from coordcheck.runs.files import RunFolder, write_document
from coordcheck.runs.records import RunKey
from coordcheck.runs.schemas import CRITERIA, EXPERIMENT, read_experiment

MEGABYTE = 2**20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of three runs and their experiment."""
    report = Report(power_law_records({"fc": {"activation": 0.0, "change": 0.0}}, label="SP", seeds=1))
    report.save(tmp_path / "runs of today")
    return tmp_path / "runs of today"


def assert_told(folder: Path, match: str, code: int = 4) -> None:
    with pytest.raises(CoordCheckError, match=match) as told:
        coordcheck.load(folder)
    assert told.value.exit_code == code


# ---- mutants


@pytest.mark.fault(60)
def test_mutants_are_refused_or_work_everywhere():
    found, crashes = outcomes(120, 60, first=1_000_000, drawn=60)
    assert crashes == {}
    assert (found["crashes"], found["silent changes"]) == (0, 0)
    assert found["accepted"] > 10
    assert found["refused"] > 50


@pytest.mark.parametrize("number", [46660, 67038], ids=["no rows of any parameter", "a rate times a decay overflows"])
def test_what_has_crashed_once_works(number: int):
    found, crashes = outcomes(1, 0, first=number)
    assert (found["accepted"], crashes) == (1, {})


def test_a_crash_would_be_seen(monkeypatch: pytest.MonkeyPatch):
    def crash(report: Report) -> str:
        raise KeyError("lost")

    monkeypatch.setattr(Report, "to_json", crash)
    found, crashes = outcomes(40, 0, first=1_000_000, drawn=1000)
    assert found["crashes"] > 0
    assert any(crash.startswith("KeyError") for crash in crashes)


def test_a_silent_change_would_be_seen(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("coordcheck.runs.documents._checked_bytes", lambda path, limit: path.read_bytes())
    found, _ = outcomes(0, 8, first=1_000_000, drawn=1000)
    assert found["silent changes"] > 0


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(records(), min_size=3, max_size=3), st.sampled_from([1, 2**53 // 8]))
def test_any_runs_that_are_read_work_everywhere(made: list[Any], smallest: int):
    """Runs of any content at three widths, which no check would leave beside each other."""
    for place, record in enumerate(made):
        record.key = RunKey("SP", smallest * 2**place, 0)
        record.settings = {}
    report = Report(made)
    for text in (str(report), report.to_json(), report._repr_html_()):
        text.encode()
    _ = report.exit_code, report.notes


# ---- experiments

WRONG = [
    ({"criteria": "module"}, "criteria: expected a mapping"),
    ({"criteria": None}, "criteria: expected a mapping"),
    ({"criteria": {"tolerance": "NaN"}}, "criteria.tolerance: expected a finite number, got 'NaN'"),
    ({"criteria": {"tolerance": 0}}, "criteria.tolerance: expected a number above 0, got 0"),
    ({"criteria": {"tolerance": True}}, "criteria.tolerance: expected a finite number, got True"),
    ({"criteria": {"axis": 3}}, "criteria.axis: expected a text, got 3"),
    ({"criteria": {"axis": None}}, "criteria.axis: expected a text, got None"),
    ({"criteria": {"expect": "module"}}, "criteria.expect: expect must be one of mup"),
    ({"criteria": {"expect": {"*": "1"}}}, r"criteria.expect: expect\['\*'\] must be a finite number, got '1'"),
    ({"criteria": {"roles": {"*": "module"}}}, "criteria.roles: roles must map globs"),
    ({"criteria": {"fold": {"blocks": "all"}}}, "criteria.fold: fold must map paths"),
    ({"criteria": {"strictness": 1}}, "criteria: has 'strictness', which this version does not know"),
    ({"labels": []}, "labels: expected a mapping"),
    ({"labels": {"SP": None}}, "labels.SP: expected a mapping"),
    ({"labels": {"SP": {"steps": 2}}}, "labels.SP.steps: expected a text, got 2"),
    ({"planned": {"other": [[64, 0]]}}, "planned: the label 'other' is not among the labels"),
    ({"labels": {"SP": {}}, "planned": {"SP": [[64]]}}, r"planned.SP\[0\]: expected a list of 2 values"),
    ({"labels": {"SP": {}}, "planned": {"SP": [[-64, 0]]}}, r"planned.SP\[0\]\[0\]: expected an integer from 1"),
    ({"labels": {"SP": {}}, "planned": {"SP": [[64, "0"]]}}, r"planned.SP\[0\]\[1\]: expected an integer from 0"),
    ({"labels": {"SP": {}}, "planned": {"SP": None}}, "planned.SP: expected a list, got None"),
    ({"versions": {"torch": 2}}, "versions.torch: expected a text, got 2"),
    ({"machine": []}, "machine: expected a mapping"),
    ({"future": 1}, "has 'future', which this version does not know"),
]


@pytest.mark.parametrize(("changes", "why"), WRONG, ids=lambda value: str(value)[:50])
def test_an_experiment_that_no_check_writes_is_refused(folder: Path, changes: dict[str, Any], why: str):
    write_document(folder / "experiment.json", "experiment", changes)
    assert_told(folder, rf"experiment\.json is not a coordcheck experiment file: {why}")


@pytest.mark.parametrize("left_out", [*EXPERIMENT, "everything"])
def test_an_experiment_may_lack_what_later_versions_have_added(folder: Path, left_out: str):
    content = RunFolder(folder).experiment()
    kept = {name: value for name, value in content.items() if left_out not in (name, "everything")}
    if left_out == "labels":  # planned runs are those of a label
        del kept["planned"]
    write_document(folder / "experiment.json", "experiment", kept)
    assert len(coordcheck.load(folder).records) == 3


def test_every_criterion_is_read_as_it_was_written():
    criteria = Criteria({"*.router": 0.5}, 0.2, "depth", {"head.*": "readout"}, {"blocks": "last"})
    assert list(criteria.to_json()) == list(CRITERIA)
    read = read_experiment(iter([("criteria", json.loads(json.dumps(criteria.to_json())))]))["criteria"]
    assert Criteria(**read) == criteria


@pytest.mark.parametrize("name", EXPERIMENT)
def test_any_value_in_an_experiment_is_refused_or_works(folder: Path, name: str):
    document = json.loads((folder / "experiment.json").read_text())
    document.pop("sha256")
    worked = 0
    for value in NASTY:
        (folder / "experiment.json").write_bytes(sealed(document | {"content": {**document["content"], name: value}}))
        with contextlib.suppress(CoordCheckError):
            worked += "SP" in str(coordcheck.load(folder))
    assert worked == {"labels": 0}.get(name, 1)  # that is: an empty mapping


# ---- folders


def put(path: Path, make: Callable[[Path], object]) -> Path:
    path.unlink(missing_ok=True)
    make(path)
    return path


@pytest.mark.fault(16)
@pytest.mark.parametrize(
    ("make", "why"),
    [
        (os.mkfifo, "is not a regular file"),
        (os.mkdir, "is not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "is not a regular file"),
        (lambda path: path.symlink_to("/dev/null"), "is not a regular file"),
        (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
        (lambda path: path.symlink_to("nowhere"), "No such file"),
        (lambda path: path.touch(), "is not a coordcheck file"),
        (
            lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), 2**40),
            "has 1099511627776 bytes, more than",
        ),
        (lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), 2**20), "is not a coordcheck file"),
    ],
    ids=["fifo", "folder", "zero", "null", "loop", "dangling", "empty", "huge sparse", "sparse"],
)
@pytest.mark.parametrize("name", ["runs/SP/64-0.json", "experiment.json"])
def test_what_is_no_file_of_ours_is_told(folder: Path, name: str, make: Any, why: str):
    put(folder / name, make)
    assert_told(folder, rf"{Path(name).name} .*{why}")


@pytest.mark.parametrize("place", ["runs", "runs/SP"])
def test_a_folder_that_is_a_link_to_itself_is_told(folder: Path, place: str):
    (folder / place).rename(folder / "away")
    (folder / place).symlink_to(folder / place)
    assert_told(folder, "cannot list .*Too many levels of symbolic links")
    assert_told(folder / place, "cannot read .*Too many levels of symbolic links")


def test_a_link_to_nowhere_is_told(folder: Path):
    (folder / "runs" / "other").symlink_to("nowhere")
    assert_told(folder, "cannot list .*other: No such file")


@pytest.mark.parametrize("name", ["open", "scandir"])
def test_what_may_not_be_read_is_told(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch):
    def refuse(path: Any, *arguments: Any) -> Any:
        raise PermissionError(13, os.strerror(13), str(path))

    monkeypatch.setattr(os, name, refuse)
    assert_told(folder, "(cannot list .*|cannot be read): Permission denied")


def test_a_file_that_is_written_to_while_it_is_read_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch):
    path = folder / "runs" / "SP" / "64-0.json"
    whole = path.read_bytes()
    fstat, calls = os.fstat, []

    def grown(descriptor: int) -> os.stat_result:
        if calls:
            path.write_bytes(whole + b" " * len(calls))
        calls.append(descriptor)
        return fstat(descriptor)

    monkeypatch.setattr("coordcheck.runs.documents.os.fstat", grown)
    assert_told(folder, "was written to while it was read")


def test_other_files_beside_the_runs_are_left_alone(folder: Path):
    for name in (
        "notes.txt",
        "runs/README",
        "runs/SP/64-0.json.bak",
        "runs/SP/._64-0.json",
        "runs/.hidden",
        "runs/SP/x",
    ):
        (folder / name).write_text("not a run")
    (folder / "runs" / "empty").mkdir()
    os.mkfifo(folder / "runs" / "SP" / "pipe")
    assert len(coordcheck.load(folder).records) == 3


def test_a_folder_with_a_great_many_files_is_refused_before_they_are_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("coordcheck.runs.files.FILES", 2)
    monkeypatch.setattr("coordcheck.runs.files._read_run", lambda path: pytest.fail("it was read"))
    assert_told(folder, r"holds 3 run files, more than can be judged together \(2\)", code=2)


def test_a_folder_of_many_names_is_listed_quickly(folder: Path):
    for number in range(5_000):
        (folder / "runs" / "SP" / f"note {number}.txt").touch()
    assert len(coordcheck.load(folder).records) == 3


@pytest.mark.parametrize("path", ["a\0b", "", "x" * 5000])
def test_a_path_that_is_none_is_told(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CoordCheckError):
        coordcheck.load(path)


# ---- cost


@pytest.mark.fault(60)
@pytest.mark.parametrize("name", ["lists in a list", "numbers", "deep", "too large"])
def test_a_crafted_file_is_refused_at_little_cost(name: str):
    cost = cost_of(CRAFTED[name](24 * MEGABYTE))
    assert cost.why
    assert cost.megabytes < 100  # 64 MiB may take 200
    assert cost.seconds < 5  # some tenths on an idle machine


def test_a_costly_file_would_be_seen(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("coordcheck.runs.documents.Pieces.items", lambda pieces: iter(pieces.value()))
    monkeypatch.setattr("coordcheck.runs.documents.PIECE", 2**30)
    monkeypatch.setattr("coordcheck.runs.documents.DENSITY", 1)
    # 2 MB as it is read now; less of it shows where the process had memory to spare
    assert cost_of(CRAFTED["many lists in a list"](4 * MEGABYTE)).megabytes > 20


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_baseline_is_not_waited_for(tmp_path: Path, make: Callable[[Path], object]):
    make(tmp_path / "gpt.json")
    with pytest.raises(RunFileError, match="is not a regular file"):
        read_baseline(tmp_path / "gpt.json")


@pytest.mark.parametrize(("width", "seed"), [(2**53 + 1, 0), (64, 2**63)])
def test_a_run_of_numbers_that_could_not_be_read_again_is_refused(width: int, seed: int):
    model = torch.nn.Linear(2, 2)
    with pytest.raises(CoordCheckError, match="must be an integer from"):
        coordcheck.Recorder(model, torch.optim.SGD(model.parameters(), lr=0.1), width=width, seed=seed)
    with pytest.raises(CoordCheckError, match=r"widths must be|seeds must be"):
        coordcheck.check(lambda n: None, torch.ones(2), widths=(width, 2 * width, 4 * width), seeds=(seed,))


def test_a_run_that_could_not_be_read_again_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(LIMITS, "run", 3000)
    record = power_law_records({f"fc{n}": {"activation": 0.0} for n in range(50)}, seeds=1)[0]
    with pytest.raises(CoordCheckError, match=r"bytes are more than .*Record fewer steps or layers"):
        RunFolder(tmp_path).save(record)
