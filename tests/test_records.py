"""Records: JSON and back without loss, and nothing but what `to_json` writes is read."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import sys

import pytest
from conftest import power_law_records
from hypothesis import given, settings
from hypothesis import strategies as st

from coordcheck.runs.names import same_label
from coordcheck.runs.reading import Wrong
from coordcheck.runs.records import ParameterInfo, Row, RunKey, RunRecord, Site, Use
from coordcheck.runs.schemas import RUN, read_run
from coordcheck.runs.words import Kind, Outcome, Quantity, Side, Status, Through, status_of

finite = st.floats(allow_nan=False, allow_infinity=False)
scales = st.floats(min_value=0.0, allow_nan=False, allow_infinity=False)
counts = st.integers(0, 2**40)
shapes = st.lists(st.integers(0, 2**15), max_size=4).map(tuple)
texts = st.text(max_size=20)
unmeasured = st.sampled_from([status for status in Status if status not in (Status.OK, Status.ZERO)])


@st.composite
def records(draw: st.DrawFn) -> RunRecord:
    """Any record that a run could leave behind."""
    site = st.builds(Site, texts, counts, st.sampled_from(Kind), shapes, texts)
    sites = draw(st.lists(site, max_size=4, unique_by=lambda site: site.layer))
    measured = scales.map(lambda value: (value, status_of(value)))
    outcome = st.one_of(measured, unmeasured.map(lambda status: (None, status)))
    rows = st.builds(
        lambda site, step, quantity, found: Row(site, step, quantity, *found),
        st.integers(0, max(len(sites) - 1, 0)),
        st.integers(0, 9),
        st.sampled_from(Quantity),
        outcome,
    )
    optional = st.none() | finite
    places = st.integers(0, max(len(sites) - 1, 0))
    sizes = st.integers(1, 2**40)
    uses = st.builds(
        *(Use, places, texts, texts, texts, sizes, sizes, finite, optional, st.booleans()),
        *(st.lists(places, max_size=3).map(tuple), texts, finite, finite, st.sampled_from(Through), finite.map(abs)),
        *(texts, st.sampled_from(Side), st.lists(sizes, max_size=9).map(tuple)),
    )
    return RunRecord(
        key=RunKey(draw(texts), draw(st.integers(1, 2**20)), draw(st.integers(0, 2**40))),
        settings=draw(st.dictionaries(texts, texts, max_size=3)),
        outcome=draw(st.sampled_from(Outcome)),
        reason=draw(texts),
        losses=draw(st.lists(optional, max_size=5)),
        sites=sites,
        rows=draw(st.lists(rows, max_size=6, unique_by=lambda row: row[:3])) if sites else [],
        parameters=draw(
            st.lists(
                st.builds(
                    ParameterInfo,
                    texts,
                    shapes,
                    optional,
                    optional,
                    st.booleans(),
                    *[optional] * 3,
                    st.none() | st.booleans(),
                ),
                max_size=3,
            )
        ),
        uses=draw(st.lists(uses, max_size=3)) if sites else [],
        outside=draw(st.dictionaries(texts, finite, max_size=3)),
        notes=draw(st.lists(texts, max_size=3)),
        seconds=draw(scales),
    )


def as_text(record: RunRecord) -> str:
    return json.dumps(record.to_json(), allow_nan=False)


@pytest.fixture
def data() -> dict:
    """A small record as JSON data: one site, its rows, one parameter."""
    record = power_law_records({"fc": {"activation": 0.0, "change": 0.5}}, widths=(8,), seeds=1)[0]
    record.settings = {"steps": "2"}
    record.parameters = [ParameterInfo("fc.weight", (8, 4), 0.1, None, True)]
    record.uses = [Use(0, "fc.weight", "fc", "linear", 4, 8, 1.0, None, True, (0,))]
    record.notes = ["dropout is on"]
    return json.loads(as_text(record))


@settings(max_examples=100, deadline=None)
@given(records())
def test_json_and_back_is_the_same_record(record: RunRecord):
    back = read_run(json.loads(as_text(record)))
    assert back == record
    assert as_text(back) == as_text(record)  # equal to the last bit, -0.0 included


def test_enums_are_written_as_the_words_a_user_sees(data: dict):
    assert data["outcome"] == "finished"
    assert data["sites"] == [["fc", 0, "module", [4, 8], "float32"]]
    assert data["rows"][0] == [0, 0, "activation", 1.0, "ok"]


@pytest.mark.parametrize("field", RunRecord(RunKey("SP", 8, 0)).to_json())
def test_a_missing_field_is_refused(data: dict, field: str):
    del data[field]
    with pytest.raises(Wrong, match=f"lacks '{field}'"):
        read_run(data)


SITE = ["fc", 0, "module", [4, 8], "float32"]
ROW = [0, 0, "activation", 1.0, "ok"]
PARAMETER = ["fc.weight", [8, 4], 0.1, 0.0, True, 1e-8, 1e-3, 1e-4, False]
USE = [
    *(0, "fc.weight", "fc", "linear", 4, 8, 0.5, 1.0, True, [0], "", 2.0, 1.0, "itself", 1e-3),
    *("fc", "output", [2, 1, 1, 8, 0, 4, 1]),
]


def but(row: list, index: int, value: object) -> list:
    """A list of one row, which is `row` with one member changed."""
    return [[*row[:index], value, *row[index + 1 :]]]


WRONG = [
    *(("label", value) for value in (None, 3, ["SP"])),
    *(("width", value) for value in ("8", 8.0, True, None, math.nan, 0, -8)),
    *(("seed", value) for value in ("0", 0.0, False, None)),
    *(("settings", value) for value in ([], "steps", None, {"steps": 2})),
    *(("outcome", value) for value in ("done", None, ["finished"], {})),
    *(("reason", value) for value in (None, 3)),
    *(("losses", value) for value in (None, {}, "", [math.nan], [math.inf], ["1.0"], [True], [10**400])),
    *(("sites", value) for value in (None, {}, "", ["fc"], [SITE[:4]], [[*SITE, 1]])),
    *(("sites", but(SITE, 0, value)) for value in (None, 3)),
    *(("sites", but(SITE, 1, value)) for value in ("0", 0.5, True)),
    *(("sites", but(SITE, 2, value)) for value in ("layer", None)),
    *(("sites", but(SITE, 3, value)) for value in (None, 4, "", {}, ["4"], [4.0])),
    *(("rows", value) for value in (None, {}, "", [ROW[:4]], [[*ROW, 1]], [[]])),
    *(("rows", but(ROW, 0, value)) for value in (1, -1, "0", True)),
    *(("rows", but(ROW, 1, value)) for value in ("0", 0.0, None)),
    *(("rows", but(ROW, 2, value)) for value in ("rms", None)),
    *(("rows", but(ROW, 3, value)) for value in (math.nan, math.inf, "1.0", True, None, -1.0, 0.0, 10**400)),
    *(("rows", but(ROW, 4, value)) for value in ("fine", None, "nan")),
    *(("parameters", value) for value in (None, {}, "", [PARAMETER[:4]], [[*PARAMETER, None]])),
    *(("parameters", but(PARAMETER, 1, value)) for value in ("", {}, [8.0])),
    *(("parameters", but(PARAMETER, 2, value)) for value in ("0.1", math.nan, True)),
    *(("parameters", but(PARAMETER, 4, value)) for value in ("no", 1, None)),
    *(("parameters", but(PARAMETER, 5, value)) for value in ("1e-8", math.inf, True)),
    *(("parameters", but(PARAMETER, place, value)) for place in (6, 7) for value in ("1e-3", math.nan, False)),
    *(("uses", value) for value in (None, {}, "", [USE[:9]], [[*USE, 1]], [[]])),
    *(("uses", but(USE, 0, value)) for value in (1, -1, "0", True)),
    *(("uses", but(USE, number, 3)) for number in (1, 2, 3, 8, 9, 10)),
    *(("uses", but(USE, number, value)) for number in (4, 5) for value in (0, -1, 0.5, None)),
    *(("uses", but(USE, number, value)) for number in (6, 7, 11, 12) for value in (math.nan, "1", True)),
    *(("uses", but(USE, 9, value)) for value in ([1], [-1], ["0"])),
    *(("uses", but(USE, 14, value)) for value in (-1e-3, math.inf, None)),
    *(("uses", but(USE, 15, value)) for value in (3, None)),
    *(("uses", but(USE, 16, value)) for value in ("left", 0)),
    *(("uses", but(USE, 17, value)) for value in (None, [-1], [0.5])),
    *(("outside", value) for value in (None, [], "", {"fc": "2"}, {"fc": math.nan}, {"fc": None})),
    *(("notes", value) for value in (None, {}, "note", [3])),
    *(("seconds", value) for value in (None, "1.5", "nan", True, math.nan, math.inf, 10**400)),
]


CONTRADICTIONS = [
    ({"sites": [SITE, SITE]}, "sites: 'fc' is there twice"),
    ({"rows": [ROW, ROW]}, r"rows\[1\]: its site has a value of this quantity at this step already"),
    ({"rows": [[0, 3, "activation", 1.0, "ok"]]}, "rows: go to step 3, and the settings say 2"),
    ({"losses": [1.0] * 4}, "losses: go to step 3, and the settings say 2"),
    ({"rows": [[1, 0, "activation", 1.0, "ok"]]}, "rows: name the site 1, and 1 are listed"),
    ({"uses": [[*USE[:9], [1], ""]]}, "uses: name the site 1, and 1 are listed"),
    ({"width": 2**53 + 1}, f"width: expected an integer from 1 to {2**53}, got {2**53 + 1}"),
    ({"seed": 2**63}, f"seed: expected an integer from 0 to {2**63 - 1}"),
    ({"label": "x" * (2**20 + 1)}, "label: expected a text of at most 1048576 characters, got 'xxx"),
    ({"settings": {"steps": "2", "batch": "x" * (2**20 + 1)}}, "settings.batch: expected a text of at most 1048576"),
    ({"sites": [["fc", 0, "module", [2**62, 4], "float32"]]}, r"sites\[0\]\[3\]: expected the shape of a tensor"),
    ({"notes": ["x"] * 10_001}, "notes: expected at most 10000 items"),
    ({"probe": "batch"}, "has 'probe', which this version does not know: a later one may"),
]


@pytest.mark.parametrize(("changes", "why"), CONTRADICTIONS, ids=lambda value: str(value)[:40])
def test_what_no_run_leaves_behind_is_refused(data: dict, changes: dict, why: str):
    with pytest.raises(Wrong, match=why):
        read_run({**data, **changes})


def test_rows_of_a_diagnosis_may_be_of_later_steps(data: dict):
    data |= {"settings": {"steps": "0"}, "losses": [1.0], "rows": [[0, 2, "own_update", 1.0, "ok"]]}
    assert read_run(data).rows[0].step == 2


def test_the_place_of_what_is_wrong_is_told(data: dict):
    data["rows"][3][3] = -1.0
    with pytest.raises(Wrong, match=r"^rows\[3\]: expected a finite number of 0 or more, got -1\.0$"):
        read_run(data)


def test_a_record_names_every_field_that_it_writes():
    assert list(RUN) == list(RunRecord(RunKey("SP", 8, 0)).to_json())


@pytest.mark.parametrize(("field", "value"), WRONG, ids=lambda value: repr(value)[:40])
def test_a_field_of_another_type_is_refused(data: dict, field: str, value: object):
    data[field] = value
    with pytest.raises(Wrong, match=rf"^{field}(\[\d+\])*(\.\w+)?: \w+"):
        read_run(data)


def test_a_parameter_that_was_written_without_eps_or_a_first_update_has_none(data: dict):
    data["parameters"] = [PARAMETER[:5], PARAMETER[:6], PARAMETER]
    found = [(info.eps, info.gradient, info.update) for info in read_run(data).parameters]
    assert found == [(None, None, None), (1e-8, None, None), (1e-8, 1e-3, 1e-4)]


def test_a_use_that_was_written_without_the_scalars_around_it_has_none(data: dict):
    data |= {"sites": [SITE], "uses": [USE[:11], USE]}
    assert [(use.upstream, use.outward) for use in read_run(data).uses] == [(1.0, 1.0), (2.0, 1.0)]


def test_a_use_that_was_written_without_its_rounding_error_has_the_usual_one(data: dict):
    data |= {"sites": [SITE], "uses": [USE[:14], USE]}
    assert [use.rounding for use in read_run(data).uses] == [1e-5, 1e-3]


def test_a_use_that_was_written_without_the_place_of_a_multiplier_has_none(data: dict):
    data |= {"sites": [SITE], "uses": [USE[:15], USE]}
    assert [(use.module, use.side.value, use.channels[:1]) for use in read_run(data).uses] == [
        ("", "", ()),
        ("fc", "output", (2,)),
    ]


def test_the_table_of_wrong_fields_changes_a_record_that_is_read(data: dict):
    data |= {"sites": [SITE], "rows": [ROW], "parameters": [PARAMETER], "uses": [USE]}
    assert read_run(data).to_json() == data


@pytest.mark.parametrize("whole", [[], "record", 3, None], ids=repr)
def test_data_that_is_no_mapping_is_refused(whole: object):
    with pytest.raises(Wrong, match="expected a mapping, got"):
        read_run(whole)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 2**50) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=4,
)


def places(value: object, path: tuple = ()) -> list[tuple]:
    """The path of everything inside nested lists and mappings."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, item in items for place in [(*path, key), *places(item, (*path, key))]]


