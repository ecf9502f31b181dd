"""Verdicts: every word from a synthetic power law, the three-valued rule at its edges, and both error rates."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from conftest import power_law_records
from hypothesis import given
from hypothesis import strategies as st

from coordcheck.analysis.judging import judge
from coordcheck.analysis.measurements import growing_outputs, measurements
from coordcheck.analysis.slopes import fit_slopes
from coordcheck.analysis.verdicts import Answer, Evidence, Verdict, compare, label_status, summary
from coordcheck.runs.words import Quantity

WIDTHS = (64, 128, 256, 512)
NEVER = -math.inf  # as an exponent, this makes a scale that is exactly zero

Noise = Callable[[int, int, str], float]


def normal_noise(sd: float) -> Noise:
    """Noise in log2, drawn anew for every scale."""
    random = np.random.default_rng(0)
    return lambda width, seed, layer: random.normal(scale=sd)


def nan_at(width: int) -> Noise:
    return lambda found, seed, layer: math.nan if found == width else 0.0


def verdict_of(activation: float, change: float | None, **options: object) -> pd.Series:
    """The verdict on one layer named "fc" whose output grows with the width."""
    exponents = {"activation": activation} | ({} if change is None else {"change": change})
    records = power_law_records({"fc": exponents}, **{"widths": WIDTHS, **options})
    return judge(fit_slopes(measurements(records)), growing_outputs(records)).iloc[0]


def readout_verdict(activation: float, change: float) -> pd.Series:
    """The verdict on a layer with a fixed number of coordinates, behind one whose output grows."""
    layers = {"out": {"activation": activation, "change": change}, "fc": {"activation": 0.0, "change": 0.0}}
    records = power_law_records(
        layers, widths=WIDTHS, shape=lambda layer, width: (4, 10) if layer == "out" else (4, width)
    )
    return judge(fit_slopes(measurements(records)), growing_outputs(records)).iloc[0]


def test_a_layer_of_integers_is_not_compared_and_keeps_no_label_from_being_ok():
    layers = {"fc": {"activation": 0.0, "change": 0.0}, "chosen": {"activation": 0.0}}
    records = power_law_records(layers, widths=WIDTHS)
    table = measurements(records)
    table.loc[table["layer"] == "chosen", ["value", "status"]] = [math.nan, "integer"]
    verdicts = judge(fit_slopes(table), growing_outputs(records))
    assert dict(zip(verdicts["layer"], verdicts["verdict"], strict=True)) == {"fc": "ok", "chosen": "not compared"}
    assert label_status(verdicts) == {"model": Verdict.OK}


def verdict_by_step(exponents: dict[int, float]) -> pd.Series:
    """The verdict on a layer whose change has these exponents by step, and 0 at the others."""
    steps = max(exponents)
    table = measurements(power_law_records({"fc": {"activation": 0.0, "change": 0.0}}, widths=WIDTHS, steps=steps))
    for step, exponent in exponents.items():
        found = (table["quantity"] == "change") & (table["step"] == step)
        table.loc[found, "value"] = table["width"].astype(float) ** exponent
        table.loc[found, "status"] = "zero" if exponent == NEVER else "ok"
    return judge(fit_slopes(table), {("model", "fc"): True}).iloc[0]


def evidence(slope: float, half: float = 0.0) -> Evidence:
    return Evidence(Quantity.CHANGE, 1, slope, half / 2, slope - half, slope + half, 1.0, True)


@pytest.mark.parametrize(
    ("activation", "change", "options", "word", "quantity", "step"),
    [
        (0.0, 0.0, {}, "ok", "change", 1),
        (0.2, -0.2, {}, "ok", "change", 1),
        (0.0, None, {}, "undecided", None, -1),
        (0.0, 0.0, {"steps": 0}, "undecided", None, -1),
        (0.0, 0.5, {}, "blows up", "change", 1),
        (0.0, -0.5, {}, "vanishes", "change", 1),
        (0.5, 0.0, {}, "initialised too large", "activation", 0),
        (-0.5, 0.0, {}, "initialised too small", "activation", 0),
        (0.5, 1.0, {}, "initialised too large", "activation", 0),
        (-0.5, 0.5, {}, "blows up", "change", 1),
        (0.0, NEVER, {}, "frozen", "activation", 0),
        (NEVER, 0.0, {}, "ok", "change", 1),
        (NEVER, 0.5, {}, "blows up", "change", 1),
        (0.0, 0.0, {"noise": normal_noise(2.0)}, "undecided", "activation", 0),
        (0.5, 0.0, {"widths": (64, 1024)}, "undecided", None, -1),
        (NEVER, NEVER, {}, "frozen", None, -1),
        (0.0, 0.0, {"noise": nan_at(512)}, "not finite", None, -1),
        (1.0, 0.0, {"noise": nan_at(64)}, "not finite", None, -1),
        (0.0, 0.0, {"noise": lambda width, seed, layer: math.inf * (seed == 2)}, "not finite", None, -1),
    ],
)
def test_every_word(activation, change, options, word, quantity, step):
    found = verdict_of(activation, change, **options)
    assert (found["verdict"], found["step"]) == (word, step)
    assert found["quantity"] == quantity or (quantity is None and pd.isna(found["quantity"]))


@pytest.mark.parametrize(
    ("options", "explanation"),
    [
        ({"activation": 0.5, "change": 0.0}, "scale at initialisation ~ m^0.50 ± 0.00"),
        ({"activation": 0.0, "change": 0.5}, "change at t=1 ~ m^0.50 ± 0.00"),
        ({"activation": 0.0, "change": 0.0}, "change at t=1 ~ m^0.00 ± 0.00"),
        ({"activation": 0.0, "change": NEVER}, "its output never changed"),
        ({"activation": NEVER, "change": NEVER}, "its output never changed"),
        (
            {"activation": 0.0, "change": 0.0, "widths": (64, 128)},
            "its change in training has no slope: too few widths",
        ),
        (
            {"activation": 0.0, "change": 0.0, "noise": nan_at(64)},
            "NaN or Inf from t=0 on (before training)",
        ),
        (
            {"activation": 0.5, "change": 0.0, "noise": lambda width, seed, layer: 1.0 * (width == 512)},
            "scale at initialisation ~ m^0.80 ± 0.20; not a power law here",
        ),
    ],
)
def test_the_explanation_says_what_was_seen(options, explanation):
    assert verdict_of(**options)["explanation"] == explanation


def test_an_undecided_layer_says_what_to_do():
    assert (
        "does not tell whether it is within 0.25 of 0: add seeds, or a wider range of widths"
        in (verdict_of(0.0, 0.0, noise=normal_noise(2.0))["explanation"])
    )


@pytest.mark.parametrize(
    ("widths", "word"),
    [
        (set(), "ok"),
        ({64}, "undecided"),
        ({64, 128}, "undecided"),
        ({256, 512}, "undecided"),
        ({64, 128, 256}, "undecided"),
    ],
)
def test_a_layer_that_moved_at_some_widths_is_not_frozen(widths, word):
    table = measurements(power_law_records({"fc": {"activation": 0.0, "change": 0.0}}, widths=WIDTHS))
    unmoved = (table["quantity"] == "change") & table["width"].isin(widths)
    table.loc[unmoved, ["value", "status"]] = [0.0, "zero"]
    assert judge(fit_slopes(table), {}).iloc[0]["verdict"] == word


@pytest.mark.parametrize(
    ("slope", "half", "answer"),
    [
        (0.0, 0.0, Answer.OK),
        (0.2, 0.04, Answer.OK),
        (0.2, 0.06, Answer.UNDECIDED),
        (0.3, 0.06, Answer.UNDECIDED),
        (0.3, 0.04, Answer.GROWS),
        (0.125, 0.125, Answer.UNDECIDED),
        (0.375, 0.125, Answer.UNDECIDED),
        (0.0, 0.3, Answer.UNDECIDED),
        (-0.2, 0.04, Answer.OK),
        (-0.2, 0.06, Answer.UNDECIDED),
        (-0.3, 0.06, Answer.UNDECIDED),
        (-0.3, 0.04, Answer.SHRINKS),
        (math.nan, math.nan, Answer.UNDECIDED),
        (0.0, math.nan, Answer.UNDECIDED),
    ],
)
def test_the_three_valued_rule(slope, half, answer):
    assert compare(evidence(slope, half), expected=0.0, tolerance=0.25) is answer
    assert compare(evidence(slope + 1, half), expected=1.0, tolerance=0.25) is answer


@pytest.mark.parametrize(
    ("slope", "allowed", "answer"),
    [
        (-0.5, 0.5, Answer.OK),
        (-0.7, 0.5, Answer.OK),
        (-0.8, 0.5, Answer.SHRINKS),
        (-9.0, math.inf, Answer.OK),
        (0.2, math.inf, Answer.OK),
        (0.3, math.inf, Answer.GROWS),
    ],
)
def test_shrinking_may_be_allowed_and_growth_never(slope, allowed, answer):
    assert compare(evidence(slope, 0.01), 0.0, 0.25, allowed) is answer


@given(slope=st.floats(-2, 2), half=st.floats(0, 1), tolerance=st.floats(0.01, 1))
def test_the_rule_is_the_documented_formula(slope, half, tolerance):
    answer = compare(evidence(slope, half), 0.0, tolerance)
    assert (answer is Answer.OK) == (max(slope + half, half - slope) < tolerance)
    assert (answer in (Answer.GROWS, Answer.SHRINKS)) == (max(slope - half, -slope - half) > tolerance)


@pytest.mark.parametrize(
    ("activation", "change", "word"),
    [
        (-0.5, 0.0, "ok"),
        (-1.0, 0.0, "ok"),
        (-0.5, -0.4, "ok"),
        (0.0, -0.5, "ok"),
        (0.0, -1.0, "vanishes"),
        (-0.5, -1.0, "vanishes"),
        (0.5, 0.0, "initialised too large"),
        (-0.5, 0.5, "blows up"),
    ],
)
def test_an_output_of_fixed_size_may_shrink_at_first(activation, change, word):
    assert readout_verdict(activation, change)["verdict"] == word


@pytest.mark.parametrize(
    ("activation", "change", "transient"), [(-0.5, 0.0, True), (0.0, -0.5, True), (0.0, 0.0, False)]
)
def test_a_shrinking_readout_is_said_to_be_transient(activation, change, transient):
    assert ("(transient)" in readout_verdict(activation, change)["explanation"]) is transient


def test_a_layer_that_moves_late_is_judged_where_it_first_moves():
    found = verdict_by_step({1: NEVER, 2: 0.5, 3: 0.0})
    assert (found["verdict"], found["step"], found["slope"]) == ("blows up", 2, pytest.approx(0.5))


def test_a_scale_after_training_is_not_judged_as_initialisation():
    table = measurements(power_law_records({"fc": {"activation": 0.5, "change": 0.0}}, widths=WIDTHS))
    table.loc[(table["quantity"] == "activation") & (table["step"] == 0), ["value", "status"]] = [0.0, "zero"]
    found = judge(fit_slopes(table), {}).iloc[0]
    assert (found["verdict"], found["quantity"]) == ("ok", "change")


def test_growth_at_a_later_step_is_reported():
    found = verdict_by_step({4: 0.5})
    assert (found["verdict"], found["step"], found["growth"]) == ("blows up", 4, pytest.approx(8**0.5))


def test_shrinking_at_a_later_step_is_no_violation():
    assert verdict_by_step({4: -0.5})["verdict"] == "ok"


@pytest.mark.parametrize(
    ("exponents", "word"),
    [
        ({1: -0.5, 3: 0.0}, "ok"),
        ({1: -0.5, 2: -0.5, 3: 0.0}, "ok"),
        ({1: -0.5, 2: -0.5, 3: -0.5}, "vanishes"),
        ({1: -0.5, 2: 0.0, 3: -0.5}, "vanishes"),
        ({1: -0.5, 2: 0.0, 3: 0.5}, "blows up"),
    ],
)
def test_shrinking_that_fades_by_the_last_step_is_transient(exponents, word):
    found = verdict_by_step(exponents)
    assert found["verdict"] == word
    assert ("(transient)" in found["explanation"]) is (word == "ok")


def test_the_first_violated_step_is_the_evidence():
    assert verdict_by_step({2: 0.5, 3: 1.0})["step"] == 2


def test_a_layer_that_never_moved_is_frozen():
    assert verdict_by_step({1: NEVER, 2: NEVER})["verdict"] == "frozen"


@pytest.mark.parametrize(
    ("expect", "words"),
    [
        (None, ["blows up", "blows up", "ok"]),
        ({"blocks.*": 0.5}, ["ok", "ok", "ok"]),
        ({"*": 0.5}, ["ok", "ok", "vanishes"]),
        ({"*": 0.5, "out": 0.0}, ["ok", "ok", "ok"]),
        ({"out": 0.0, "*": 0.5}, ["ok", "ok", "vanishes"]),
        ({"blocks.1": 0.5}, ["blows up", "ok", "ok"]),
        ({"BLOCKS.*": 0.5}, ["blows up", "blows up", "ok"]),
    ],
)
def test_expect_maps_globs_to_exponents_and_later_entries_refine(expect, words):
    exponents = {"blocks.0": 0.5, "blocks.1": 0.5, "out": 0.0}
    records = power_law_records({layer: {"change": exponent} for layer, exponent in exponents.items()}, widths=WIDTHS)
    found = judge(fit_slopes(measurements(records)), {}, expect=expect)
    assert found["verdict"].tolist() == words


def test_the_expected_exponent_is_named_in_the_explanation():
    records = power_law_records({"fc": {"change": 1.0}}, widths=WIDTHS)
    found = judge(fit_slopes(measurements(records)), {}, expect={"fc": 0.5}).iloc[0]
    assert found["expected"] == 0.5
    assert found["explanation"] == "change at t=1 ~ m^1.00 ± 0.00; expected m^0.5"


@pytest.mark.parametrize(("tolerance", "word"), [(0.25, "ok"), (0.1, "blows up")])
def test_tolerance(tolerance, word):
    records = power_law_records({"fc": {"activation": 0.0, "change": 0.2}}, widths=WIDTHS)
    assert judge(fit_slopes(measurements(records)), {}, tolerance=tolerance).iloc[0]["verdict"] == word


def test_verdicts_come_in_data_flow_order():
    records = power_law_records({"z": {"activation": 0.0}, "a": {"activation": 0.0}, "m": {"activation": 0.0}})
    found = judge(fit_slopes(measurements(records)), growing_outputs(records))
    assert found["layer"].tolist() == ["z", "a", "m"]
    assert found["order"].tolist() == [0.0, 1.0, 2.0]


def test_nothing_measured_has_no_verdict():
    assert judge(fit_slopes(measurements([])), {}).empty


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ("ok ok", "ok"),
        ("ok frozen", "ok"),
        ("ok undecided", "undecided"),
        ("frozen frozen", "undecided"),
        ("undecided vanishes blows_up", "vanishes"),
        ("ok blows_up not_finite", "blows up"),
    ],
)
def test_the_status_of_a_label(words, status):
    verdicts = pd.DataFrame([{"label": "SP", "verdict": Verdict[word.upper()].value} for word in words.split()])
    assert label_status(verdicts) == {"SP": Verdict(status)}


def test_every_label_has_a_status_of_its_own():
    verdicts = pd.DataFrame({"label": ["SP", "µP", "SP"], "verdict": ["ok", "ok", "blows up"]})
    assert label_status(verdicts) == {"SP": Verdict.BLOWS_UP, "µP": Verdict.OK}


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("ok ok", "all 2 layers keep their scale"),
        ("ok blows_up", "1 of 2 layers blows up"),
        ("blows_up blows_up ok", "2 of 3 layers blow up"),
        ("vanishes vanishes", "2 of 2 layers vanish"),
        ("vanishes blows_up blows_up", "2 of 3 layers blow up, 1 vanishes"),
        ("too_large not_finite undecided", "1 of 3 layers initialised too large, 1 not finite"),
        ("ok undecided", "1 of 2 layers undecided"),
        ("undecided undecided", "2 of 2 layers undecided"),
        ("undecided frozen", "1 of 2 layers undecided"),
        ("frozen frozen", "nothing to judge: none of 2 layers moved"),
    ],
)
def test_summary(words, text):
    assert summary([Verdict[word.upper()] for word in words.split()]) == text


def noisy_layers(exponents: dict[str, float], layers: int, sd: float = 0.1) -> pd.DataFrame:
    """The verdicts of many layers with the same exponents and independent noise."""
    records = power_law_records(
        {f"layer {number:04d}": exponents for number in range(layers)}, widths=WIDTHS, steps=1, noise=normal_noise(sd)
    )
    return judge(fit_slopes(measurements(records)), growing_outputs(records))


def test_healthy_checks_of_20_layers_raise_at_most_one_false_alarm_in_100():
    verdicts = noisy_layers({"activation": 0.0, "change": 0.0}, layers=200 * 20)
    verdicts["label"] = np.repeat(np.arange(200), 20)
    alarms = [status.violated for status in label_status(verdicts).values()]
    assert len(alarms) == 200
    assert np.mean(alarms) <= 0.01


@pytest.mark.parametrize(
    ("faulty", "word"),
    [
        ({"activation": 0.5, "change": 0.0}, "initialised too large"),
        ({"activation": 0.0, "change": 0.5}, "blows up"),
        ({"activation": 0.0, "change": -0.5}, "vanishes"),
    ],
)
def test_a_slope_of_one_half_is_flagged_99_times_in_100(faulty, word):
    verdicts = noisy_layers(faulty, layers=200)
    assert len(verdicts) == 200
    assert (verdicts["verdict"] == word).mean() >= 0.99


def test_noise_too_large_to_tell_is_undecided_and_no_alarm():
    verdicts = noisy_layers({"activation": 0.0, "change": 0.0}, layers=200, sd=0.7)
    assert (verdicts["verdict"] == "undecided").mean() > 0.5
    assert verdicts["verdict"].isin(["ok", "undecided"]).mean() >= 0.99
