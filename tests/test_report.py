"""The report: its text, its exit code and errors, its notes, and its way through files."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from importlib.resources import files
from typing import Any, NoReturn

import jsonschema
import numpy as np
import pandas as pd
import pytest
import rich.console
from conftest import power_law_records
from matplotlib.figure import Figure
from rich.console import Console

import coordcheck
from coordcheck import CoordCheckError, IncompleteCheck, NotWidthInvariant, Report
from coordcheck.analysis.criteria import Criteria
from coordcheck.analysis.verdicts import Verdict
from coordcheck.runs.records import ParameterInfo, RunKey, RunRecord
from coordcheck.runs.words import Outcome, Quantity

FLAT = {"activation": 0.0, "change": 0.0}
GROWING = {"activation": 0.0, "change": 0.5}
FROZEN = {"activation": 0.0, "change": -math.inf}

STANDARD = {
    "fc1": {"activation": 0.5, "change": 1.0},
    "norm": FLAT,
    "fc2": {"activation": 0.0, "change": 1.0},
    "out": {"activation": -0.5, "change": 0.5},
}
MAXIMAL = {"fc1": FLAT, "norm": FLAT, "fc2": FLAT, "out": {"activation": -0.5, "change": -0.25}}

GOLDEN = """\
SP: VIOLATED  2 of 4 layers blow up, 1 initialised too large from width 64 to 256; first fc1
  layer  verdict                measured                  slope  64 → 256
  fc2    blows up               change at t=1      +1.00 ± 0.00        ×4
  fc1    initialised too large  activation at t=0  +0.50 ± 0.00        ×2
  out    blows up               change at t=1      +0.50 ± 0.00        ×2
