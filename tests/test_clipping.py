"""Clipped gradients, and optimizers that write into them: an update is judged by the gradient that backward left.

A kind has members: clipped always, never or at some widths; inside `step`, in a hook before it, between backward and
step, or in a closure; for optimizers of degree 0 and 1. Half of them are healthy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import pair_batch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

import coordcheck
from coordcheck.analysis.clipping import clipping
from coordcheck.recording.recorder import Recorder
from coordcheck.recording.updates.degrees import degrees
from coordcheck.reporting.report import Report
from coordcheck.training.trials import seed_everything

WIDTHS = (64, 128, 256, 512)
ALWAYS, NEVER = 1e-2, 1e3  # thresholds of the gradient's norm, which is 0.3 to 3 here
PLACES = ("in the step", "in a hook", "in a hook of all")
OWN_LOOP = ("between", "in a closure")  # which `build` cannot hand over
Optimizing = Callable[[list[dict[str, Any]]], Optimizer]


def void(value: Any) -> None:
    """A hook before a step that returns anything changes the arguments of the step."""


def held(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def net(width: int, *, mup: bool, degree: int, lr: float) -> tuple[nn.Module, list[dict[str, Any]]]:
    """A network in SP, or in µP with a readout of zeros, and groups of parameters with the rates that belong to it."""
    model = nn.Sequential(nn.Linear(16, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))
    m = width / WIDTHS[0]
    if mup:
        nn.init.zeros_(model[4].weight)
    rates = {"input": m if degree else 1.0, "hidden": 1.0 if degree else 1 / m, "readout": 1 / m}
    if not mup:
        rates = dict.fromkeys(rates, 1.0)
    inputs = [model[0].weight, model[0].bias, model[2].bias]
    return model, [
        {"params": inputs, "lr": lr * rates["input"]},
        {"params": [model[2].weight], "lr": lr * rates["hidden"]},
        {"params": [model[4].weight], "lr": lr * rates["readout"]},
        {"params": [model[4].bias], "lr": lr},
    ]


Change = Callable[[list[Tensor]], Any]  # of the gradients of some parameters


@contextmanager
def hook_of_all(change: Change, place: str) -> Iterator[None]:
    """A hook of the user's on the steps of all optimizers, there for as long as the block."""
    if place != "in a hook of all":
        yield
        return
    handle = register_optimizer_step_pre_hook(lambda optimizer, *call: void(change(held(optimizer))))
    try:
        yield
    finally:
        handle.remove()


def placed(base: Optimizing, change: Change, place: str) -> Optimizing:
    """The optimizer with a change of gradients inside of it, or in a hook of its own."""

    def make(groups: list[dict[str, Any]]) -> Optimizer:
        optimizer = base(groups)
        if place == "in a hook":
            optimizer.register_step_pre_hook(lambda o, *call: void(change(held(o))))
        if place == "in the step":
            kind = type(optimizer)

            def step(self: Any, closure: Any = None) -> Any:
                change(held(self))
                return kind.step(self)

            optimizer.__class__ = type("Changing", (kind,), {"step": step})
        return optimizer

    return make


def fresh(make: Optimizing, lr: float, **of_net: Any) -> Callable[[int], tuple[nn.Module, Optimizer]]:
    def build(width: int) -> tuple[nn.Module, Optimizer]:
        model, groups = net(width, lr=lr, **of_net)
        return model, make(groups)

    return build


BATCH = pair_batch(inputs=16)


def diagnosed(
    base: Optimizing, change: Change, place: str = "in the step", *, lr: float = 0.3, **of_net: Any
) -> Report:
    build = fresh(placed(base, change, place), lr, **of_net)
    with hook_of_all(change, place):
        return coordcheck.diagnose(build, BATCH, loss=F.cross_entropy, widths=WIDTHS, seeds=2)


