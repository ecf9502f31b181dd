"""The tidy table: its columns, the data-flow order, and what was seen where."""

from __future__ import annotations

import math

import pandas as pd
import pytest
from conftest import power_law_records

from coordcheck.analysis.measurements import COLUMNS, growing_outputs, judged, measurements, not_finite, partial_layers
from coordcheck.runs.records import Row, RunKey, RunRecord, Site
from coordcheck.runs.words import Kind, Quantity, Status


def run(layers: list[str], width: int = 64, seed: int = 0, values: list[float | None] | None = None) -> RunRecord:
    """A run that saw these layers, in this order, at initialisation; a value of None is NaN."""
    record = RunRecord(RunKey("model", width, seed))
    for order, (layer, value) in enumerate(zip(layers, values or [1.0] * len(layers), strict=True)):
        record.sites.append(Site(layer, order, Kind.MODULE, (4, width), "float32"))
        record.rows.append(Row(order, 0, Quantity.ACTIVATION, value, Status.NAN if value is None else Status.OK))
    return record


def test_one_row_per_measured_scale():
    table = measurements(power_law_records({"fc": {"activation": 0.5, "change": 1.0}}, widths=(4, 16), seeds=2))
    assert tuple(table.columns) == COLUMNS
    assert len(table) == 2 * 2 * (3 + 2)
    assert table.iloc[-1].to_dict() == {
        **{"label": "model", "width": 16, "seed": 1, "step": 2, "layer": "fc", "order": 0.0, "kind": "module"},
        **{"quantity": "change", "value": 16.0, "status": "ok"},
    }


def test_numbers_are_numbers():
    table = measurements([run(["fc"])])
    kinds = {name: table[name].dtype.kind for name in ("width", "seed", "step", "order", "value")}
    assert kinds == {"width": "i", "seed": "i", "step": "i", "order": "f", "value": "f"}


def test_order_is_the_median_over_the_runs():
    table = measurements([run(["a", "b", "c"], seed=0), run(["a", "b", "c"], seed=1), run(["c", "a", "b"], seed=2)])
    assert table.groupby("layer")["order"].agg(set).to_dict() == {"a": {0.0}, "b": {1.0}, "c": {2.0}}


def test_order_is_taken_within_a_label():
    other = run(["b", "a"])
    other.key = RunKey("other", 64, 0)
    table = measurements([run(["a", "b"]), other])
    assert table["order"].tolist() == [0.0, 1.0, 0.0, 1.0]


@pytest.mark.parametrize("status", [Status.NAN, Status.INF, Status.EMPTY, Status.NOT_CALLED])
def test_a_scale_without_a_value_keeps_its_row(status):
    record = run(["fc"])
    record.rows = [Row(0, 0, Quantity.ACTIVATION, None, status)]
    [row] = measurements([record]).to_dict("records")
    assert math.isnan(row["value"])
    assert row["status"] == status.value


@pytest.mark.parametrize("records", [[], [RunRecord(RunKey("model", 64, 0))]], ids=["no runs", "no rows"])
def test_nothing_measured_is_an_empty_table(records):
    table = measurements(records)
    assert tuple(table.columns) == COLUMNS
    assert len(table) == 0


def test_a_run_without_rows_adds_none():
    assert len(measurements([RunRecord(RunKey("model", 32, 0)), run(["fc"])])) == 1


def test_a_passthrough_is_not_judged():
    table = measurements([run(["fc", "net"])])
    table.loc[table["layer"] == "net", "kind"] = Kind.PASSTHROUGH.value
    assert judged(table)["layer"].tolist() == ["fc"]


@pytest.mark.fault(28)
def test_layers_seen_at_some_widths_only():
    records = [
        run(["fc", "skip"] if width != 64 else ["fc"], width, seed) for width in (128, 64, 32) for seed in (0, 1)
    ]
    assert partial_layers(measurements(records)) == {("model", "skip"): [32, 128]}


def test_partial_layers_are_held_against_the_widths_of_their_own_label():
    wide = power_law_records({"fc": {"activation": 0.0}}, label="wide", widths=(64, 128, 256))
    narrow = power_law_records({"fc": {"activation": 0.0}}, label="narrow", widths=(64, 128))
    assert partial_layers(measurements(wide + narrow)) == {}


def test_an_output_grows_when_its_shape_depends_on_the_width():
    records = power_law_records(
        {"fc": {"activation": 0.0}, "out": {"activation": 0.0}},
        shape=lambda layer, width: (4, 10) if layer == "out" else (4, width),
    )
    assert growing_outputs(records) == {("model", "fc"): True, ("model", "out"): False}


def test_the_first_not_finite_value_of_each_run():
    lost = run(["a", "b", "c"], 128, 0, [1.0, None, None])
    lost.rows.append(Row(0, 1, Quantity.ACTIVATION, None, Status.INF))
    late = run(["a", "b", "c"], 128, 1)
    late.rows += [Row(2, 2, Quantity.CHANGE, None, Status.NAN), Row(0, 3, Quantity.CHANGE, None, Status.NAN)]
    found = not_finite(measurements([run(["a", "b", "c"]), lost, late]))
    assert found[["layer", "step", "status", "widths", "runs"]].to_numpy().tolist() == [
        ["b", 0, "nan", [128], 1],
        ["c", 2, "nan", [128], 1],
    ]


def test_a_finite_run_has_no_first_not_finite_value():
    assert isinstance(not_finite(measurements([run(["a"])])), pd.DataFrame)
    assert not_finite(measurements([run(["a"])])).empty


def test_where_nothing_grows_nothing_is_taken_for_a_readout():
    records = power_law_records(
        {"a": {"activation": 0.0}, "out": {"activation": 0.0}}, shape=lambda layer, width: (4, 10)
    )
    assert set(growing_outputs(records).values()) == {True}
