"""Labels of saved runs: their order, which are shown, and what happens when two folders have the same one."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import power_law_records

import coordcheck
from coordcheck import CoordCheckError, Report
from coordcheck.analysis.criteria import Criteria
from coordcheck.runs.selection import selected, typed

FLAT, GROWING = {"fc": {"activation": 0.0, "change": 0.0}}, {"fc": {"activation": 0.0, "change": 1.0}}


def saved(folder: Path, *labels: str, criteria: Criteria | None = None, exponents=FLAT) -> Path:
    """A folder with a check of these labels, in this order."""
    Report([r for label in labels for r in power_law_records(exponents, label=label)], criteria).save(folder)
    return folder


def test_a_folder_keeps_the_order_of_the_check(tmp_path):
    saved(tmp_path, "before", "after", "µP", "SP")
    assert coordcheck.load(tmp_path).labels == ["before", "after", "µP", "SP"]


def test_a_later_check_in_the_same_folder_comes_after(tmp_path):
    saved(tmp_path, "z", "y")
    saved(tmp_path, "a", "y")
    assert coordcheck.load(tmp_path).labels == ["z", "y", "a"]


def test_runs_without_an_experiment_are_sorted(tmp_path):
    saved(tmp_path, "b", "a")
    (tmp_path / "experiment.json").unlink()
    assert coordcheck.load(tmp_path).labels == ["a", "b"]


def test_runs_that_are_missing_keep_their_place(tmp_path):
    saved(tmp_path, "b", "a")
    for path in (tmp_path / "runs" / "b").iterdir():
        path.unlink()
    report = coordcheck.load(tmp_path)
    assert (report.labels, len(report.missing)) == (["b", "a"], 9)


def test_labels_select_and_order(tmp_path):
    saved(tmp_path, "before", "after", "\u00b5P")
    report = coordcheck.load(tmp_path, labels=["\u03bcP", "before"])
    assert report.labels == ["\u00b5P", "before"]
    assert report.select(["before"]).labels == ["before"]
    assert set(report.select(["before"]).verdicts["label"]) == {"before"}


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["befor"], r"there is no label 'befor' \(did you mean 'before'\?\); known are 'before', 'after'\."),
        ([3], "there is no label 3; known are"),
        (["before", "before"], "labels must be one or more of 'before', 'after', each once"),
        ([], "labels must be one or more"),
    ],
)
def test_labels_that_are_not_there_are_refused(tmp_path, labels, message):
    saved(tmp_path, "before", "after")
    with pytest.raises(CoordCheckError, match=message):
        coordcheck.load(tmp_path, labels=labels)


def test_one_label_may_be_a_text():
    assert selected(power_law_records(FLAT, label="SP"), "SP")


def test_several_folders_are_one_report_in_their_order(tmp_path):
    second, first = saved(tmp_path / "x", "mine"), saved(tmp_path / "a", "yours", exponents=GROWING)
    report = coordcheck.load([first, second])
    assert {label: verdict.value for label, verdict in report.status.items()} == {"yours": "blows up", "mine": "ok"}
    assert coordcheck.load([second, first], labels=["yours", "mine"]).labels == ["yours", "mine"]


def test_labels_of_two_folders_get_their_names(tmp_path):
    before, after = saved(tmp_path / "before", "SP", "only", exponents=GROWING), saved(tmp_path / "after", "SP")
    report = coordcheck.load([before, after])
    assert report.labels == ["SP (before)", "only", "SP (after)"]
    assert [report.status[name].value for name in ("SP (before)", "SP (after)")] == ["blows up", "ok"]


def test_folders_of_one_name_are_told_apart_by_their_paths(tmp_path):
    folders = [saved(tmp_path / name / "runs", "SP") for name in ("before", "after")]
    assert coordcheck.load(folders).labels == [f"SP ({folder})" for folder in folders]


def test_a_label_that_looks_like_another_is_refused(tmp_path):
    folders = [saved(tmp_path / "a", "SP"), saved(tmp_path / "b", "SP", "SP (a)")]
    with pytest.raises(CoordCheckError, match=r"two folders have runs of 'SP \(a\)'\. Load them one by one"):
        coordcheck.load(folders)


def test_the_two_mu_signs_are_one_label(tmp_path):
    folders = [saved(tmp_path / "a", "\u00b5P"), saved(tmp_path / "b", "\u03bcP")]
    assert coordcheck.load(folders).labels == ["\u00b5P (a)", "\u03bcP (b)"]


def test_folders_that_were_judged_differently_are_refused_unless_told_how(tmp_path):
    folders = [
        saved(tmp_path / "a", "A", criteria=Criteria(tolerance=0.2)),
        saved(tmp_path / "b", "B", criteria=Criteria(expect="sp")),
    ]
    with pytest.raises(
        CoordCheckError, match=r"not judged alike: expect was None, is sp; tolerance was 0\.2, is 0\.25"
    ):
        coordcheck.load(folders)
    with pytest.raises(CoordCheckError, match=r"tolerance was 0\.2, is 0\.25\. Pass tolerance=\."):
        coordcheck.load(folders, expect="sp")
    report = coordcheck.load(folders, expect="sp", tolerance=0.3)
    assert (report.criteria.expect, report.criteria.tolerance) == ("sp", 0.3)


def test_what_nobody_judged_joins_any_criteria(tmp_path):
    folders = [saved(tmp_path / "a", "A"), saved(tmp_path / "b", "B", criteria=Criteria(tolerance=0.2))]
    (folders[0] / "experiment.json").unlink()
    assert coordcheck.load(folders).criteria.tolerance == 0.2


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        ([], "give a folder of run files"),
        (["a", "./a"], r"the folder a is given twice"),
        (7, "give the path of a folder of run files, or several, got 7"),
        (["a", "c"], "there is no folder c"),
    ],
)
def test_folders_that_are_none_are_refused(tmp_path, monkeypatch, folders, message):
    monkeypatch.chdir(tmp_path)
    saved(Path("a"), "A")
    with pytest.raises(CoordCheckError, match=message):
        coordcheck.load(folders)


def test_labels_are_typed_as_words_or_with_commas():
    known = ["SP", "µP", "a, b", "my run"]
    assert typed(["my run", "SP,µP", "a, b", "none"], known) == ["my run", "SP", "µP", "a, b", "none"]


def test_parts_of_a_check_add_to_its_plan_and_once_each(tmp_path):
    whole = power_law_records(FLAT)
    for records in (whole[:1], whole[:4], whole[3:]):
        Report(records).save(tmp_path)
    report = coordcheck.load(tmp_path)
    assert (len(report.records), report.exit_code) == (9, 0)
    next((tmp_path / "runs").rglob("64-0.json")).unlink()
    assert [record.key.width for record in coordcheck.load(tmp_path).missing] == [64]