µP: OK  all 4 layers keep their scale from width 64 to 256; by design: out m^-0.5 at t=0"""

TOO_FEW = """\
model: a verdict needs at least 3 distinct widths with finished runs; 'model' has 2 (64, 128). Add
widths: a range of 8 or more times is best.
  layer  width   t=0   t=1
  fc        64     8     8
  fc       128  11.3  11.3"""


def synthetic(exponents: dict[str, dict[str, float]], **options: Any) -> Report:
    return Report(power_law_records(exponents, **options))


def both() -> Report:
    """SP and µP side by side, as exact power laws with a readout of ten classes."""
    return Report(
        [
            record
            for label, exponents in {"SP": STANDARD, "µP": MAXIMAL}.items()
            for record in power_law_records(
                exponents, label=label, shape=lambda layer, width: (4, 10) if layer == "out" else (4, width)
            )
        ]
    )


def noisy() -> Report:
    noise = np.random.default_rng(0)
    return synthetic({"fc": FLAT}, noise=lambda width, seed, layer: noise.normal(scale=2))


def lost(width: int = 512, reason: str = "Traceback:\nValueError: no such width\n", label: str = "model") -> RunRecord:
    """A run that failed."""
    return RunRecord(RunKey(label, width, 0), outcome=Outcome.FAILED, reason=reason)


def with_lost(report: Report, *records: RunRecord) -> Report:
    return Report([*report.records, *records])


def test_the_text_of_a_check():
    assert str(both()) == GOLDEN


def test_the_text_without_a_verdict_shows_the_scales():
    assert str(synthetic({"fc": {"activation": 0.5}}, widths=(64, 128), steps=1)) == TOO_FEW


def test_the_real_check_separates_the_two_parametrizations(report):
    assert report.status["SP"].violated
    assert report.status["µP"] is Verdict.OK
    assert str(report).startswith("SP: VIOLATED  ")
    assert "\nµP: OK  all " in str(report)


def test_an_undecided_label_says_what_to_do():
    assert "model: UNDECIDED  1 of 1 layers undecided from width 64 to 256; add seeds" in str(noisy())


def test_a_layer_without_a_slope_shows_its_explanation():
    report = synthetic(
        {"a": FLAT, "b": FLAT},
        noise=lambda width, seed, layer: math.nan if (layer, width, seed) == ("b", 256, 0) else 0.0,
    )
    [line] = [line for line in str(report).splitlines() if line.startswith("  b ")]
    assert line.split(maxsplit=3)[:3] == ["b", "not", "finite"]
    assert "NaN or Inf from t=0 on" in line
    assert "t=-1" not in line


def test_only_the_worst_layers_are_shown():
    text = str(synthetic({f"layer-{n}": {"change": 0.5 + n / 10} for n in range(11)}))
    shown = [line.split()[0] for line in text.splitlines() if "blows up" in line]
    assert shown == [f"layer-{n}" for n in range(10, 2, -1)]
    assert "  and 3 more: report.verdicts, --html page.html" in text


def test_the_axis_is_named_as_the_user_names_it():
    report = Report(power_law_records({"fc": FLAT}, widths=(2, 4, 8)), Criteria(axis="depth"))
    assert str(report) == "model: OK  all 1 layers keep their scale from depth 2 to 8"


def test_the_text_names_the_widths_that_were_measured():
    text = str(with_lost(synthetic({"fc": GROWING}), lost(512)))
    assert "from width 64 to 256" in text
    assert "64 → 256" in text


@pytest.mark.parametrize(
    "environment", [{"COLUMNS": "30"}, {"FORCE_COLOR": "1"}, {"TERM": "dumb"}, {"NO_COLOR": "1"}], ids=str
)
def test_the_text_does_not_depend_on_the_terminal(monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert str(both()) == GOLDEN


def test_the_text_is_the_same_in_a_notebook(monkeypatch):
    monkeypatch.setattr(rich.console, "_is_jupyter", lambda: True)
    assert str(both()) == GOLDEN


@pytest.mark.parametrize("name", ["[bold]x[/]", "blocks[/]", "[link=x]y[/link]", ":smile:", r"a\[b]", "<b>&amp;"])
def test_hostile_names_print_literally(name):
    report = with_lost(synthetic({name: GROWING}, label=name), lost(512, f"ValueError: {name}", label=name))
    text = str(report)
    assert text.startswith(f"{name}: VIOLATED  ")
    assert f"; first {name}\n" in text
    assert f"\n  {name} " in text
    assert text.endswith(f"failed (width 512): ValueError: {name}")


@pytest.mark.parametrize("name", ["a\x1b[31mb", "a\nb", "a\rb", "a\x00b", "a\x9bb"])
def test_control_characters_in_names_do_not_reach_the_terminal(name):
    lines = str(synthetic({name: GROWING})).splitlines()
    assert len(lines) == 3
    assert all(line.isprintable() for line in lines)


def test_a_terminal_gets_colours():
    console = Console(width=100, force_terminal=True, color_system="standard")
    with console.capture() as capture:
        console.print(both())
    assert "\x1b[1;31mVIOLATED\x1b[0m" in capture.get()
    assert "\x1b[1;32mOK\x1b[0m" in capture.get()


@pytest.mark.parametrize(
    ("report", "code", "error"),
    [
        (synthetic({"fc": FLAT}), 0, None),
        (synthetic({"fc": FLAT, "mask": FROZEN}), 0, None),
        (synthetic({"fc": FLAT, "bad": GROWING}), 1, NotWidthInvariant),
        (both(), 1, NotWidthInvariant),
        (with_lost(synthetic({"fc": GROWING}), lost()), 1, NotWidthInvariant),
        (synthetic({"fc": FLAT}, noise=lambda width, seed, layer: math.nan), 1, NotWidthInvariant),
        (synthetic({"fc": FLAT}, widths=(64, 128)), 2, CoordCheckError),
        (synthetic({"fc": GROWING}, widths=(64,)), 2, CoordCheckError),
        (noisy(), 3, IncompleteCheck),
        (synthetic({"fc": FROZEN}), 3, IncompleteCheck),
        (with_lost(synthetic({"fc": FLAT}), lost()), 3, IncompleteCheck),
        (with_lost(synthetic({"fc": FLAT}, widths=(64, 128)), lost()), 3, IncompleteCheck),
        (Report([lost(64), lost(128), lost(256)]), 3, IncompleteCheck),
        (Report([RunRecord(RunKey("model", width, 0)) for width in (64, 128, 256)]), 3, IncompleteCheck),
    ],
    ids=[
        *("ok", "ok and frozen", "violated", "one label violated", "violated and missing", "not finite"),
        *("two widths", "one width", "undecided", "frozen", "missing", "too few because missing", "all missing"),
        "nothing measured",
    ],
)
def test_exit_codes_and_errors(report, code, error):
    assert report.exit_code == code
    if error is None:
        report.raise_for_status()
    else:
        with pytest.raises(CoordCheckError) as caught:
            report.raise_for_status()
        assert type(caught.value) is error
        assert caught.value.exit_code == code
        assert str(report) in str(caught.value)


def test_a_violated_check_is_an_assertion_error():
    with pytest.raises(AssertionError, match="SP: VIOLATED"):
        both().raise_for_status()


def test_too_few_widths_names_the_label_and_its_widths():
    records = power_law_records({"fc": FLAT}, label="a") + power_law_records({"fc": FLAT}, label="b", widths=(64, 128))
    assert "'b' has 2 (64, 128)" in Report(records).too_few_widths["b"]
    assert "no run finished; the first one: ValueError: no such width" in Report([lost()]).too_few_widths["model"]


def test_a_check_whose_runs_all_failed_can_still_be_told():
    report = Report([lost(width) for width in (64, 128, 256)])
    assert "no run finished; the first one: ValueError: no such width" in str(report)
    assert json.loads(report.to_json())["verdicts"] == []


def test_a_label_without_rows_does_not_hide_the_others():
    empty = [RunRecord(RunKey("empty", width, 0)) for width in (64, 128, 256)]
    report = Report(empty + power_law_records({"fc": FLAT}))
    assert report.exit_code == 3
    assert "model: OK" in str(report)


def seen_only_at_two_widths() -> Report:
    wide = power_law_records({"fc": FLAT, "skip": FLAT}, widths=(64, 128))
    return Report(wide + power_law_records({"fc": FLAT}, widths=(256,)))


def lost_at(width: int, seed: int) -> Report:
    return synthetic(
        {"a": FLAT, "b": FLAT},
        noise=lambda w, s, layer: math.nan if (w, s, layer) == (width, seed, "b") else 0.0,
    )


def with_parameters(*parameters: ParameterInfo) -> Report:
    return Report([replace(record, parameters=list(parameters)) for record in synthetic({"fc": FLAT}).records])


def with_notes(*notes: str) -> Report:
    return Report([replace(record, notes=list(notes)) for record in synthetic({"fc": FLAT}).records])


@pytest.mark.parametrize(
    ("report", "note"),
    [
        (with_lost(synthetic({"fc": FLAT}), lost()), "model: 1 run failed (width 512): ValueError: no such width"),
        (with_lost(synthetic({"fc": FLAT}), lost(reason="")), "model: 1 run failed (width 512)"),
        (seen_only_at_two_widths(), "model: seen only at 64, 128: skip"),
        (lost_at(128, 1), "model: first nan in b at t=0 (width 128, 1 run)"),
        (
            with_parameters(ParameterInfo("head.weight", (4, 4), 0.1, 0.0, visible=False)),
            "model: not visible: head.weight (trained, but not in a call of their own module)",
        ),
        (
            with_parameters(ParameterInfo("fc.bias", (4,), None, None, visible=True)),
            "model: no optimizer holds fc.bias",
        ),
        (with_notes("dropout is on"), "model: dropout is on"),
    ],
    ids=["failed", "no reason", "partial", "not finite", "hidden", "untrained", "of the run"],
)
def test_notes_say_what_the_verdicts_do_not(report, note):
    assert [told for told in report.notes if "all seeds" not in told] == [note]
    assert f"note: {note}" in str(report).rstrip()


def test_a_healthy_check_has_no_notes():
    assert both().notes == []


def test_many_notes_are_counted():
    text = str(with_notes(*(f"number {n}" for n in range(11))))
    assert text.count("note: ") == 9
    assert text.endswith("note: and 3 more: report.notes, --notes")


def strict_json(report: Report) -> dict[str, Any]:
    def refuse(constant: str) -> NoReturn:
        raise ValueError(constant)

    return json.loads(report.to_json(), parse_constant=refuse)


def plain(table: pd.DataFrame) -> list[dict[str, Any]]:
    return table.astype(object).where(table.notna(), None).to_dict("records")


@pytest.mark.parametrize(
    "report",
    [both(), lost_at(128, 1), noisy(), synthetic({"fc": FLAT}, widths=(64, 128)), synthetic({"fc": FROZEN})],
    ids=["both", "not finite", "undecided", "too few widths", "frozen"],
)
def test_json_is_strict_and_holds_the_tables(report):
    found = strict_json(report)
    assert found["verdicts"] == plain(report.verdicts)
    assert found["slopes"] == plain(report.slopes)
    assert found["exit_code"] == report.exit_code
    assert found["status"] == {label: verdict.value for label, verdict in report.status.items()}
    assert found["notes"] == report.notes
    assert (found["axis"], found["widths"], found["tolerance"]) == ("width", report.widths, 0.25)
    assert (found["format"], found["schema"]) == ("coordcheck report", 1)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_json_has_no_constants_beyond_json(value):
    report = synthetic({"fc": FLAT})
    report.verdicts.loc[0, "growth"] = value
    assert strict_json(report)["verdicts"][0]["growth"] is None


def test_growth_beyond_all_numbers_is_no_warning():
    report = synthetic(
        {"fc": {"activation": 70.0}},
        widths=(64, 1024, 16384),
        noise=lambda width, seed, layer: -1000.0 if width == 64 else 0.0,
    )
    [verdict] = strict_json(report)["verdicts"]
    assert (verdict["verdict"], verdict["growth"]) == ("initialised too large", None)


def test_saved_runs_are_loaded_with_equal_tables(tmp_path, report):
    report.save(tmp_path)
    loaded = coordcheck.load(tmp_path)
    pd.testing.assert_frame_equal(loaded.verdicts, report.verdicts)
    key = ["label", "layer", "quantity", "step", "width", "seed"]
    for mine, other in ((loaded.slopes, report.slopes), (loaded.measurements, report.measurements)):
        by = [name for name in key if name in mine]
        pd.testing.assert_frame_equal(mine.sort_values(by, ignore_index=True), other.sort_values(by, ignore_index=True))
    assert str(loaded) == str(report)


def test_runs_that_failed_are_still_missing_when_they_are_loaded(tmp_path):
    report = with_lost(synthetic({"fc": FLAT}), lost())
    report.save(tmp_path)
    loaded = coordcheck.load(tmp_path)
    assert (loaded.exit_code, loaded.notes) == (3, report.notes)


def test_a_loaded_check_is_judged_as_it_was(tmp_path):
    report = Report(
        synthetic({"fc": {"activation": 0.5, "change": 0.5}}).records,
        Criteria(expect={"fc": 0.5}, tolerance=0.2, axis="experts"),
    )
    report.save(tmp_path)
    loaded = coordcheck.load(tmp_path)
    assert (loaded.exit_code, loaded.criteria) == (0, report.criteria)
    assert coordcheck.load(tmp_path, expect={}).exit_code == 1


def test_loaded_runs_can_be_judged_anew(tmp_path):
    synthetic({"fc": GROWING, "out": {"activation": 0.0, "change": 0.2}}).save(tmp_path)
    words = {
        "usual": coordcheck.load(tmp_path),
        "expected": coordcheck.load(tmp_path, expect={"fc": 0.5}),
        "strict": coordcheck.load(tmp_path, tolerance=0.1),
    }
    assert {name: report.verdicts["verdict"].tolist() for name, report in words.items()} == {
        "usual": ["blows up", "ok"],
        "expected": ["initialised too small", "ok"],
        "strict": ["blows up", "blows up"],
    }


def test_runs_of_one_label_with_different_settings_are_not_mixed(tmp_path):
    records = synthetic({"fc": FLAT}).records
    for record in records:
        record.settings = {"steps": "4", "batch": "b" if record.key.width == 256 else "a"}
    Report(records).save(tmp_path)
    with pytest.raises(CoordCheckError, match=r"mixes runs made with different settings: .* batch was a, is b\."):
        coordcheck.load(tmp_path)


def test_a_setting_that_only_one_run_has_is_a_difference(tmp_path):
    records = synthetic({"fc": FLAT}).records
    records[-1].settings = {"dtype": "bfloat16"}
    Report(records).save(tmp_path)
    with pytest.raises(CoordCheckError, match=r"dtype was not set, is bfloat16"):
        coordcheck.load(tmp_path)


def test_labels_may_have_settings_of_their_own(tmp_path):
    report = both()
    for record in report.records:
        record.settings = {"build": record.key.label}
    report.save(tmp_path)
    assert coordcheck.load(tmp_path).labels == ["SP", "µP"]


def test_the_two_mu_signs_are_one_label(tmp_path):
    for sign, widths in (("\u00b5", (64, 128)), ("\u03bc", (256, 512))):
        synthetic({"fc": FLAT}, label=f"{sign}P", widths=widths).save(tmp_path)
    report = coordcheck.load(tmp_path)
    assert len(report.labels) == 1
    assert report.exit_code == 0


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
try:
    import torch
except ImportError:
    pass
else:
    raise SystemExit("torch could be imported")
import coordcheck
print(coordcheck.load(sys.argv[1]))
"""


