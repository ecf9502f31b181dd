from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from coordcheck.analysis.exponents import _sampled, exponents
from coordcheck.analysis.logs import Exponent
from coordcheck.analysis.logs import Logs as LogTable
from coordcheck.analysis.roles import UseAcrossWidths
from coordcheck.runs.words import Role, Through

WIDTHS = (64, 128, 256)


def use(name="w", role=Role.HIDDEN, *, degree=0.0, multiplier=0.0, fan_in=1.0, fan_out=1.0, **changed):
    """One use whose fans and multiplier are exact powers of the width."""
    fields = {
        "name": name,
        "parameter": name,
        "layer": name,
        "operation": "linear",
        "role": role,
        "fan_in": fan_in,
        "fan_out": fan_out,
        "largest_fan_out": 256,
        "degree": degree,
        "exact": True,
        "attends": (),
        "tied": False,
        "trained": True,
        "hidden": "",
        "multipliers": {width: float(width) ** multiplier for width in WIDTHS},
        "fan_ins": {width: round(width**fan_in) for width in WIDTHS},
        "fan_outs": {width: round(width**fan_out) for width in WIDTHS},
        "sizes": {width: round(width ** (fan_in + fan_out)) for width in WIDTHS},
        "rates": dict.fromkeys(WIDTHS, 1.0),
        "upstreams": dict.fromkeys(WIDTHS, 1.0),
        "through": Through.ITSELF,
        "outwards": dict.fromkeys(WIDTHS, 1.0),
        "roundings": dict.fromkeys(WIDTHS, 1e-5),
    }
    return UseAcrossWidths(**fields | changed)


def table(slopes, *, name="w", seeds=2, noise=0.0, constants=None):
    """Rows (quantity, step) -> exponent, as exact power laws times noise."""
    rng = np.random.default_rng(0)
    rows = [
        {
            "layer": name,
            "width": width,
            "seed": seed,
            "step": step,
            "quantity": quantity,
            "value": (constants or {}).get(quantity, 1.0) * width**slope * 2 ** (noise * rng.standard_normal()),
            "status": "ok",
        }
        for seed in range(seeds)
        for width in WIDTHS
        for (quantity, step), slope in slopes.items()
    ]
    return pd.DataFrame(rows)


# SP under Adam, a hidden matrix: init n^-1/2, learning rate constant, own update n^1
SP = {
    ("input", 0): 0.0,
    ("output", 0): 0.0,
    ("weight", 0): -0.5,
    ("gradient", 0): -0.5,
    ("weight_gradient", 0): -0.5,
    ("weight_update", 1): 0.0,
    ("own_update", 1): 1.0,
    ("inherited", 1): 0.5,
}


def test_the_formulas_on_exact_power_laws():
    found = exponents(table(SP), [use()])["w"]
    assert found.gain.value == pytest.approx(0)
    assert found.gain_weight.value == pytest.approx(0)
    assert found.response.value == pytest.approx(1)
    assert found.response_weight.value == pytest.approx(1)
    assert found.growth.value == pytest.approx(1)
    assert found.inherited.value == pytest.approx(0.5)
    assert found.alignment == pytest.approx(1)
    assert (found.step, found.moved, found.has_gradient, found.zero_init) == (1, True, True, False)


def test_a_degree_of_one_takes_the_gradient_out():
    # SP under SGD: update = rate * gradient ~ n^-1/2, own update n^1/2; the response is that of the rate alone: 1
    sgd = SP | {("weight_update", 1): -0.5, ("own_update", 1): 0.5}
    found = exponents(table(sgd), [use(degree=1.0)])["w"]
    assert found.response.value == pytest.approx(1)
    assert found.response_weight.value == pytest.approx(1)
    assert found.growth.value == pytest.approx(0.5)


@pytest.mark.parametrize("degree", [0.0, 1.0])
def test_a_multiplier_moves_gain_by_one_and_response_by_one_and_the_degree(degree):
    plain = exponents(table(SP), [use(degree=degree)])["w"]
    found = exponents(table(SP), [use(degree=degree, multiplier=-1.0)])["w"]
    assert found.gain_weight.value - plain.gain_weight.value == pytest.approx(-1)
    assert found.response_weight.value - plain.response_weight.value == pytest.approx(-(1 + degree))


def test_a_negative_multiplier_counts_by_its_size():
    negative = use(multipliers={width: -1.0 / width for width in WIDTHS})
    assert exponents(table(SP), [negative])["w"].gain_weight.value == pytest.approx(-1)