def recorded(base: Optimizing, change: Change, place: str, folder: Path, *, lr: float = 0.3, **of_net: Any) -> Report:
    """The same in loops of one's own."""
    build = fresh(placed(base, change, place), lr, **of_net)
    with hook_of_all(change, place):
        for seed in range(2):
            for width in WIDTHS:
                seed_everything(seed)
                model, optimizer = build(width)
                with Recorder(model, optimizer, width=width, seed=seed, label="build", save_to=folder) as recorder:
                    for _ in range(5):
                        one_step(model, optimizer, change, place)
                assert not any("failed" in note for note in recorder.record.notes)
    return coordcheck.load(folder)


def one_step(model: nn.Module, optimizer: Optimizer, change: Change, place: str) -> None:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(BATCH[0]), BATCH[1])
        loss.backward()
        if place in OWN_LOOP:
            change(held(optimizer))
        return loss

    if place == "in a closure":
        optimizer.step(closure)
    else:
        closure()
        optimizer.step()


def culprits(report: Report) -> dict[str, dict[str, float]]:
    """Per parameter to blame, the powers of its remedy."""
    table = report.verdicts[report.verdicts["culprit"].astype(bool)]
    exponents = ("init", "lr", "multiplier")
    return {
        row["parameter"]: {what: row[f"{what}_exponent"] for what in exponents if row[f"{what}_exponent"]}
        for row in table.to_dict("records")
    }


def said(report: Report) -> dict[str, str]:
    rows = report.verdicts[report.verdicts["parameter"].notna()]
    return dict(zip(rows["parameter"], rows["verdict"], strict=True))


def clip(threshold: float) -> Change:
    return lambda parameters: clip_grad_norm_(parameters, threshold)


def sgd(groups: Any) -> Optimizer:
    return SGD(groups)


def momentum(groups: Any) -> Optimizer:
    return SGD(groups, momentum=0.9, nesterov=True)


def adam(groups: Any) -> Optimizer:
    return Adam(groups)


def adamw(groups: Any) -> Optimizer:
    return AdamW(groups, weight_decay=0.01, foreach=False)


# SGD: what clipping makes of the update is a part of what the learning rate has to make up for

INPUTS = ("0.weight", "0.bias", "2.bias")
SP = {**{name: {"lr": 1.0} for name in INPUTS}, "4.weight": {"multiplier": -0.5}}
BY_CLIPPING = {f"{layer}.{what}": {"lr": 0.5} for layer in (0, 2, 4) for what in ("weight", "bias")}
SP_CLIPPED = {
    **{name: {"lr": 1.5} for name in INPUTS},
    "2.weight": {"lr": 0.5},
    "4.bias": {"lr": 0.5},
    "4.weight": {"multiplier": -0.5, "lr": 0.5},
}


@pytest.mark.parametrize("place", [*PLACES, *OWN_LOOP])
def test_clipping_at_every_step_of_sgd_is_found(place, tmp_path):
    """|g| grows as sqrt(n) with a readout of zeros, so that every update falls as 1 / sqrt(n)."""
    base = momentum if place == "between" else sgd
    own_loop = recorded(base, clip(ALWAYS), place, tmp_path, mup=True, degree=1)
    assert culprits(own_loop) == BY_CLIPPING
    assert any("Multiply its threshold by m^0.5" in note for note in own_loop.notes)
    if place in PLACES:
        found = diagnosed(base, clip(ALWAYS), place, mup=True, degree=1)
        assert culprits(found) == BY_CLIPPING
        assert set(found.verdicts["degree"].round(3)) == {1.0}


@pytest.mark.parametrize("place", ["in the step", "between"])
def test_clipping_that_never_acts_changes_nothing(place, tmp_path):
    for mup, blamed in ((True, {}), (False, SP)):
        reports = [recorded(sgd, clip(NEVER), place, tmp_path / str(mup), mup=mup, degree=1)]
        reports += [diagnosed(sgd, clip(NEVER), place, mup=mup, degree=1)] if place in PLACES else []
        for report in reports:
            assert culprits(report) == blamed
            assert "undecided" not in said(report).values()
            assert not any("shrink" in note for note in report.notes)


