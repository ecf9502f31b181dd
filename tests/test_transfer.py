"""The learning-rate sweep: optima and shifts with honest errors, SP moves and µP stays, and nothing is run twice."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from conftest import pair_batch
from matplotlib.text import Text
from test_golden import as_golden
from torch import nn

from coordcheck.analysis.optima import Optima, Valley, find_optima, fit_minima
from coordcheck.checks.transfer import Transfer, transfer_sweep
from coordcheck.common.errors import CoordCheckError, SweepInterrupted
from coordcheck.models import mlp

RATES = [2.0**power for power in range(-9, -2)]
LOG_RATES = np.log2(RATES)
WIDTHS = (32, 64, 128)
OPTIMUM = -6.2


def skewed(octaves: Any) -> Any:
    """A loss that rises faster above its minimum at 0 than below it: a cubic."""
    return 0.03 * octaves**2 + 0.004 * octaves**3


def table(
    optimum: Callable[[int], float],
    *,
    shape: Callable[[Any], Any] = skewed,
    noise: float = 0.0,
    seeds: int = 3,
    generator: np.random.Generator | None = None,
) -> pd.DataFrame:
    """Losses of every width, learning rate and seed; each seed has an offset of its own."""
    generator = generator or np.random.default_rng(0)
    rows = []
    for width in WIDTHS:
        curve = 2 + shape(LOG_RATES - optimum(width))
        for seed in range(seeds):
            values = curve + generator.normal(0, 0.1) + generator.normal(0, 1, len(RATES)) * noise
            rows += [("net", width, lr, seed, loss, "ok") for lr, loss in zip(RATES, values, strict=True)]
    return pd.DataFrame(rows, columns=["label", "width", "lr", "seed", "loss", "status"])


def without(losses: pd.DataFrame, width: int, lr: float, seed: int = 0) -> pd.DataFrame:
    """The table with one run diverged."""
    lost = (losses["width"] == width) & (losses["lr"] == lr) & (losses["seed"] == seed)
    assert lost.sum() == 1
    return losses.assign(loss=losses["loss"].mask(lost), status=losses["status"].mask(lost, "diverged"))


def only(frame: pd.DataFrame) -> Any:
    assert len(frame) == 1
    return frame.iloc[0]


# ---- optima: closed forms


@pytest.mark.parametrize("vertex", [-0.4, 0.0, 0.3])
def test_a_parabola_through_three_points_gives_its_vertex(vertex: float):
    x = np.array([-1.0, 0.0, 1.0])
    minima = fit_minima([Valley(x, 0.1 * (x - vertex) ** 2 + np.array([[1.0], [3.0]]))])
    assert minima.octaves == pytest.approx([vertex])
    assert minima.losses == pytest.approx([2.0])


def test_learning_rates_need_not_be_evenly_spaced():
    x = np.array([-1.5, 0.0, 0.5])
    assert fit_minima([Valley(x, np.array([(x - 0.2) ** 2]))]).octaves == pytest.approx([0.2])


def test_a_skewed_curve_gives_its_minimum_and_its_shift_exactly():
    found = find_optima(table(lambda width: OPTIMUM - 0.5 * math.log2(width / 32)))
    assert list(found.optima["log2_lr"]) == pytest.approx([OPTIMUM, OPTIMUM - 0.5, OPTIMUM - 1])
    assert list(found.optima["best"]) == [2.0**-6, 2.0**-7, 2.0**-7]
    shift = only(found.shift)
    assert shift["shift"] == pytest.approx(-0.5)
    assert (shift["status"], shift["widths"]) == ("moves", 3)


def test_without_the_skew_the_minimum_would_be_another():
    x = np.arange(-2.0, 3.0)
    minimum = -np.polyfit(x, skewed(x - 0.4), 2)[1] / 2 / np.polyfit(x, skewed(x - 0.4), 2)[0]
    assert abs(minimum - 0.4) > 0.1


def test_optima_that_do_not_move_stay():
    shift = only(find_optima(table(lambda width: OPTIMUM, noise=0.003)).shift)
    assert abs(shift["shift"]) < 0.1
    assert shift["status"] == "stays"


# ---- errors


@pytest.fixture(scope="module")
def simulated() -> list[tuple[float, float, Optima]]:
    """Sweeps with noise: the optimum at the first width, the shift, and what was found."""
    generator = np.random.default_rng(1)
    sweeps = []
    for _ in range(150):
        start, shift = OPTIMUM + generator.uniform(-0.5, 0.5), generator.uniform(-0.3, 0.3)
        losses = table(
            lambda width, start=start, shift=shift: start + shift * math.log2(width / 32),
            noise=0.01,
            generator=generator,
        )
        sweeps.append((start, shift, find_optima(losses)))
    return sweeps


def test_intervals_of_optima_hold_the_truth_as_often_as_they_say(simulated: list[tuple[float, float, Optima]]):
    hits = [
        row.low <= start + shift * math.log2(row.width / 32) <= row.high
        for start, shift, found in simulated
        for row in found.optima.itertuples()
        if row.status == "found"
    ]
    assert len(hits) > 440  # of 450
    assert 0.92 < np.mean(hits) < 0.98


def test_intervals_of_the_shift_hold_the_truth_as_often_as_they_say(simulated: list[tuple[float, float, Optima]]):
    shifts = [(true, only(found.shift)) for _, true, found in simulated]
    assert 0.91 < np.mean([row["low"] <= true <= row["high"] for true, row in shifts]) <= 1.0
    assert np.median([row["high"] - row["low"] for _, row in shifts]) < 0.25


def test_standard_errors_are_the_scatter_of_repeated_sweeps(simulated: list[tuple[float, float, Optima]]):
    deviations = [only(found.shift)["shift"] - true for _, true, found in simulated]
    errors = [only(found.shift)["stderr"] for _, _, found in simulated]
    assert np.median(errors) == pytest.approx(np.std(deviations), rel=0.35)


def test_more_noise_is_not_resolved_and_no_curve_at_all_is_flat():
    generator = np.random.default_rng(3)
    noisy = find_optima(table(lambda width: OPTIMUM, noise=0.1, generator=generator))
    assert only(noisy.shift)["status"] == "not resolved"
    flat = find_optima(table(lambda width: OPTIMUM, shape=lambda x: 0 * x, noise=0.01, generator=generator))
    assert set(flat.optima["status"]) <= {"flat within the noise: add seeds or steps", "at the edge: widen lrs"}
    assert flat.optima["log2_lr"].isna().all()
    assert math.isnan(only(flat.shift)["shift"])


def test_losses_that_are_all_equal_have_no_optimum():
    level = find_optima(table(lambda width: OPTIMUM).assign(loss=1.0))
    assert level.optima["log2_lr"].isna().all()


def test_optima_off_any_line_widen_the_error_of_the_shift():
    places = {32: -6.0, 64: -5.2, 128: -6.0}
    bent = only(find_optima(table(lambda width: places[width], noise=0.002)).shift)
    straight = only(find_optima(table(lambda width: -6.0, noise=0.002)).shift)
    assert bent["stderr"] > 5 * straight["stderr"]
    assert bent["status"] == "not resolved"


def test_three_learning_rates_of_one_seed_have_an_optimum_and_no_error():
    losses = table(lambda width: OPTIMUM, seeds=1)
    found = find_optima(losses[losses["lr"].isin([2.0**-7, 2.0**-6, 2.0**-5])])
    assert list(found.optima["status"]) == ["found"] * 3
    assert found.optima["log2_lr"].notna().all()
    assert found.optima["stderr"].isna().all()
    assert only(found.shift)["status"] == "not resolved"


# ---- what is no optimum


@pytest.mark.parametrize("optimum", [-11.0, -1.0])
def test_no_optimum_is_claimed_at_the_edge(optimum: float):
    found = find_optima(table(lambda width: optimum if width == 128 else OPTIMUM, shape=lambda x: 0.03 * x**2))
    assert list(found.optima["status"]) == ["found", "found", "at the edge: widen lrs"]
    assert found.optima["log2_lr"].notna().tolist() == [True, True, False]
    assert only(found.shift)["widths"] == 2


def test_a_diverged_neighbour_is_told_and_counted():
    losses = table(lambda width: OPTIMUM)
    found = find_optima(without(losses, 64, 2.0**-5, seed=1))
    assert found.optima["diverged"].tolist() == [0, 1, 0]
    assert found.optima["status"].iloc[1] == "beside runs that diverged: take lrs closer together"


def test_a_diverged_run_further_off_only_shortens_the_fit():
    losses = table(lambda width: OPTIMUM)
    found = find_optima(without(losses, 64, 2.0**-4))
    assert found.optima["log2_lr"].tolist() == pytest.approx([OPTIMUM] * 3)
    assert only(found.shift)["shift"] == pytest.approx(0, abs=1e-6)


def test_a_width_where_every_learning_rate_lost_a_run_is_missing():
    losses = table(lambda width: OPTIMUM)
    for lr in RATES:
        losses = without(losses, 32, lr)
    found = find_optima(losses)
    assert found.optima["status"].iloc[0] == "no learning rate has all its runs"
    assert math.isnan(found.optima["best"].iloc[0])


# ---- sweeps

INPUTS = 16
made: list[tuple[int, float]] = []
"""The (width, lr) that `counted` was called with."""


@pytest.fixture(autouse=True)
def _fresh_counts() -> Iterator[None]:
    made.clear()
    yield
    made.clear()


def at(parametrization: str) -> Callable[[int, float], Any]:
    def build(width: int, lr: float) -> Any:
        return mlp(parametrization, lr=lr, base_width=16, inputs=INPUTS, outputs=4)(width)

    return build


def counted(width: int, lr: float) -> Any:
    made.append((width, lr))
    return at("µP")(width, lr)


def swept(build: Any = counted, **options: Any) -> Transfer:
    """A tiny sweep: 2 widths, 3 learning rates, 1 seed, 2 steps."""
    defaults = {"lrs": [0.01, 0.02, 0.04], "widths": (16, 32), "seeds": 1, "steps": 2, "loss": F.cross_entropy}
    defaults["batches"] = pair_batch(examples=32, inputs=INPUTS, classes=4)
    return transfer_sweep(build, **{**defaults, **options})


@pytest.fixture(scope="module")
def controls() -> Transfer:
    """SP and µP: six Adam steps on 128 examples, judged by the training loss."""
    torch.set_num_threads(1)
    batch, rates = pair_batch(examples=128, inputs=INPUTS, classes=4), [2.0**power for power in range(-8, -1)]
    builds = {"SP": at("SP"), "µP": at("µP")}
    return transfer_sweep(builds, batch, lrs=rates, widths=(16, 64), seeds=3, steps=6, loss=F.cross_entropy)


def test_the_best_learning_rate_moves_in_sp_and_stays_in_mup(controls: Transfer):
    shift = controls.shift.set_index("label")
    assert shift["status"].to_dict() == {"SP": "moves", "µP": "stays"}
    assert shift.loc["SP", "shift"] < -0.5
    assert "SP: the best learning rate moves: -0." in str(controls)
    assert "µP: the best learning rate stays: " in str(controls)


def test_losses_are_those_of_a_plain_loop():
    sweep = swept(widths=(16, 32), steps=3)
    torch.manual_seed(0)
    model, optimizer = at("µP")(32, 0.02)
    x, y = pair_batch(examples=32, inputs=INPUTS, classes=4)
    expected = []
    for _ in range(4):
        loss = F.cross_entropy(model(x), y)
        expected.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    own = sweep.curves.query("width == 32 and lr == 0.02")
    assert own["step"].tolist() == [0, 1, 2, 3]
    assert own["loss"].tolist() == expected
    assert sweep.losses.query("width == 32 and lr == 0.02")["loss"].tolist() == expected[-1:]


class Noisy(nn.Module):
    """Linear with dropout, which evaluation must switch off."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(INPUTS, width), nn.Dropout(0.5), nn.Linear(width, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def test_the_final_loss_is_the_mean_over_the_held_out_batches_in_evaluation_mode():
    kept = {}

    def build(width: int, lr: float) -> Any:
        model = Noisy(width)
        kept[width, lr] = model
        return model, torch.optim.SGD(model.parameters(), lr=lr)

    held_out = [pair_batch(seed, examples=8, inputs=INPUTS, classes=4) for seed in (5, 6)]
    losses = swept(build, evaluate=held_out).losses.set_index(["width", "lr"])["loss"]
    for key, model in kept.items():
        model.eval()
        with torch.no_grad():
            expected = torch.stack([F.cross_entropy(model(x), y) for x, y in held_out]).mean()
        assert losses[key] == pytest.approx(float(expected), abs=1e-7)