def test_loading_and_printing_need_no_torch(tmp_path):
    both().save(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, str(tmp_path)],
        capture_output=True,
        encoding="utf-8",
        env=os.environ | {"PYTHONUTF8": "1"},
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, GOLDEN + "\n"), done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "pie"}, r"there is no figure 'pie'; known are 'divergence', 'slopes', 'exponents'\."),
        ({"quantity": "loss"}, r"there is no quantity 'loss'; known are 'activation', 'mean_abs', 'change'\."),
        ({"kind": "slopes", "quantity": ""}, r"there is no quantity ''"),
    ],
)
def test_figure_refuses_what_it_does_not_know(arguments, message):
    with pytest.raises(CoordCheckError, match=message):
        both().figure(**arguments)


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ({}, "RMS activation"),
        ({"quantity": "change"}, "RMS change from t = 0"),
        ({"quantity": Quantity.CHANGE}, "RMS change from t = 0"),
        ({"kind": "slopes"}, "slope of\nRMS change from t = 0"),
        ({"kind": "slopes", "quantity": "activation"}, "slope of\nRMS activation"),
    ],
)
def test_figure_draws_the_quantity_it_is_asked_for(arguments, shown):
    figure = both().figure(**arguments)
    assert isinstance(figure, Figure)
    assert shown in {axis.get_ylabel() for axis in figure.axes}


