"""Baselines: what is stored of a report, what counts as a change, and files that are not what they should be."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import power_law_records
from hypothesis import given, settings
from hypothesis import strategies as st

from coordcheck import CoordCheckError, Report, RunFileError
from coordcheck.analysis.criteria import Criteria
from coordcheck.analysis.verdicts import Verdict
from coordcheck.pytest_plugin.baselines import Baseline, Comparison, Entry, Name, Reading, baseline_of, compare
from coordcheck.pytest_plugin.baselines.files import NewerBaseline, baseline_text, read_baseline, write_baseline
from coordcheck.runs.records import RunKey, RunRecord

FLAT = {"activation": 0.0, "change": 0.0}
GROWING = {"activation": 0.0, "change": 0.5}


def synthetic(exponents: dict[str, dict[str, float]], **options: Any) -> Report:
    return Report(power_law_records(exponents, **options))


def against(before: Report, after: Report, **options: Any) -> Comparison:
    return compare(baseline_of(before), after, **options)


def wobble(size: float, flip: int = 1) -> Any:
    """Noise that leaves every slope as it is, and gives it an interval: the middle width of 3 lies off the line."""
    return lambda width, seed, layer: flip * size * (1 if width == 128 else -0.5)


TEXT = """\
{
  "format": "coordcheck baseline",
  "schema": 1,
  "numbers": "[exponent, half of its 95 % interval]",
  "settings": {
    "axis": "width",
    "labels": ["model"],
    "seeds": [0, 1, 2],
    "steps": 2,
    "widths": [64, 128, 256]
  },
  "labels": {
    "model": {
      "layers": {
        "fc": {"verdict": "ok", "change at t=1": [0.0, 0.0]},
        "mask": {"verdict": "frozen", "activation at t=0": [0.0, 0.0]},
        "out": {"verdict": "blows up", "change at t=1": [0.5, 0.0]}
      },
      "parameters": {}
    }
  }
}
"""


def mixed() -> Report:
    return synthetic({"out": GROWING, "fc": FLAT, "mask": {"activation": 0.0, "change": -math.inf}})


def test_the_text_of_a_baseline():
    assert baseline_text(baseline_of(mixed())) == TEXT


def test_a_file_holds_the_text_and_reads_back(tmp_path):
    path = tmp_path / "deep" / "gpt.json"
    write_baseline(path, baseline_of(mixed()))
    assert path.read_bytes() == TEXT.encode()
    assert read_baseline(path) == baseline_of(mixed())


def test_a_real_check_stores_gain_and_response(report, tmp_path):
    path = tmp_path / "both.json"
    write_baseline(path, baseline_of(report))
    stored = read_baseline(path)
    line = stored.entries[Name("SP", "parameters", "hidden.0.weight")]
    assert line.verdict == "learns too fast"
    assert line.readings["gain"].value == pytest.approx(0, abs=0.1)
    assert line.readings["response"].value == pytest.approx(1, abs=0.1)
    assert {name.kind for name in stored.entries} == {"layers", "parameters"}
    assert compare(stored, report).same


def test_no_number_is_minus_zero(report):
    assert "-0.0," not in baseline_text(baseline_of(report))
    assert "-0.0]" not in baseline_text(baseline_of(report))


def test_the_two_mu_signs_are_one_label():
    one, other = (synthetic({"fc": FLAT}, label=f"{mu}P") for mu in "\u00b5\u03bc")
    assert baseline_text(baseline_of(one)) == baseline_text(baseline_of(other))


@pytest.mark.parametrize("name", ["a\nb", "\ud800", '"', "\x00", "\u202e", "</script>", "verdict"])
def test_hostile_names_survive_the_file(name, tmp_path):
    found = baseline_of(synthetic({name: FLAT}, label=f"l{name}"))
    write_baseline(tmp_path / "x.json", found)
    assert read_baseline(tmp_path / "x.json") == found


# what counts as a change


def test_the_same_exponents_are_no_change():
    found = against(mixed(), mixed())
    assert found.same
    assert str(found) == "all 3 exponents are as they were"


CHANGED = """\
2 of 3 exponents changed, 1 new, 1 missing
  exponent       measured         baseline                  now                       allowed
  model: fc      change at t=1    +0.00 ± 0.00, ok          +1.00 ± 0.00, blows up    ± 0.10
  model: head    change at t=1    +0.50 ± 0.00, blows up    +0.00 ± 0.00, ok          ± 0.10
  new: model: fresh
  missing: model: gone"""


def test_the_table_of_what_changed():
    before = synthetic({"fc": FLAT, "head": GROWING, "kept": FLAT, "gone": FLAT})
    after = synthetic({"fc": {"activation": 0.0, "change": 1.0}, "head": FLAT, "kept": FLAT, "fresh": FLAT})
    found = against(before, after)
    assert str(found) == CHANGED
    assert not found.same


@pytest.mark.parametrize(("moved", "same"), [(0.09, True), (0.11, False), (-0.09, True), (-0.11, False)])
def test_the_default_tolerance_is_a_tenth(moved, same):
    after = synthetic({"fc": {"activation": 0.0, "change": 0.5 + moved}})
    assert against(synthetic({"fc": GROWING}), after).same is same


def test_a_tolerance_can_be_given():
    after = synthetic({"fc": {"activation": 0.0, "change": 0.7}})
    assert against(synthetic({"fc": GROWING}), after, tolerance=0.25).same


@pytest.mark.parametrize(("size", "same"), [(0.4, True), (0.1, False)])
def test_the_interval_of_the_difference_counts_where_it_is_wider(size, same):
    before = synthetic({"fc": GROWING}, noise=wobble(size))
    after = synthetic({"fc": {"activation": 0.0, "change": 0.7}}, noise=wobble(size, -1))
    halves = [
        r.half for report in (before, after) for e in baseline_of(report).entries.values() for r in e.readings.values()
    ]
    assert (math.hypot(*halves) > 0.2) is same  # the premise
    assert against(before, after).same is same


def test_a_slope_is_read_again_where_it_was_read_before():
    """The verdict of the second check is decided at initialisation, and the change has not changed."""
    before = synthetic({"fc": FLAT})
    after = synthetic({"fc": {"activation": 0.5, "change": 0.0}})
    assert baseline_of(after).entries[Name("model", "layers", "fc")].readings == {
        "activation at t=0": Reading(0.5, 0.0)
    }
    (change,) = against(before, after).changes
    assert (change.measured, change.before, change.after) == ("verdict", "ok", "initialised too large")


def test_a_layer_that_stops_moving_has_changed():
    (change,) = against(synthetic({"fc": FLAT}), synthetic({"fc": {"activation": 0.0, "change": -math.inf}})).changes
    assert (change.before, change.after) == ("+0.00 ± 0.00, ok", "none, frozen")


def test_a_frozen_layer_that_moves_has_changed():
    (change,) = against(synthetic({"fc": {"activation": 0.0, "change": -math.inf}}), synthetic({"fc": FLAT})).changes
    assert (change.measured, change.before, change.after) == ("verdict", "frozen", "ok")


def test_ok_and_undecided_are_not_told_apart():
    before, after = synthetic({"fc": FLAT}), synthetic({"fc": FLAT}, noise=wobble(0.8))
    words = [entry.verdict for report in (before, after) for entry in baseline_of(report).entries.values()]
    assert words == ["ok", "undecided"]  # the premise
    assert against(before, after).same
    assert against(after, before).same


def test_a_parameter_that_gains_an_exponent_has_changed(report):
    stored = baseline_of(report)
    name = Name("SP", "parameters", "readout.weight")
    zero = Entry(stored.entries[name].verdict, {"response": stored.entries[name].readings["response"]})
    (change,) = compare(Baseline(stored.settings, {**stored.entries, name: zero}), report).changes
    assert (str(change.name), change.measured, change.before.split(",")[0]) == ("SP: readout.weight", "gain", "none")


def test_largest_changes_come_first_and_many_are_counted():
    before = synthetic({f"layer-{n}": FLAT for n in range(14)})
    after = synthetic({f"layer-{n}": {"activation": 0.0, "change": 0.2 + n / 10} for n in range(14)})
    lines = str(against(before, after)).splitlines()
    assert lines[0] == "14 of 14 exponents changed"
    assert "layer-13" in lines[2]
    assert lines[-1] == "  and 4 more"


def test_many_new_layers_are_counted():
    found = against(synthetic({"fc": FLAT}), synthetic({"fc": FLAT, **{f"layer-{n}": FLAT for n in range(14)}}))
    assert str(found).endswith("layer-9 and 4 more")


def renamed(records: list[RunRecord], seed: int) -> list[RunRecord]:
    return [replace(record, key=RunKey(record.key.label, record.key.width, seed)) for record in records]


@pytest.mark.parametrize(
    ("after", "text"),
    [
        (synthetic({"fc": FLAT}, widths=(32, 64, 128)), "widths was (64, 128, 256), is (32, 64, 128)"),
        (synthetic({"fc": FLAT}, seeds=2), "seeds was (0, 1, 2), is (0, 1)"),
        (synthetic({"fc": FLAT}, steps=3), "steps was 2, is 3"),
        (synthetic({"fc": FLAT}, label="other"), "labels was (model), is (other)"),
        (Report(power_law_records({"fc": FLAT}), Criteria(axis="depth")), "axis was width, is depth"),
    ],
)
def test_other_settings_are_not_compared(after, text):
    found = against(synthetic({"fc": FLAT}), after)
    assert str(found) == f"made with other settings: {text}"
    assert not found.same


def test_seeds_are_compared_by_number():
    after = Report(renamed(power_law_records({"fc": FLAT}, seeds=1), 7))
    assert "seeds was (0), is (7)" in str(against(synthetic({"fc": FLAT}, seeds=1), after))


def test_the_tolerance_of_the_verdicts_is_no_setting():
    assert compare(baseline_of(mixed()), Report(mixed().records, Criteria(tolerance=0.3))).same


# files


def edited(tmp_path: Path, **changes: Any) -> Path:
    path = tmp_path / "gpt.json"
    path.write_text(json.dumps({**json.loads(TEXT), **changes}), encoding="utf-8")
    return path


def with_line(line: object) -> dict[str, Any]:
    return {"labels": {"model": {"layers": {"fc": line}, "parameters": {}}}}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"format": "coordcheck run"}, "its format is not"),
        ({"schema": 0}, "has the schema 0"),
        ({"schema": True}, "has the schema True"),
        ({"schema": "1"}, "has the schema '1'"),
        ({"labels": 3}, "holds what no check writes"),
        ({"labels": {"model": {"layers": {}}}}, "lacks 'parameters'"),
        ({"settings": None}, "holds what no check writes"),
        (with_line({}), "lacks 'verdict'"),
        (with_line({"verdict": "fine"}), "'fine' is not a valid Verdict"),
        (with_line({"verdict": "ok", "gain": 0.1}), r"'gain' must be \[exponent, half"),
        (with_line({"verdict": "ok", "gain": [0.1]}), "'gain' must be"),
        (with_line({"verdict": "ok", "gain": [None, 0.1]}), "'gain' must be"),
        (with_line({"verdict": "ok", "gain": [True, 0.1]}), "'gain' must be"),
        (with_line({"verdict": "ok", "gain": [0.1, -0.1]}), "'gain' must be"),
        (with_line({"verdict": "ok", "gain": ["0.1", 0.1]}), "'gain' must be"),
        (with_line({"verdict": "ok", "gain": [10**400, 0.1]}), "holds what no check writes"),
        (with_line([]), "holds what no check writes"),
    ],
)
def test_what_no_check_writes_is_refused(changes, why, tmp_path):
    with pytest.raises(RunFileError, match=why) as caught:
        read_baseline(edited(tmp_path, **changes))
    assert "Restore it from version control, or write it anew." in str(caught.value)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "is damaged"),
        (TEXT.encode()[:-20], "is damaged"),
        (b"<<<<<<< HEAD\n" + TEXT.encode(), "is damaged, or not merged"),
        (TEXT.replace("0.5, 0.0", "NaN, 0.0").encode(), "NaN is not a JSON number"),
        (TEXT.replace('"mask"', '"fc"').encode(), "'fc' is there twice"),
        (b"\xff\xfe", "is damaged"),
        (b"[" * 100_000, "is damaged: it holds more lists than values"),
        (b"[" * 900, "is damaged"),
        (b"[]", "is no baseline"),
        (b" " * (8 * 2**20 + 1), "has 8388609 bytes, more than any such file"),
    ],
)
def test_damaged_files_are_refused(data, why, tmp_path):
    path = tmp_path / "gpt.json"
    path.write_bytes(data)
    with pytest.raises(RunFileError, match=why):
        read_baseline(path)


def test_a_newer_schema_is_told_from_damage(tmp_path):
    with pytest.raises(NewerBaseline, match=r"has schema 2; this version reads up to 1\. Upgrade coordcheck\."):
        read_baseline(edited(tmp_path, schema=2))


def test_a_folder_is_no_baseline(tmp_path):
    with pytest.raises(RunFileError, match="is not a regular file"):
        read_baseline(tmp_path)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CoordCheckError, match="cannot write"):
        write_baseline(tmp_path / "file" / "gpt.json", baseline_of(mixed()))


READINGS = st.builds(
    Reading, st.floats(-9, 9).map(lambda v: round(v, 3) + 0.0), st.none() | st.floats(0, 9).map(lambda v: round(v, 3))
)
ENTRIES = st.builds(
    Entry,
    st.sampled_from(Verdict).map(lambda verdict: verdict.value),
    st.dictionaries(st.sampled_from(["gain", "response", "change at t=1"]), READINGS),
)
NAMES = st.builds(Name, st.sampled_from(["SP", "μP"]), st.sampled_from(["layers", "parameters"]), st.text(max_size=5))


@settings(deadline=None)
@given(st.dictionaries(NAMES.filter(lambda n: all(not 0xD800 <= ord(c) < 0xE000 for c in n.name)), ENTRIES))
def test_every_baseline_reads_back(tmp_path_factory, entries):
    path = tmp_path_factory.mktemp("baselines") / "x.json"
    found = Baseline({"widths": [64, 128]}, entries)
    write_baseline(path, found)
    assert read_baseline(path) == found


@settings(deadline=None)
@given(st.data())
def test_a_damaged_byte_is_refused_or_read_as_what_it_says(tmp_path_factory, data):
    """No mutant may raise anything but RunFileError."""
    text = bytearray(TEXT.encode())
    for place in data.draw(st.lists(st.integers(0, len(text) - 1), min_size=1, max_size=4)):
        text[place] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("mutants") / "x.json"
    path.write_bytes(bytes(text))
    try:
        found = read_baseline(path)
    except RunFileError:
        return
    assert isinstance(compare(found, mixed()), Comparison)