def test_runs_of_one_seed_see_the_same_batches_at_every_width_and_learning_rate():
    seen: dict[tuple[int, float], list[float]] = {}

    def build(width: int, lr: float) -> Any:
        model = nn.Linear(INPUTS, 4)
        sums = seen.setdefault((width, lr), [])
        model.register_forward_pre_hook(lambda _, inputs: sums.append(float(inputs[0].sum())))
        return model, torch.optim.SGD(model.parameters(), lr=lr)

    def batches(seed: int) -> Iterator[Any]:
        return (pair_batch(10 * seed + step, inputs=INPUTS, classes=4) for step in range(3))

    swept(build, batches=batches, seeds=[3])
    assert len(seen) == 6
    assert len({tuple(sums) for sums in seen.values()}) == 1
    assert len(set(seen[16, 0.01])) == 3


def test_a_run_that_diverges_ends_early_and_is_counted():
    calls: dict[float, int] = {}

    def build(width: int, lr: float) -> Any:
        model = nn.Linear(INPUTS, 4)

        def count(*_: Any) -> None:
            calls[lr] = calls.get(lr, 0) + 1

        model.register_forward_pre_hook(count)
        return model, torch.optim.SGD(model.parameters(), lr=lr)

    def squared(model: nn.Module, batch: Any) -> torch.Tensor:
        return model(batch[0]).square().mean()

    sweep = swept(build, lrs=[1e-3, 1e-2, 1e-1, 1e30], widths=(16, 32), steps=20, loss=squared)
    assert sweep.losses.groupby("lr")["status"].first().to_dict()[1e30] == "diverged"
    assert sweep.optima["diverged"].tolist() == [1, 1]
    assert calls[1e-3] == 2 * 21
    assert calls[1e30] < 2 * 5
    curve = sweep.curves.query("lr == 1e30 and width == 16")
    assert len(curve) == 21
    assert curve["loss"].isna().sum() > 15