@settings(max_examples=200, deadline=None)
@given(records(), st.data())
def test_a_changed_value_is_refused_or_kept_never_turned_into_another(record: RunRecord, draw: st.DataObject):
    changed = copy.deepcopy(record.to_json())
    *path, last = draw.draw(st.sampled_from(places(changed)))
    parent = changed
    for key in path:
        parent = parent[key]
    parent[last] = draw.draw(json_values)
    with contextlib.suppress(Wrong):
        assert read_run(changed).to_json() == changed


@pytest.mark.parametrize(
    ("value", "status"),
    [
        (1.0, Status.OK),
        (-1.0, Status.OK),
        (sys.float_info.max, Status.OK),
        (5e-324, Status.OK),
        (0.0, Status.ZERO),
        (-0.0, Status.ZERO),
        (math.inf, Status.INF),
        (-math.inf, Status.INF),
        (math.nan, Status.NAN),
    ],
)
def test_status_of_a_value(value: float, status: Status):
    assert status_of(value) is status
    assert status.not_finite is not math.isfinite(value)


def test_only_nan_and_inf_are_not_finite():
    assert [status for status in Status if status.not_finite] == [Status.NAN, Status.INF]


@pytest.mark.parametrize(("one", "other"), [("\u00b5P", "\u03bcP"), ("e\u0301", "\u00e9"), ("\ufb01t", "fit")])
def test_labels_that_look_the_same_are_the_same(one: str, other: str):
    assert one != other
    assert same_label(one) == same_label(other)


@pytest.mark.parametrize(("one", "other"), [("SP", "sp"), ("SP", "SP "), ("\u00b5P", "mP"), ("a/b", "a-b")])
def test_labels_that_look_different_are_different(one: str, other: str):
    assert same_label(one) != same_label(other)


@given(st.text())
def test_same_label_is_idempotent(label: str):
    assert same_label(same_label(label)) == same_label(label)


def test_a_run_key_names_label_width_and_seed():
    assert str(RunKey("SP", 64, 2)) == "SP, width 64, seed 2"