def test_the_first_step_with_movement_counts():
    later = {key: value for key, value in SP.items() if key[1] == 0}
    later |= {("gradient", 1): -1.0, ("weight_gradient", 1): -1.0}
    rows = table(later | {("weight_update", 2): 0.0, ("own_update", 2): 0.25})
    still = table(
        {("weight_update", 1): 0.0, ("own_update", 1): 0.0}, constants={"weight_update": 0.0, "own_update": 0.0}
    )
    found = exponents(pd.concat([rows, still.assign(status="zero")]), [use(degree=1.0)])["w"]
    assert found.step == 2
    # the gradient before the second update is the one that led to it
    assert found.response.value == pytest.approx(0.25 + 1.0)


def test_what_never_moves_has_no_step():
    rows = table({("weight", 0): 0.0, ("weight_gradient", 0): 0.0, ("weight_update", 1): 0.0})
    rows.loc[rows["quantity"] == "weight_update", ["value", "status"]] = [0.0, "zero"]
    found = exponents(rows, [use()])["w"]
    assert (found.moved, found.step, found.has_gradient) == (False, 0, True)
    assert math.isnan(found.response.value)


def told(runs, weights=None, **changed):
    """What a use is, of runs {seed: ((gradient, then update), ...)}, the same at every width."""
    rows = [
        {"layer": "w", "width": width, "seed": seed, "step": 0, "quantity": "weight", "value": size, "status": "ok"}
        for width, size in (weights or {}).items()
        for seed in runs
    ]
    rows += [
        {"layer": "w", "width": width, "seed": seed, "step": step + (quantity == "weight_update"), "quantity": quantity}
        | {"value": pair[quantity == "weight_update"], "status": "ok"}
        for seed, pairs in runs.items()
        for step, pair in enumerate(pairs)
        for quantity in ("weight_gradient", "weight_update")
        for width in WIDTHS
        if pair[quantity == "weight_update"] is not None
    ]
    found = exponents(pd.DataFrame(rows), [use(**changed)])["w"]
    return {word for word in ("moved", "frozen", "has_gradient", "faint") if getattr(found, word)}


def test_what_is_frozen_has_a_gradient_and_moves_in_no_run():
    assert told({0: [(1.0, 0.0)], 1: [(1.0, 0.0)]}) == {"frozen", "has_gradient"}
    assert told({0: [(1.0, 0.0)], 1: [(0.0, 0.0)]}) == {"frozen", "has_gradient"}
    # an expert that one run gives no tokens
    assert told({0: [(1.0, 0.5)], 1: [(0.0, 0.0)]}) == {"moved", "has_gradient"}
    # of a gradient that cancels but for rounding, the update is lost in some runs
    assert told({0: [(1.0, 0.5)], 1: [(1e-12, 0.0)]}) == {"has_gradient"}
    # tokens came after the last update
    assert told({0: [(0.0, 0.0), (1.0, None)], 1: [(0.0, 0.0)]}) == {"has_gradient"}


SIZED = dict.fromkeys(WIDTHS, 0.3)
HELD, NOT_HELD, STOPPED = dict.fromkeys(WIDTHS, 1e-3), {}, dict.fromkeys(WIDTHS, 0.0)


@pytest.mark.parametrize(
    ("gradient", "changed", "expected"),
    [
        (1e-4, {}, {"frozen", "has_gradient"}),  # 1e-7, beside half a rounding of 2e-8
        (1e-6, {}, {"faint", "has_gradient"}),
        (1e-22, {}, {"faint", "has_gradient"}),
        (1e-6, {"dtype": "float64"}, {"frozen", "has_gradient"}),
        (1e-4, {"dtype": "bfloat16"}, {"faint", "has_gradient"}),
        (1.0, {"dtype": "bfloat16"}, {"faint", "has_gradient"}),
        (1e-44, {}, set()),
        (1e-22, {"rates": NOT_HELD}, {"frozen", "has_gradient"}),
        (1e-22, {"rates": STOPPED}, {"frozen", "has_gradient"}),
    ],
)
def test_what_an_optimizer_holds_is_frozen_where_its_gradients_could_move_it(gradient, changed, expected):
    assert told({0: [(gradient, 0.0)], 1: [(0.0, 0.0)]}, SIZED, **{"rates": HELD} | changed) == expected
    # what starts at zero holds any update
    assert told({0: [(1e-22, 0.0)]}, dict.fromkeys(WIDTHS, 0.0), rates=HELD) == {"frozen", "has_gradient"}


def test_what_an_optimizer_holds_is_frozen_at_every_width():
    sizes = SIZED | {WIDTHS[0]: 1e4}  # at one width a rounding is larger than its updates
    assert told({0: [(1e-4, 0.0)]}, sizes, rates=HELD) == {"has_gradient"}
    assert told({0: [(1e-4, 0.0)]}, sizes, rates=NOT_HELD) == {"frozen", "has_gradient"}
    assert told({0: [(1e-4, 0.5)]}, sizes, rates=HELD) == {"moved", "has_gradient"}