def test_a_sweep_resumes_and_takes_more_learning_rates(tmp_path: Path):
    first = swept(save_to=tmp_path)
    assert len(made) == 6
    again = swept(save_to=tmp_path)
    assert len(made) == 6
    pd.testing.assert_frame_equal(again.curves, first.curves)
    wider = swept(save_to=tmp_path, lrs=[0.01, 0.02, 0.04, 0.08])
    assert sorted(set(made[6:])) == [(16, 0.08), (32, 0.08)]
    assert len(wider.losses) == 8


def test_other_settings_do_not_share_a_folder(tmp_path: Path):
    swept(save_to=tmp_path)
    with pytest.raises(CoordCheckError, match="steps was 2, is 3"):
        swept(save_to=tmp_path, steps=3)
    with pytest.raises(CoordCheckError, match="passes was"):
        swept(save_to=tmp_path, evaluate=pair_batch(9, inputs=INPUTS, classes=4))


@pytest.mark.thorough
def test_two_jobs_give_the_same_losses():
    pd.testing.assert_frame_equal(swept(at("SP"), jobs=2).curves, swept(at("SP")).curves, check_exact=True)


def test_an_interrupted_sweep_hands_over_what_is_finished():
    def build(width: int, lr: float) -> Any:
        if lr == 0.04 and width == 32:
            raise KeyboardInterrupt
        return at("SP")(width, lr)

    with pytest.raises(SweepInterrupted, match="5 of 6 runs are done") as stopped:
        swept(build)
    kept: Any = stopped.value.report
    assert len(kept.losses) == 5


