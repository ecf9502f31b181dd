"""Slopes: exact on power laws, equal to scipy's where scipy has an answer, honest about their error."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from conftest import power_law_records
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from coordcheck import CoordCheckError, fit_slope
from coordcheck.analysis.measurements import measurements
from coordcheck.analysis.slopes import fit_slopes

WIDTHS = (64, 128, 256, 512)
X = np.log2(WIDTHS)

exponents = st.floats(-2, 2)
width_sets = st.sets(st.integers(1, 4096), min_size=3, max_size=8).map(sorted)
intercepts = st.lists(st.floats(-10, 10), min_size=1, max_size=3)


def tidy(logs: NDArray[np.float64], widths: tuple[int, ...] = WIDTHS) -> pd.DataFrame:
    """The tidy table of log2 scales given as (layer, seed, width); NaN where a run is missing."""
    layer, seed, width = (index.ravel() for index in np.indices(logs.shape))
    table = pd.DataFrame(
        {
            "label": "model",
            "width": np.asarray(widths)[width],
            "seed": seed,
            "step": 1,
            "layer": [f"layer {number:05d}" for number in layer],
            "order": layer.astype(float),
            "kind": "module",
            "quantity": "change",
            "value": np.exp2(logs.ravel()),
            "status": "ok",
        }
    )
    return table[table["value"].notna()]


def noisy(layers: int, seeds: int, slope: float = 0.0, sd: float = 0.3) -> NDArray[np.float64]:
    """Power laws with noise, and an intercept per layer and seed: (layer, seed, width) log2 scales."""
    random = np.random.default_rng(layers + seeds)
    level = random.normal(size=(layers, seeds, 1))
    return level + slope * X + random.normal(scale=sd, size=(layers, seeds, len(X)))


def regression(logs: NDArray[np.float64]) -> tuple[float, float]:
    """Slope and standard error by least squares on a design matrix with one column per seed."""
    seed, width = np.nonzero(np.isfinite(logs))
    design = np.column_stack([X[width], *(seed == number for number in np.unique(seed))])
    y = logs[seed, width]
    solution, residual, *_ = np.linalg.lstsq(design, y, rcond=None)
    covariance = np.linalg.inv(design.T @ design) * residual[0] / (len(y) - design.shape[1])
    return solution[0], math.sqrt(covariance[0, 0])


def law(exponent: float = 0.5, **options: object) -> pd.DataFrame:
    """The tidy table of one layer at initialisation, an exact power law."""
    return measurements(
        power_law_records({"fc": {"activation": exponent}}, steps=0, **{"widths": WIDTHS, "seeds": 1, **options})
    )


def spoil(table: pd.DataFrame, widths: set[int], status: str) -> pd.DataFrame:
    """The table with scales at some widths that could not be measured."""
    found = table["width"].isin(widths)
    return table.assign(
        value=table["value"].mask(found, 0.0 if status == "zero" else math.nan),
        status=table["status"].mask(found, status),
    )


@settings(deadline=None)
@given(exponent=exponents, widths=width_sets, levels=intercepts)
def test_fit_slope_is_exact_on_power_laws(exponent, widths, levels):
    scales = [[2.0**level * width**exponent for width in widths] for level in levels]
    fit = fit_slope(widths, scales)
    assert (fit.slope, fit.stderr, fit.last_pair) == pytest.approx((exponent, 0, exponent), abs=1e-8)
    assert (fit.seeds, fit.widths, fit.power_law) == (len(levels), len(widths), True)


@settings(deadline=None, max_examples=25)
@given(exponent=exponents, widths=width_sets, levels=intercepts)
def test_fit_slopes_is_exact_on_power_laws(exponent, widths, levels):
    logs = np.add.outer(levels, exponent * np.log2(widths))[None]
    found = fit_slopes(tidy(logs, tuple(widths))).iloc[0]
    assert (found["slope"], found["last_pair"]) == pytest.approx((exponent, exponent), abs=1e-8)
    assert found["growth"] == pytest.approx((widths[-1] / widths[0]) ** exponent)
    assert (found["seeds"], found["widths"], found["status"]) == (len(levels), len(widths), "ok")


def test_the_order_of_the_widths_does_not_matter():
    scales = np.exp2(noisy(1, 3)[0])
    assert fit_slope(WIDTHS[::-1], scales[:, ::-1]) == fit_slope(WIDTHS, scales)


def test_one_seed_is_ordinary_least_squares():
    for logs in noisy(20, 1)[:, 0]:
        fit, expected = fit_slope(WIDTHS, np.exp2(logs)), stats.linregress(X, logs)
        assert (fit.slope, fit.stderr) == pytest.approx((expected.slope, expected.stderr))
        interval = stats.t.interval(0.95, len(X) - 2, expected.slope, expected.stderr)
        assert (fit.low, fit.high) == pytest.approx(interval)


def test_on_balanced_data_the_slope_is_the_mean_over_the_seeds():
    for logs in noisy(20, 4):
        expected = np.mean([stats.linregress(X, one).slope for one in logs])
        assert fit_slope(WIDTHS, np.exp2(logs)).slope == pytest.approx(expected)


def test_the_slope_does_not_depend_on_the_level_of_a_seed():
    logs = noisy(1, 3)[0]
    moved = fit_slope(WIDTHS, np.exp2(logs + np.array([[10], [0], [-10]])))
    assert moved.slope == pytest.approx(fit_slope(WIDTHS, np.exp2(logs)).slope)
    assert moved.stderr == pytest.approx(fit_slope(WIDTHS, np.exp2(logs)).stderr)


def test_the_table_is_fitted_as_each_of_its_groups():
    logs = noisy(30, 3)
    found = fit_slopes(tidy(logs))
    fits = pd.DataFrame([vars(fit_slope(WIDTHS, np.exp2(one))) for one in logs])
    pd.testing.assert_frame_equal(found[list(fits.columns)], fits)


def test_unbalanced_seeds_are_fitted_with_an_intercept_each():
    logs = noisy(30, 3, slope=0.5)
    logs[:, 1, 3] = np.nan
    logs[:, 2, :2] = np.nan
    found = fit_slopes(tidy(logs))[["slope", "stderr"]].to_numpy()
    assert found == pytest.approx(np.array([regression(one) for one in logs]))


def test_a_seed_with_one_width_is_not_counted():
    logs = noisy(1, 3)
    logs[0, 2, 1:] = np.nan
    found = fit_slopes(tidy(logs)).iloc[0]
    assert found["seeds"] == 2
    assert (found["slope"], found["stderr"]) == pytest.approx(regression(logs[0, :2]))


@pytest.mark.parametrize("missing", [0.0, 0.25])
@pytest.mark.parametrize("seeds", [1, 3])
def test_the_interval_covers_the_truth_95_times_in_100(seeds, missing):
    logs = noisy(4000, seeds, slope=0.5)
    logs[np.random.default_rng(0).random(logs.shape) < missing] = np.nan
    found = fit_slopes(tidy(logs))
    found = found[found["status"] == "ok"]
    covered = (found["low"] <= 0.5) & (found["high"] >= 0.5)
    assert len(found) > 2500
    assert 0.93 < covered.mean() < 0.97


def test_missing_runs_widen_the_interval():
    logs = noisy(500, 3)
    complete = fit_slopes(tidy(logs))
    logs[:, 1:, 2] = np.nan
    fewer = fit_slopes(tidy(logs))
    assert (fewer["high"] - fewer["low"]).median() > (complete["high"] - complete["low"]).median()


@pytest.mark.parametrize(
    ("bend", "power_law"),
    [(0.0, True), (0.25, True), (0.4, False), (-0.4, False)],
)
def test_power_law_compares_the_last_pair_with_the_fit(bend, power_law):
    logs = 0.5 * X + [0, 0, 0, bend]
    fit = fit_slope(WIDTHS, np.exp2(logs))
    assert fit.last_pair == pytest.approx(0.5 + bend)
    assert fit.slope == pytest.approx(0.5 + 0.3 * bend)
    assert fit.power_law is power_law
    assert fit_slopes(tidy(logs[None, None]))["power_law"].tolist() == [power_law]


def test_the_last_pair_is_taken_from_the_seeds_that_have_both():
    logs = np.stack([0.5 * X, 0.5 * X + 7])[None]
    logs[0, 1, 3] = np.nan
    assert fit_slopes(tidy(logs)).iloc[0]["last_pair"] == pytest.approx(0.5)


def test_an_exact_power_law_is_one_though_no_seed_has_the_two_widest_widths():
    logs = np.stack([0.5 * X, 0.5 * X])[None]
    logs[0, 0, 3] = logs[0, 1, 2] = np.nan
    found = fit_slopes(tidy(logs)).iloc[0]
    assert found["slope"] == pytest.approx(0.5)
    assert found["power_law"]


@pytest.mark.parametrize("status", ["zero", "nan", "inf", "moved input"])
def test_scales_without_a_logarithm_are_left_out(status):
    found = fit_slopes(spoil(law(), {128}, status)).iloc[0]
    assert (found["slope"], found["widths"], found["status"]) == (pytest.approx(0.5), 3, "ok")


@pytest.mark.parametrize(
    ("widths", "status", "not_finite"),
    [(set(WIDTHS), "zero", 0), ({256, 512}, "nan", 2), ({128, 256, 512}, "inf", 3), (set(WIDTHS), "not called", 0)],
)
def test_too_many_lost_scales_leave_a_row_with_the_reason(widths, status, not_finite):
    found = fit_slopes(spoil(law(), widths, status)).iloc[0]
    assert found[["slope", "stderr", "low", "high", "last_pair"]].isna().all()
    assert not found["power_law"]
    assert (found["status"], found["not_finite"]) == (status, not_finite)


def test_the_most_frequent_reason_is_given():
    table = spoil(spoil(law(), {128}, "inf"), {256, 512}, "nan")
    found = fit_slopes(table).iloc[0]
    assert (found["status"], found["not_finite"]) == ("nan", 3)


@pytest.mark.parametrize("widths", [(64,), (64, 1024)])
def test_fewer_than_three_widths_have_no_slope(widths):
    found = fit_slopes(law(widths=widths)).iloc[0]
    assert math.isnan(found["slope"])
    assert (found["widths"], found["status"]) == (len(widths) if len(widths) > 1 else 0, "too few widths")


def test_growth_is_the_geometric_mean_over_the_seeds():
    logs = np.array([[[0, 9, 9, 1], [0, 5, 5, 3]]], dtype=float)
    assert fit_slopes(tidy(logs)).iloc[0]["growth"] == pytest.approx(4.0)


def test_growth_needs_only_the_seeds_that_have_both_ends():
    logs = np.stack([0.5 * X] * 3)[None]
    logs[0, 2, 3] = np.nan
    assert fit_slopes(tidy(logs)).iloc[0]["growth"] == pytest.approx(8**0.5)


def test_passthrough_rows_are_not_fitted():
    table = law()
    assert fit_slopes(pd.concat([table, table.assign(layer="net", kind="passthrough")]))["layer"].tolist() == ["fc"]


def test_rows_come_by_label_quantity_data_flow_and_step():
    flow = {"z": {"activation": 0.0, "change": 0.0}, "a": {"activation": 0.0, "change": 0.0}}
    records = power_law_records(flow, label="SP", steps=1) + power_law_records(flow, label="A", steps=1)
    found = fit_slopes(measurements(records).sample(frac=1, random_state=0).sort_values("label", ascending=False))
    assert found[["label", "quantity", "layer", "step"]].to_numpy().tolist() == [
        [label, quantity, layer, step]
        for label in ("SP", "A")
        for quantity, steps in (("activation", (0, 1)), ("change", (1,)))
        for layer in ("z", "a")
        for step in steps
    ]
    assert found.index.tolist() == list(range(len(found)))


def test_the_columns_are_those_documented():
    assert set(fit_slopes(law()).columns) == {
        *("label", "layer", "quantity", "step", "order", "slope", "stderr", "low", "high", "last_pair", "power_law"),
        *("seeds", "widths", "growth", "not_finite", "zeros", "status"),
    }


def test_an_empty_table_has_no_slopes():
    found = fit_slopes(measurements([]))
    assert len(found) == 0
    assert {"label", "layer", "slope", "status"} <= set(found.columns)


@pytest.mark.parametrize(
    ("widths", "scales", "message"),
    [
        ([], [], r"need at least 3 distinct widths to fit a slope, got 0"),
        ([64, 128], [1, 1], r"need at least 3 distinct widths to fit a slope, got 2 \(64, 128\)\. Pass widths="),
        ([64, 64, 128], [1, 1, 1], r"got 2 \(64, 128\)"),
        ([64, 64, 128, 256], [1, 1, 1, 1], r"a width is given twice"),
        ([64, 128, 256], [1, 2], r"got 3 widths and scales of shape \(1, 2\); give one scale per width"),
        ([64, 128, 256], [[1], [2], [3]], r"got 3 widths and scales of shape \(3, 1\)"),
        ([64, 128, 256], [1, 0, 1], r"the scale at width 128 \(seed 0\) is 0; only positive, finite"),
        ([64, 128, 256], [[1, 1, 1], [1, 1, -2]], r"the scale at width 256 \(seed 1\) is -2"),
        ([256, 128, 64], [1, 1, math.nan], r"the scale at width 64 \(seed 0\) is nan"),
        ([64, 128, 256], [math.inf, 1, 1], r"the scale at width 64 \(seed 0\) is inf"),
        ([0, 128, 256], [1, 1, 1], r"positive"),
        ([-64, 128, 256], [1, 1, 1], r"positive"),
    ],
)
def test_fit_slope_refuses_what_has_no_slope(widths, scales, message):
    with pytest.raises(CoordCheckError, match=message):
        fit_slope(widths, scales)