def test_a_zero_initialisation_has_no_gain():
    rows = table(SP)
    rows.loc[rows["quantity"] == "weight", ["value", "status"]] = [0.0, "zero"]
    found = exponents(rows, [use()])["w"]
    assert found.zero_init
    assert math.isnan(found.gain_weight.value)


def test_a_gradient_that_is_rounding_error_is_none():
    vector = use(role=Role.VECTOR)
    rows = table(SP, constants={"weight_gradient": 1e-9})
    assert not exponents(rows, [vector])["w"].has_gradient
    assert exponents(table(SP), [vector])["w"].has_gradient


def test_the_more_numbers_a_gradient_sums_the_larger_its_rounding_error():
    rows = table(SP, constants={"weight_gradient": 1e-3})
    few, many = (use(role=Role.VECTOR, roundings=dict.fromkeys(WIDTHS, bound)) for bound in (1e-5, 1e-2))
    assert exponents(rows, [few])["w"].has_gradient
    assert not exponents(rows, [many])["w"].has_gradient
    at_one_width = many._replace(roundings={**many.roundings, WIDTHS[0]: 1e-5})
    assert exponents(rows, [at_one_width])["w"].has_gradient


def test_updates_with_equal_singular_values_are_measured_by_their_norm():
    # an orthogonal n x n update: RMS ~ n^-1/2, spectral norm 1, and it moves the output by a constant
    muon = SP | {("weight_update", 1): -0.5, ("weight_update_norm", 1): 0.0, ("own_update", 1): 0.0}
    assert exponents(table(muon), [use()])["w"].response_weight.value == pytest.approx(0)
    # an update of rank one: RMS ~ n^-1 with the same norm; both sides agree
    low_rank = muon | {("weight_update", 1): -1.0}
    assert exponents(table(low_rank), [use()])["w"].response_weight.value == pytest.approx(0)


def test_the_interval_of_a_gain_is_that_of_independent_normal_weights():
    small = use(fan_in=1.0, fan_out=0.0, sizes={width: 10 * width for width in WIDTHS})
    rng = np.random.default_rng(1)
    covered = 0
    trials = 400
    for _ in range(trials):
        logs = [np.log2(np.sqrt(np.mean(rng.standard_normal(10 * width) ** 2))) for width in WIDTHS]
        slope = np.polyfit(np.log2(WIDTHS), logs, 1)[0]
        frame = table({("weight", 0): 0.0}, seeds=1)
        found = _sampled(Exponent(slope, 0.0, 0.0, 0.0), small, LogTable(frame, [small]))
        covered += found.low < 0 < found.high
    assert 0.93 < covered / trials < 0.97


def test_a_part_without_rows_is_unknown():
    found = exponents(table(SP), [use(), use("other")])["other"]
    assert not found.gain.known
    assert not found.moved


def test_nan_is_told():
    rows = table(SP)
    rows.loc[0, ["value", "status"]] = [math.nan, "nan"]
    assert exponents(rows, [use()])["w"].not_finite
    assert not exponents(table(SP), [use()])["w"].not_finite


def test_weights_that_are_all_ones_have_no_noise():
    ones = use(role=Role.VECTOR, fan_in=0.0, sizes=dict.fromkeys(WIDTHS, 4))
    found = exponents(table({("weight", 0): 0.0, ("weight_update", 1): 0.0}), [ones])["w"]
    assert (found.gain_weight.low, found.gain_weight.high) == pytest.approx((0, 0), abs=1e-6)


@pytest.mark.parametrize(("norm", "response"), [(6.0, 1.0), (4.4, 0.5)])
def test_signs_that_are_independent_have_no_flat_spectrum(norm, response):
    """(16 n, 4 n) signs have the spectral norm 6 sqrt(n), with 4/9 of the full rank; singular values all alike 4."""
    sizes = {"fan_ins": {n: 16 * n for n in WIDTHS}, "fan_outs": {n: 4 * n for n in WIDTHS}}
    rows = table(SP | {("weight_update_norm", 1): 0.5})
    rows.loc[rows["quantity"] == "weight_update_norm", "value"] *= norm
    found = exponents(rows, [use(**sizes)])["w"]
    assert found.response_weight.value == pytest.approx(response)