def test_a_run_that_fails_is_no_divergence():
    def build(width: int, lr: float) -> Any:
        if lr == 0.02 and width == 32:
            raise RuntimeError("no such width")
        return at("SP")(width, lr)

    sweep = swept(build)
    assert sweep.losses.query("width == 32 and lr == 0.02")["status"].tolist() == ["failed"]
    assert sweep.optima["diverged"].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lrs": [0.1, 0.2]}, r"at least 3 distinct learning rates .* got 2"),
        ({"lrs": 0.1}, "at least 3 distinct learning rates"),
        ({"lrs": [0.1, 0.2, 0.0]}, "a learning rate must be above 0, got 0.0"),
        ({"lrs": "abc"}, "a learning rate must be a finite number"),
        ({"steps": 0}, "steps must be an integer of 1 or more"),
        ({"widths": (0, 1)}, "widths must be positive integers"),
        ({"build": {"a": 3}}, "must be a function"),
        ({"build": lambda width, lr: None}, "it must return"),
        ({"loss": 3}, "loss must be"),
    ],
)
def test_what_cannot_be_swept_is_refused_in_words(options: dict[str, Any], message: str):
    with pytest.raises(CoordCheckError, match=message):
        swept(**options)


def test_a_sweep_whose_runs_all_fail_says_why():
    def build(width: int, lr: float) -> Any:
        raise RuntimeError("nothing can be built")

    with pytest.raises(CoordCheckError, match="nothing can be built"):
        swept(build)