def test_a_threshold_that_grows_with_the_norm_is_right(tmp_path):
    """The remedy: clipping acts at every step still, and by the same factor."""

    def change(parameters: list[Tensor]) -> None:
        width = next(p.shape[0] for p in parameters if p.dim() == 2 and p.shape[0] == p.shape[1])
        clip_grad_norm_(parameters, ALWAYS * (width / WIDTHS[0]) ** 0.5)

    for report in (
        recorded(sgd, change, "between", tmp_path, mup=True, degree=1),
        diagnosed(sgd, change, mup=True, degree=1),
    ):
        assert set(said(report).values()) == {"ok"}


def test_sp_is_named_as_without_clipping_and_what_clipping_does_beside_it(tmp_path):
    assert culprits(recorded(sgd, clip(ALWAYS), "between", tmp_path, mup=False, degree=1)) == SP_CLIPPED


@pytest.mark.parametrize("kind", ["diagnose", "Recorder"])
def test_clipping_at_some_widths_alone_is_told_and_blames_nobody(kind, tmp_path):
    norms = {}  # of the first gradient by width, from which the threshold is taken

    def note(parameters: list[Tensor]) -> None:
        width = next(p.shape[0] for p in parameters if p.dim() == 2 and p.shape[0] == p.shape[1])
        norms.setdefault(width, float(clip_grad_norm_(parameters, math.inf)))

    def judged(change: Change, mup: bool, folder: str) -> Report:
        if kind == "diagnose":
            return diagnosed(sgd, change, mup=mup, degree=1)
        return recorded(sgd, change, "between", tmp_path / folder, mup=mup, degree=1)

    judged(note, True, "norms")
    healthy = judged(clip(math.sqrt(norms[128] * norms[256])), True, "mup")
    assert culprits(healthy) == {}
    assert set(said(healthy).values()) == {"undecided"}
    assert not healthy.verdicts["culprit"].any()
    assert any("256, 512 and not at others, such as clipping" in note for note in healthy.notes)
    norms.clear()
    judged(note, False, "norms of SP")
    assert culprits(judged(clip(math.sqrt(norms[128] * norms[256])), False, "sp")) == SP


# Optimizers of degree 0: clipping is without effect


SP_ADAM = {"2.weight": {"lr": -1.0}, "4.weight": {"init": -0.5, "lr": -1.0}}


@pytest.mark.parametrize("threshold", [ALWAYS, NEVER])
def test_clipping_before_adam_changes_nothing(threshold, tmp_path):
    healthy = recorded(adamw, clip(threshold), "between", tmp_path / "mup", mup=True, degree=0, lr=1e-3)
    assert set(said(healthy).values()) == {"ok"}
    broken = recorded(adamw, clip(threshold), "between", tmp_path / "sp", mup=False, degree=0, lr=1e-3)
    assert culprits(broken) == SP_ADAM
    assert set(said(diagnosed(adam, clip(threshold), mup=True, degree=0, lr=1e-3)).values()) == {"ok"}
    assert culprits(diagnosed(adam, clip(threshold), mup=False, degree=0, lr=1e-3)) == SP_ADAM


# Optimizers that write into their gradients


class Writing(Optimizer):
    """w -= lr * g, with g what `change` makes of the gradient, in the place of the gradient."""

    def __init__(self, groups: Any, change: Callable[[Tensor, Tensor], Any], leaves: str = "") -> None:
        super().__init__(groups, {})
        self.change, self.leaves = change, leaves

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        if closure is not None:
            with torch.enable_grad():
                closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.change(p, p.grad)
                    p.sub_(p.grad, alpha=group["lr"])
                    if self.leaves == "nothing":
                        p.grad = None
                    elif self.leaves == "zeros":
                        p.grad.zero_()
                    elif self.leaves == "another":
                        p.grad = torch.full_like(p.grad, 7.0)


def noise(p: Tensor, g: Tensor) -> None:
    g.add_(torch.randn_like(g) * g.square().mean().sqrt() / 10)


def without_mean(p: Tensor, g: Tensor) -> None:
    if g.dim() > 1:
        g.sub_(g.mean(dim=1, keepdim=True))