@pytest.mark.parametrize(("exponent", "own"), [(0.0, 0.01), (-1.0, -0.99)], ids=["healthy", "too slow"])
def test_an_update_whose_rank_a_probe_limits_at_some_widths_is_judged_by_its_spectral_norm(exponent, own):
    """Of orthogonalised updates (Muon): all singular values alike, of full rank while the probe has as many rows."""
    rank = {width: min(width, 70) for width in WIDTHS}
    rows = table({**SP, ("weight_update_norm", 1): exponent, ("own_update", 1): own, ("input", 0): 0.0})
    size = rows["width"].map(lambda width: math.sqrt(rank[width]) / width * float(width) ** exponent)
    rows["value"] = rows["value"].where(rows["quantity"] != "weight_update", size)
    found = exponents(rows, [use()])["w"]
    assert found.response_weight.value == pytest.approx(exponent, abs=1e-6)


@pytest.mark.parametrize(("share", "own"), [(1 / 4, 0.05), (1 / 8, 0.1), (1 / 4, -0.02)])
def test_orthonormal_updates_of_low_rank_act_by_their_spectral_norm(share, own):
    """Rank share n and all singular values 1 (Dion): RMS ~ n^-1/2, as of signs at a rate of n^-1/2."""
    rows = table({**SP, ("weight_update", 1): -0.5, ("weight_update_norm", 1): 0.0, ("own_update", 1): own})
    rows.loc[rows["quantity"] == "weight_update", "value"] *= share**0.5
    assert exponents(rows, [use()])["w"].response_weight.value == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("kernel", "luck"), [(1, 1.0), (3, 1.0), (7, 1.0), (1, 0.9), (3, 0.9), (7, 0.95)])
def test_signs_of_a_convolution_are_not_taken_for_orthonormal(kernel, luck):
    """Independent signs of size 1/n, whose effect on many positions is still that of chance, as of noise images."""
    fan_ins = {n: kernel**2 * n for n in WIDTHS}
    rows = table({**SP, ("weight_update", 1): -1.0, ("weight_update_norm", 1): -0.5, ("own_update", 1): -0.4})
    rows.loc[rows["quantity"] == "weight_update_norm", "value"] *= (1 + kernel) * luck
    found = exponents(rows, [use(fan_ins=fan_ins, rates={n: 1 / n for n in WIDTHS})])["w"]
    assert found.response_weight.value == pytest.approx(0, abs=1e-6)


def test_where_no_rate_is_known_the_own_update_tells_signs_from_low_rank():
    rows = {**SP, ("weight_update", 1): 0.0, ("weight_update_norm", 1): 0.5}
    for own in (0.95, 0.55):
        noisy = table(rows | {("own_update", 1): own}, constants={"weight_update_norm": 2.0})
        found = exponents(noisy, [use(rates={})])["w"]
        assert found.response_weight.value == pytest.approx(round(2 * own) / 2, abs=1e-6)


@pytest.mark.parametrize("own", [0.95, 0.55])
def test_a_gradient_of_many_examples_is_not_taken_for_low_rank(own):
    """Its rank may grow with the width; the update of SGD is that gradient, which nobody made orthonormal."""
    rows = {**SP, ("weight_update", 1): 0.0, ("weight_update_norm", 1): 0.5, ("own_update", 1): own}
    rows = table(rows, constants={"weight_update_norm": 2.0})
    found = exponents(rows, [use(rates={}, degree=1.0)])["w"]
    low_rank = exponents(rows, [use(rates={}, degree=0.0)])["w"]
    shift = exponents(table({**SP, ("weight_update", 1): 0.0}), [use(rates={}, degree=1.0)])["w"].response_weight.value
    assert found.response_weight.value == pytest.approx(shift, abs=1e-6)
    assert low_rank.response_weight.value == pytest.approx(round(2 * own) / 2, abs=1e-6)


def test_an_update_that_is_nothing_beside_the_next_one_is_no_first_one():
    """The first of an optimizer that clips against a second moment that is zero yet, and one that falls with it."""
    tiny = {**SP, ("weight_update", 1): -1.0, ("weight_gradient", 1): -0.5, ("gradient", 1): -0.5}
    rows = table(tiny | {(name, 2): slope for (name, step), slope in SP.items() if step == 1})
    first = (rows["quantity"] == "weight_update") & (rows["step"] == 1)
    judged = exponents(rows, [use()])["w"]
    assert (judged.step, judged.response_weight.value) == (1, pytest.approx(0, abs=1e-6))
    rows.loc[first, "value"] *= 1e-6
    judged = exponents(rows, [use()])["w"]
    assert (judged.step, judged.response_weight.value) == (2, pytest.approx(1, abs=1e-6))


@pytest.mark.parametrize(("size", "there"), [(3e-44, False), (1e-37, True)])
def test_what_underflow_left_of_a_gradient_is_none(size, there):
    """Of a probe that was learnt by heart at once."""
    found = exponents(table(SP, constants={"weight_gradient": size}), [use()])["w"]
    assert found.has_gradient is there