# ---- text and figure


def drawn_labels(axes: Sequence[Any]) -> list[str]:
    return [axis.get_title(loc="left") for axis in axes if axis.axison]


def test_the_figure_has_a_panel_per_label_and_a_line_per_width(controls: Transfer):
    axes = controls.figure().axes
    assert drawn_labels(axes) == ["SP", "µP"]
    for axis, label in zip(axes, ("SP", "µP"), strict=True):
        lines = {line.get_label(): line for line in axis.lines if str(line.get_label()).isdecimal()}
        assert list(lines) == ["16", "64"]
        losses = controls.losses[(controls.losses["label"] == label) & (controls.losses["width"] == 64)]
        means = losses.groupby("lr")["loss"].mean()
        assert list(lines["64"].get_xdata()) == pytest.approx(np.log2(means.index).tolist())
        assert list(lines["64"].get_ydata()) == pytest.approx(means.tolist())
        optima = controls.optima.loc[controls.optima["label"] == label, "log2_lr"]
        marked = [container.lines[0].get_xdata()[0] for container in axis.containers]
        assert marked == pytest.approx(optima.tolist())
    assert [text.get_text() for text in axes[1].get_legend().get_texts()] == ["fitted\nbest"]
    assert any(getattr(artist, "get_title", str)() for artist in axes[1].artists) or axes[1].get_children()


def test_minus_signs_of_the_figure_are_minus_signs(controls: Transfer):
    figure = controls.figure()
    figure.draw_without_rendering()
    told = [text.get_text() for text in figure.findobj(Text)]
    assert not any("-" in text for text in told)
    assert any("\N{MINUS SIGN}" in text for text in told if "per doubling" in text)
    assert any(text.startswith("\N{MINUS SIGN}") for text in told)  # log2 of a learning rate


def test_the_figure_points_beyond_the_edge_and_crosses_what_did_not_finish():
    losses = table(lambda width: -12.0 if width == 32 else OPTIMUM, shape=lambda x: 0.03 * x**2)
    axis = Transfer(without(losses, 64, 2.0**-3).assign(step=0)).figure().axes[0]
    markers = [line.get_marker() for line in axis.lines]
    assert markers.count("<") == 1
    crosses = [line for line in axis.lines if line.get_marker() == "x" and len(line.get_xdata())]
    assert [list(line.get_xdata()) for line in crosses] == [[-3.0]]


def test_the_figure_is_saved_and_leaves_the_style_alone(controls: Transfer, tmp_path: Path):
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    controls.figure(path=tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").stat().st_size > 5000
    assert dict(mpl.rcParams) == before


def test_the_text_says_what_is_missing():
    text = str(Transfer(table(lambda width: -12.0, shape=lambda x: 0.03 * x**2).assign(step=0)))
    assert "net: not resolved: 0 widths with an optimum, and 2 are needed" in text
    assert re.search(r"\n +32 +2\^-9 +[\d.]+ +3?\d* *21 +0 +at the edge: widen lrs", text)


def test_what_was_measured_is_told_apart_from_what_was_fitted():
    learnt_by_heart = [2.5, 1.2, 0.4, 0.01, 0.01, 0.4, 1.2]
    rows = [
        ("net", width, lr, 0, loss, "ok", 0)
        for width in WIDTHS
        for lr, loss in zip(RATES, learnt_by_heart, strict=True)
    ]
    sweep = Transfer(pd.DataFrame(rows, columns=["label", "width", "lr", "seed", "loss", "status", "step"]))
    found = sweep.optima
    assert found["best_loss"].tolist() == [0.01] * 3
    assert (found["fitted_loss"] < 0).all()  # the control: a curve may be lower than any loss
    assert re.findall(r"2\^-6 +(\S+) +-5\.", str(sweep)) == ["0.01"] * 3
    heights = [container.lines[0].get_ydata()[0] for container in sweep.figure().axes[0].containers]
    assert heights == [0.01] * 3


def test_the_table_of_a_sweep():
    sweep = Transfer(table(lambda width: OPTIMUM - 0.5 * math.log2(width / 32), noise=0.003).assign(step=0))
    as_golden("transfer", str(sweep))