def test_figure_saves_where_it_is_told(tmp_path):
    both().figure(path=tmp_path / "check.svg")
    assert (tmp_path / "check.svg").read_bytes().startswith(b"<?xml")


SCHEMA = json.loads(files("coordcheck.reporting").joinpath("report.schema.json").read_text(encoding="utf-8"))


def problems_of(report: Report) -> list[str]:
    """What the JSON Schema of reports finds wrong in one."""
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    return [
        error.message for error in jsonschema.Draft202012Validator(SCHEMA).iter_errors(json.loads(report.to_json()))
    ]


def test_the_json_is_as_its_schema_says(report):
    assert problems_of(report) == []
    assert problems_of(Report(power_law_records({"a": {"activation": 0.0, "change": 1.0}}, seeds=1))) == []
    assert problems_of(Report(power_law_records({"a": {"activation": 0.0}}, widths=(64, 128)))) == []


def test_a_report_with_failed_runs_and_other_criteria_is_as_its_schema_says():
    records = power_law_records({"a": {"activation": 0.0, "change": 0.0}})
    records[0].outcome, records[0].reason = Outcome.FAILED, "Traceback\nValueError: no"
    assert problems_of(Report(records, Criteria(expect={"a*": 0.5}, roles={"a.*": "hidden"}))) == []
    assert problems_of(Report(records, Criteria(expect="sp", axis="depth"))) == []