WRITERS = {
    "divided by its size": (0, lambda p, g: g.div_(g.abs() + 1e-30), ""),
    "its sign": (0, lambda p, g: g.sign_(), "nothing"),
    "decayed": (1, lambda p, g: g.add_(p, alpha=1e-7), ""),
    "with noise": (1, noise, "zeros"),
    "centred": (1, without_mean, "another"),
    "in another tensor": (1, lambda p, g: setattr(p, "grad", g * 2), ""),
    "normalised by its norm": (0, lambda p, g: g.mul_(p.numel() ** 0.5 / g.norm().clamp(min=1e-30)), ""),
}


@pytest.mark.parametrize("how", WRITERS)
def test_what_an_optimizer_makes_of_its_gradients_is_its_own_affair(how):
    degree, change, leaves = WRITERS[how]
    lr = 0.3 if degree else 1e-3

    def make(groups: Any) -> Optimizer:
        return Writing(groups, change, leaves)

    healthy = diagnosed(make, lambda parameters: None, "", mup=True, degree=degree, lr=lr)
    assert set(said(healthy).values()) == {"ok"}
    assert healthy.verdicts["degree"].tolist() == pytest.approx([degree] * 6, abs=0.05)
    broken = diagnosed(make, lambda parameters: None, "", mup=False, degree=degree, lr=lr)
    assert culprits(broken) == (SP if degree else SP_ADAM)


@pytest.mark.parametrize("leaves", ["nothing", "zeros", "another"])
def test_a_gradient_that_comes_and_goes_inside_of_a_step(leaves, tmp_path):
    def make(groups: Any) -> Optimizer:
        return Writing(groups, lambda p, g: None, leaves)

    healthy = recorded(make, clip(NEVER), "in a closure", tmp_path / "mup", mup=True, degree=1)
    if leaves == "another":  # that is all that is left to see: no factor makes of it what backward left
        assert culprits(healthy) == {}
        assert set(said(healthy).values()) == {"undecided"}
        return
    assert set(said(healthy).values()) == {"ok"}
    assert culprits(recorded(make, clip(NEVER), "in a closure", tmp_path / "sp", mup=False, degree=1)) == SP


# What is no factor decides nothing


@pytest.mark.parametrize(
    ("change", "decided"),
    [
        (lambda parameters: [p.grad.sign_() for p in parameters if p.grad is not None], False),
        (lambda parameters: clip_grad_value_(parameters, 1e-4), False),
        (lambda parameters: clip_grad_value_(parameters, 1e6), True),
        (lambda parameters: [p.grad.mul_(3.0) for p in parameters if p.grad is not None], True),
    ],
    ids=["signs", "values", "no value", "a factor"],
)
def test_a_gradient_that_is_changed_coordinate_by_coordinate_decides_nothing(change, decided, tmp_path):
    report = recorded(sgd, change, "between", tmp_path, mup=True, degree=1)
    assert culprits(report) == {}
    assert set(said(report).values()) <= {"ok" if decided else "undecided", "ok"}
    assert said(report)["4.weight"] == ("ok" if decided else "undecided")  # whose gradient is the largest
    told = any("was changed before the step, not by a factor alone" in note for note in report.notes)
    assert told is not decided


@pytest.mark.parametrize("place", PLACES)
def test_some_clipped_coordinates_make_a_degree_that_decides_nothing(place):
    report = diagnosed(sgd, lambda parameters: clip_grad_value_(parameters, 3e-2), place, mup=False, degree=1)
    between = report.verdicts[report.verdicts["degree"].between(0.25, 0.75, inclusive="neither")]
    assert len(between) > 0
    assert set(between["cause"].dropna()) <= {"init"}
    assert all("neither 0 (Adam) nor 1 (SGD)" in why for why in between["explanation"])


# What multiplies the loss is no part of the gradient


