"""Files that version 0.1 wrote load, and are judged the same, in every later version.

`data/written_by_0_1` holds a check of the reference MLP (SP and µP, three widths, two seeds, two steps, with the
diagnosis) as run files, as a baseline and, for SP alone, as a report in JSON; `judged.json` is what that version said.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import coordcheck
from coordcheck import Report
from coordcheck.pytest_plugin.baselines import compare
from coordcheck.pytest_plugin.baselines.files import baseline_text, read_baseline
from coordcheck.runs.files import RunFolder

WRITTEN = Path(__file__).parent / "data" / "written_by_0_1"
SCHEMA = json.loads((Path(coordcheck.__file__).parent / "reporting" / "report.schema.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def loaded() -> Report:
    return coordcheck.load(WRITTEN / "folder")


def number(value: float, digits: int) -> float | None:
    return None if value != value else round(value, digits)


def judged(report: Report) -> dict[str, Any]:
    """What a report says, without the words of its notes and explanations: those may be improved."""
    layers = {
        label: {row.layer: [row.verdict, number(row.slope, 6)] for row in rows.itertuples()}
        for label, rows in report.layers.groupby("label", sort=False)
    }
    parameters = {
        label: {
            row.layer: [
                *(row.verdict, row.role, bool(row.culprit), row.cause if isinstance(row.cause, str) else None),
                *(number(row.exponent, 6), number(row.gain, 6), number(row.response, 6)),
            ]
            for row in rows.itertuples()
        }
        for label, rows in report.parameters.groupby("label", sort=False)
    }
    return {
        "status": {label: verdict.value for label, verdict in report.status.items()},
        "exit_code": report.exit_code,
        "parametrizations": report.parametrizations,
        "layers": layers,
        "parameters": parameters,
        "labels": report.labels,
        "widths": report.widths,
        "runs": len(report.records),
    }


def differing(one: Any, other: Any) -> bool:
    """Whether two values differ, numbers by more than their last digits, which are those of a BLAS."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() != other.keys() or any(differing(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) != len(other) or any(map(differing, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) > 1e-5
    return bool(one != other)


def test_its_run_files_are_judged_as_it_did(loaded: Report):
    golden = json.loads((WRITTEN / "judged.json").read_text(encoding="utf-8"))
    found = judged(loaded)
    assert [key for key in golden if differing(golden[key], found[key])] == []


def test_another_verdict_would_be_seen(loaded: Report):
    golden = json.loads((WRITTEN / "judged.json").read_text(encoding="utf-8"))
    golden["layers"]["SP"]["hidden.1"][1] += 1e-3
    golden["parameters"]["SP"]["readout.weight"][3] = "lr"
    found = judged(loaded)
    assert [key for key in golden if differing(golden[key], found[key])] == ["layers", "parameters"]


def test_its_baseline_holds(loaded: Report):
    compared = compare(read_baseline(WRITTEN / "baseline.json"), loaded)
    assert compared.same, str(compared)
    assert compared.compared > 20


def test_its_baseline_is_written_as_it_was(loaded: Report):
    text = (WRITTEN / "baseline.json").read_text(encoding="utf-8")
    assert baseline_text(read_baseline(WRITTEN / "baseline.json")) == text


def test_its_report_is_what_the_schema_of_today_describes():
    jsonschema.validate(json.loads((WRITTEN / "report.json").read_text(encoding="utf-8")), SCHEMA)


def test_its_folder_takes_what_is_run_today(tmp_path: Path, loaded: Report):
    shutil.copytree(WRITTEN / "folder", tmp_path / "folder")
    record = loaded.records[0]
    RunFolder(tmp_path / "folder").save(record)
    again = coordcheck.load(tmp_path / "folder")
    assert again.records == loaded.records
    assert again.criteria == loaded.criteria