def test_the_schema_can_find_something_wrong(report, monkeypatch):
    told = json.loads(report.to_json())
    told["verdicts"][0]["verdict"] = "fine"
    told["more"] = 1
    monkeypatch.setattr(report, "to_json", lambda: json.dumps(told), raising=False)
    assert len(problems_of(report)) == 2


def test_every_property_of_the_schema_is_described():
    for row in ("verdicts", "slopes"):
        known = SCHEMA["properties"][row]["items"]["properties"]
        assert all("description" in entry for name, entry in known.items() if name not in ("seeds", "widths"))


def test_seeds_that_give_the_same_numbers_are_told():
    records = power_law_records({"fc": FLAT})
    for record in records:
        record.parameters = [ParameterInfo("fc.weight", (4, record.key.width), 0.1, 0.0, True)]
    assert any("all seeds gave the same numbers" in note for note in Report(records).notes)
    records[-1].rows[-1] = records[-1].rows[-1]._replace(value=2.0)
    assert not any("all seeds gave the same numbers" in note for note in Report(records).notes)
    assert not any("all seeds" in note for note in Report(records[:3]).notes)


def test_globs_that_name_nothing_are_told():
    records = power_law_records({"fc": FLAT}, seeds=1)
    for record in records:
        record.parameters = [ParameterInfo("fc.weight", (4, record.key.width), 0.1, 0.0, True)]
    report = Report(
        records, Criteria(expect={"fc": 0.0, "router*": 0.5}, roles={"fc.*": "hidden", "fc.weigth": "readout"})
    )
    assert [note for note in report.notes if "names" in note] == [
        "roles= names 'fc.weigth', which is no parameter",
        "expect= names 'router*', which is no layer",
    ]


def test_a_scalar_beside_the_output_is_no_layer():
    layers = {"fc": FLAT, "(model):out[1]": GROWING}
    report = synthetic(layers, shape=lambda layer, width: () if layer.startswith("(") else (4, width))
    assert list(report.layers["layer"]) == ["fc"]
    assert report.exit_code == 0