@pytest.mark.parametrize("known", [True, False])
def test_a_loss_scale_that_depends_on_the_width_is_taken_out(known, tmp_path, monkeypatch):
    """A scaler halves its scale where gradients overflow, which they may do at some widths alone."""
    if not known:  # the test can fail
        monkeypatch.setattr("coordcheck.recording.updates.in_loop.loss_scale", lambda optimizer: 1.0)
    for seed in range(2):
        for width in WIDTHS:
            seed_everything(seed)
            model, optimizer = fresh(sgd, 0.3, mup=True, degree=1)(width)
            scaler = torch.amp.GradScaler("cpu", init_scale=WIDTHS[-1] / width * 16.0)
            with Recorder(model, optimizer, width=width, seed=seed, label="build", save_to=tmp_path):
                for _ in range(5):
                    optimizer.zero_grad()
                    scaler.scale(F.cross_entropy(model(BATCH[0]), BATCH[1])).backward()
                    scaler.unscale_(optimizer)
                    clip_grad_norm_(model.parameters(), NEVER)
                    scaler.step(optimizer)
                    scaler.update()
    found = said(coordcheck.load(tmp_path))
    assert (set(found.values()) == {"ok"}) is known, found


# What rounding takes away


def test_updates_that_rounding_blurs_are_read_where_it_does_not(tmp_path):
    """The hidden updates are near 1e-10 beside weights of 0.1; in a diagnosis, double precision is for that."""
    assert culprits(recorded(sgd, clip(ALWAYS), "between", tmp_path, mup=True, degree=1, lr=0.1)) == BY_CLIPPING


@pytest.mark.fault(55)
def test_updates_that_rounding_takes_away_blame_no_other_parameter(tmp_path):
    report = recorded(sgd, clip(ALWAYS), "between", tmp_path, mup=True, degree=1, lr=1e-3)
    assert not {"learns too fast", "learns too slowly"} & {said(report)[f"{layer}.weight"] for layer in (0, 2)}
    rows = report.verdicts[report.verdicts["verdict"] == "not visible"]
    assert set(rows["explanation"]) == {"its updates are so small beside it that its own precision loses them"}


def test_the_recorder_listens_to_no_parameter_afterwards(tmp_path):
    for steps in (1, 4):
        model, optimizer = fresh(sgd, 0.3, mup=False, degree=1)(64)
        with Recorder(model, optimizer, width=64, steps=steps):
            for _ in range(3):
                one_step(model, optimizer, clip(NEVER), "between")
        assert all(not p._post_accumulate_grad_hooks for p in model.parameters())


# The pieces


def test_factors_of_clipping():
    widths = np.array(WIDTHS)
    kinds = {
        "never": ([1, 1, 1, 1], ()),
        "never, in a warm-up": ([0.1, 0.1, 0.1, 0.1], ()),
        "always": ([0.5, 0.35, 0.25, 0.18], ()),
        "at one width": ([1, 1, 1, 0.6], (512,)),
        "at all but one": ([1, 0.8, 0.6, 0.4], (128, 256, 512)),
        "at some, in a warm-up": ([0.1, 0.1, 0.1, 0.07], (512,)),
        "at narrow ones": ([0.4, 0.8, 1, 1], (64, 128)),
        "a decay beside it": ([1.5, 1.3, 1.1, 1.05], ()),
        "unknown": ([math.nan] * 4, ()),
    }
    for name, (factors, expected) in kinds.items():
        found = clipping(np.array([factors, factors], dtype=float), widths)
        assert found.widths == expected, name
        assert (found.factors != 1).any() == bool(expected), name


@pytest.mark.parametrize(
    ("change", "expected"),
    [(clip(1e-3), 1), (clip(1e3), 1), (lambda own: [p.grad.div_(p.grad.norm()) for p in own], 0)],
    ids=["clipped", "not clipped", "normalised"],
)
def test_the_degree_of_a_copy_that_clips(change, expected):
    model = nn.Linear(32, 32)
    for p in model.parameters():
        p.grad = torch.randn_like(p) * 1e-2
    optimizer = placed(sgd, change, "in the step")([{"params": list(model.parameters()), "lr": 0.1}])
    assert degrees(model, [optimizer]) == {
        "weight": pytest.approx(expected, abs=0.01),
        "bias": pytest.approx(expected, abs=0.01),
    }
