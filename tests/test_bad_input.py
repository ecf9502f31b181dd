"""Everything that `check` cannot work with is refused in words, with exit code 2, and nothing is trained for it."""

from __future__ import annotations

import json
import math
import multiprocessing
import re
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import pair_batch
from torch import nn

import coordcheck
from coordcheck.common.errors import CoordCheckError, IncompleteCheck, NotWidthInvariant
from coordcheck.models import mlp
from coordcheck.runs.grids import distinct_widths

built: list[int] = []
"""The widths that `build` was called with."""


@pytest.fixture(autouse=True)
def _fresh_count() -> None:
    built.clear()


def build(width: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    built.append(width)
    return mlp("SP")(width)


def check(make: Any = build, **options: Any) -> coordcheck.Report:
    """A tiny check of one label: widths 16 to 64, one seed, two steps."""
    defaults = {"batch": pair_batch(), "loss": F.cross_entropy, "widths": (16, 32, 64), "seeds": 1, "steps": 2}
    return coordcheck.check(make, **{**defaults, **options})


def refusal(make: Any = build, **options: Any) -> str:
    """The message with which a check is refused."""
    with pytest.raises(CoordCheckError) as refused:
        check(make, **options)
    assert type(refused.value) is CoordCheckError
    assert refused.value.exit_code == 2
    return str(refused.value)


def test_the_check_that_the_tables_spoil_is_accepted():
    assert not check(probe=None).missing
    assert built == [16, 32, 64]


# ---- arguments

HUGE = "9" * 5000

BEFORE_TRAINING = [
    *(
        ({"widths": widths}, "widths must be positive integers, got")
        for widths in (
            (16, 32, 64.0),
            (16, 32, 64.5),
            (0, 16, 32, 64),
            (-16, 16, 32, 64),
            (math.nan, 16, 32, 64),
            (True, 16, 32, 64),
            (np.True_, 16, 32, 64),
            (None, 16, 32, 64),
            ("wide", 16, 32, 64),
            ("", 16, 32, 64),
            ("-16", 16, 32, 64),
            ("16.0", 16, 32, 64),
            ("\u00b2", 16, 32, 64),
            (HUGE, 16, 32, 64),
            (torch.tensor(16.5), 16, 32, 64),
            (torch.tensor(math.nan), 16, 32, 64),
            ((16, 32), (64, 128)),
            np.array([[16, 32], [64, 128]]),
            None,
            1.5,
            "16,32,64",
        )
    ),
    ({"widths": ()}, "there are no widths"),
    *(
        ({"seeds": seeds}, "seeds must be how many")
        for seeds in (0, -1, [], [-1], [True], ["1"], [0.0], 1.5, math.nan, None, True, "three")
    ),
    *(
        ({"steps": steps}, "steps must be an integer of 0 or more, got")
        for steps in (-1, 2.0, "2", True, None, math.nan)
    ),
    *(({"jobs": jobs}, "jobs must be an integer of 1 or more") for jobs in (0, -1, 1.5, "2", None)),
    *(({"tolerance": tolerance}, "tolerance") for tolerance in ("x", math.nan, -0.25, None)),
    *(({"expect": expect}, "expect") for expect in ("mupp", {"*": "half"}, {"*": math.nan}, {3: 0.5}, 0.5)),
    *(({"loss": loss}, "loss") for loss in ("cross_entropy", 3)),
    *(({"executor": executor}, "executor") for executor in (2, "loky")),
    ({"batch": []}, "0 batches are too few for 2 steps"),
    ({"batch": ()}, "0 batches are too few for 2 steps"),
    ({"batch": iter([])}, "0 batches are too few for 2 steps"),
    ({"batch": [pair_batch(), pair_batch()]}, "2 batches are too few for 2 steps: give 3"),
    ({"make": {}}, "there is nothing to check: build is an empty mapping"),
    ({"make": 3}, "build of 'model' must be a function of the width, got int"),
    ({"make": None}, "build of 'model' must be a function of the width, got NoneType"),
    ({"make": {"SP": mlp("SP")(16)}}, "build of 'SP' must be a function of the width, got tuple"),
    ({"make": {"": build}}, "labels must be printable texts, got ''"),
    ({"make": {" ": build}}, "labels must be printable texts, got ' '"),
    ({"make": {3: build}}, "labels must be printable texts, got 3"),
    ({"make": {"\ud800": build}}, "label"),
    ({"make": {"\u00b5P": build, "\u03bcP": build}}, "are the same after Unicode NFKC"),
    ({"make": {"fit": build, "\ufb01t": build}}, "labels 'fit' and '\ufb01t' are the same after Unicode NFKC"),
    ({"save_to": 3}, "save_to"),
    ({"save_to": "a\0b"}, "save_to must be the path of a folder"),
]


def shown(value: object) -> str:
    return re.sub(r" at 0x\w+", "", ascii(value))[:60]


@pytest.mark.parametrize(("options", "message"), BEFORE_TRAINING, ids=shown)
def test_bad_arguments_are_refused_before_anything_is_built(options: dict[str, Any], message: str):
    assert message in refusal(**options)
    assert built == []


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("where", ["file", "file/below", "file/below/it"])
def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_built(tmp_path: Path, where: str, jobs: int):
    (tmp_path / "file").write_text("in the way")
    message = refusal(save_to=tmp_path / where, jobs=jobs)
    assert f"cannot write {tmp_path / where}" in message
    assert "Give a folder that can be written" in message
    assert built == []


@pytest.mark.parametrize(
    "widths",
    [
        ["16", " 32 ", 64],
        (np.int64(16), np.int32(32), 64),
        np.array([64, 32, 16]),
        (torch.tensor(16), 32, 64),
        iter((64, 16, 32, 16)),
        range(16, 65, 16),
    ],
    ids=shown,
)
def test_widths_are_accepted_however_integers_are_written(widths: Any):
    assert set(distinct_widths(widths)) >= {16, 32, 64}


@pytest.mark.parametrize("seeds", [1, [3], (0,), np.int64(1), range(1), [np.int64(3)]], ids=shown)
def test_seeds_are_accepted_however_integers_are_written(seeds: Any):
    assert len(check(seeds=seeds).records) == 3


# ---- too few widths


@pytest.mark.parametrize("widths", [(16,), (16, 64), (64, 16, 64, 16)], ids=str)
def test_under_three_distinct_widths_the_scales_are_shown_without_a_verdict(widths: tuple[int, ...]):
    report = check(widths=widths)
    text = str(report)
    assert report.exit_code == 2
    assert "a verdict needs at least 3 distinct widths with finished runs" in text
    assert f"'build' has {len(set(widths))} ({', '.join(map(str, sorted(set(widths))))})" in text
    scale = report.measurements.query("layer == 'readout' and quantity == 'activation' and step == 0 and width == 16")
    assert f"{scale['value'].item():.3g}" in text
    assert "VIOLATED" not in text
    with pytest.raises(CoordCheckError, match="at least 3 distinct widths") as refused:
        report.raise_for_status()
    assert not isinstance(refused.value, (NotWidthInvariant, IncompleteCheck))


def test_under_three_widths_the_raising_form_raises():
    with pytest.raises(CoordCheckError, match="at least 3 distinct widths"):
        coordcheck.assert_width_invariant(build, pair_batch(), loss=F.cross_entropy, widths=(16, 64), seeds=1)


# ---- the width is ignored


def narrow(width: int) -> Any:
    return mlp("SP")(16)


@pytest.mark.fault(51)
def test_a_factory_that_ignores_the_width_is_refused():
    assert refusal({"SP": narrow}) == (
        "build of 'SP' made models with equal parameter shapes at widths 16 and 32: does the factory use its width "
        'argument? If another axis is checked, name it: axis="depth".'
    )


def test_one_of_several_factories_that_ignores_the_width_is_named():
    assert "build of 'narrow' made models with equal parameter shapes" in refusal({"SP": build, "narrow": narrow})


def test_another_axis_may_keep_the_shapes():
    report = check(narrow, axis="depth")
    assert not report.missing
    assert "depth 16 to 64" in str(report)


def test_a_factory_that_ignores_the_width_is_refused_again_by_the_same_call(tmp_path: Path):
    first = refusal(narrow, save_to=tmp_path)
    assert refusal(narrow, save_to=tmp_path) == first


# ---- what build returns


def parts(width: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    return mlp("SP")(width)


def with_model(change: Callable[[nn.Module], Any]) -> Callable[[int], Any]:
    """A build whose model is changed after its optimizer was made."""

    def changed(width: int) -> Any:
        model, optimizer = parts(width)
        return change(model), optimizer

    return changed


def with_optimizer(change: Callable[[torch.optim.Optimizer], Any]) -> Callable[[int], Any]:
    """A build whose optimizer is changed."""

    def changed(width: int) -> Any:
        model, optimizer = parts(width)
        return model, change(optimizer)

    return changed


def foreign(width: int) -> Any:
    return parts(width)[0], parts(width)[1]


def emptied(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    optimizer.param_groups[0]["params"] = []
    return optimizer


def frozen(model: nn.Module) -> nn.Module:
    return model.requires_grad_(False)


def half_trial(width: int) -> Any:
    return coordcheck.Trial(parts(width)[0], None)


BUILDS = {
    "nothing": (lambda width: None, "returned NoneType; it must return (model, optimizer) or a Trial"),
    "the width": (lambda width: width, "returned int; it must return (model, optimizer) or a Trial"),
    "a text": (lambda width: "ok", "returned str; it must return (model, optimizer) or a Trial"),
    "a model alone": (lambda width: parts(width)[0], "returned MLP; it must return (model, optimizer) or a Trial"),
    "an optimizer alone": (lambda width: parts(width)[1], "returned Adam; it must return (model, optimizer)"),
    "one": (lambda width: parts(width)[:1], "returned a tuple of 1; it must return (model, optimizer) or a Trial"),
    "three": (
        lambda width: (*parts(width), None),
        "returned a tuple of 3; it must return (model, optimizer)",
    ),
    "swapped": (lambda width: parts(width)[::-1], "returned Adam as the model; it must be a torch.nn.Module"),
    "no model": (with_model(lambda model: None), "returned NoneType as the model"),
    "a class": (with_model(type), "returned type as the model; it must be a torch.nn.Module"),
    "a forward": (with_model(lambda model: model.forward), "returned method as the model"),
    "no optimizer": (with_optimizer(lambda optimizer: None), "returned NoneType as the optimizer"),
    "a rate": (with_optimizer(lambda optimizer: 0.1), "returned float as the optimizer; it must be a torch.optim"),
    "its class": (with_optimizer(type), "as the optimizer; it must be a torch.optim.Optimizer"),
    "one of two": (with_optimizer(lambda optimizer: [optimizer, 3]), "returned int as the optimizer"),
    "empty list": (with_optimizer(lambda optimizer: []), "the optimizer holds none of the model's"),
    "half a trial": (half_trial, "returned NoneType as the optimizer"),
    "foreign": (foreign, "the optimizer holds none of the model's 8 trainable parameters"),
    "emptied": (with_optimizer(emptied), "the optimizer holds none of the model's 8 trainable parameters"),
    "frozen": (with_model(frozen), "no parameter of the model requires a gradient, so nothing would be trained"),
}


@pytest.mark.parametrize("what", BUILDS)
def test_a_build_that_returns_something_else_is_refused_with_its_label_and_width(what: str):
    make, message = BUILDS[what]
    said = refusal({"SP": make})
    assert "build(16) of 'SP'" in said
    assert message in said


@pytest.mark.parametrize("what", ["no optimizer", "foreign"])
def test_a_bad_build_is_refused_the_same_way_in_a_folder(what: str, tmp_path: Path):
    assert BUILDS[what][1] in refusal(BUILDS[what][0], save_to=tmp_path)


compiled = [
    pytest.param(lambda model: torch.compile(model, backend="eager"), id="compiled"),
    pytest.param(lambda model: nn.Sequential(torch.compile(model, backend="eager")), id="compiled inside"),
    pytest.param(lambda model: model.compile(backend="eager") or model, id="compiled in place"),
]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("change", compiled)
def test_a_compiled_model_is_refused(change: Callable[[nn.Module], nn.Module]):
    assert "the model is compiled, and hooks on a compiled model silently do not fire" in refusal(with_model(change))


def traced(model: nn.Module) -> nn.Module:
    return torch.jit.trace(model, pair_batch()[0])


scripted = [
    pytest.param(lambda model: torch.jit.script(nn.Sequential(nn.Linear(64, 10))), id="scripted"),
    pytest.param(traced, id="traced"),
    pytest.param(lambda model: nn.Sequential(traced(model)), id="traced inside"),
]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("change", scripted)
def test_a_script_module_is_refused(change: Callable[[nn.Module], nn.Module]):
    def make(width: int) -> Any:
        model = change(parts(width)[0])
        return model, torch.optim.SGD(model.parameters(), lr=0.1)

    assert "is or holds a ScriptModule, whose calls cannot be hooked" in refusal(make)


# ---- batch and loss


def detached(model: nn.Module, batch: Any) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1]).detach()


def unreduced(model: nn.Module, batch: Any) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def partly(model: nn.Module, batch: Any) -> torch.Tensor:
    return model.input(batch[0]).mean()


LOSSES = {
    "no loss for a pair": (
        {"loss": None},
        "no loss= was given and the batch is (Tensor[16, 64], Tensor[16]). For a pair (x, y) pass loss=",
    ),
    "no loss for a tensor": ({"loss": None, "batch": pair_batch()[0]}, "the batch is Tensor[16, 64]"),
    "no loss in the output": ({"loss": None, "batch": {"x": pair_batch()[0]}}, "the loss must be a tensor with one"),
    "no batch": ({"batch": None}, "there is no batch: pass batch=, or let build return a Trial with one"),
    "a criterion without a pair": (
        {"batch": pair_batch()[0]},
        "a loss of (output, target) needs a batch (x, y), got Tensor[16, 64]",
    ),
    "a module without a pair": ({"batch": {"x": 3}, "loss": nn.MSELoss()}, "needs a batch (x, y), got {'x': int}"),
    "not reduced": ({"loss": unreduced}, "the loss must be a tensor with one element, got Tensor[16]"),
    "a number": ({"loss": lambda model, batch: 1.0}, "the loss must be a tensor with one element, got float"),
    "nothing": ({"loss": lambda model, batch: None}, "the loss must be a tensor with one element, got NoneType"),
    "constant": ({"loss": lambda model, batch: torch.ones(())}, "does not depend on any trainable parameter"),
    "detached": ({"loss": detached}, "does not depend on any trainable parameter (it has no gradient)"),
    "few from a function": (
        {"batch": lambda seed: [pair_batch(), pair_batch()]},
        "2 batches are too few for 2 steps",
    ),
    "no such device": ({"device": "abacus"}, "abacus"),
    "none from a function": ({"batch": lambda seed: None}, "there is no batch"),
}


class Keywords(nn.Module):
    """A model that takes its batch by keyword, as Hugging Face models do, and returns no loss."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.model(x),)


@pytest.mark.parametrize("what", LOSSES)
def test_a_batch_or_loss_that_cannot_be_used_is_refused(what: str):
    options, message = LOSSES[what]
    assert message in refusal(with_model(Keywords) if what == "no loss in the output" else build, **options)


@pytest.mark.fault(54)
def test_a_loss_that_does_not_reach_what_is_trained_is_refused():
    def make(width: int) -> Any:
        model, _ = parts(width)
        return model, torch.optim.SGD(model.readout.parameters(), lr=0.1)

    assert "any parameter that the optimizer holds: none received a gradient" in refusal(make, loss=partly)


def test_without_updates_the_loss_need_not_reach_a_parameter():
    assert not check(loss=detached, steps=0).missing


@pytest.mark.parametrize("trial", [{"batch": pair_batch()}, {"batch": pair_batch(), "loss": F.cross_entropy}])
def test_a_trial_may_bring_what_the_check_lacks(trial: dict[str, Any]):
    options = {"batch": None} if "loss" not in trial else {"batch": None, "loss": None}
    assert not check(lambda width: coordcheck.Trial(*parts(width), **trial), **options).missing


# ---- what cannot be sent to workers


def locked() -> Callable[[int], Any]:
    lock = threading.Lock()

    def make(width: int) -> Any:
        with lock:
            return parts(width)

    return make


def test_a_build_that_cannot_be_sent_to_workers_is_refused():
    assert "pickle" in refusal(locked(), jobs=2)


def test_a_build_that_cannot_be_sent_runs_in_this_process():
    assert not check(locked()).missing


def test_a_submitter_of_cluster_jobs_is_refused_before_anything_is_submitted():
    submitted = []

    class Jobs:
        submit = submitted.append

    assert "has no map and no shutdown. Pass jobs=N, or let each job of a cluster" in refusal(executor=Jobs())
    assert submitted == []


def test_an_executor_that_was_shut_down_is_refused():
    executor = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
    executor.shutdown()
    assert "cannot schedule new futures after shutdown" in refusal(executor=executor)


def test_a_build_that_refers_to_itself_is_accepted():
    def make(width: int) -> Any:
        return parts(width) if width >= 32 else make(2 * width) if width < 16 else parts(16)

    assert not check(make).missing


# ---- NaN and Inf are findings, not crashes


class Burst(nn.Module):
    """Hands its input on, until one step of a wide model turns it into something that is no number."""

    def __init__(self, value: float, at: int) -> None:
        super().__init__()
        self.value, self.at, self.calls = value, at, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x * self.value if self.calls > self.at else x * 1.0


def bursting(value: float, *, at: int, width_from: int) -> Callable[[int], Any]:
    """A build with a layer named `burst` that goes wrong at step `at` from a width on."""

    def make(width: int) -> Any:
        burst = Burst(value, at if width >= width_from else 1000)
        layers = {"input": nn.Linear(64, width), "burst": burst, "readout": nn.Linear(width, 10)}
        model = nn.Sequential()
        for name, layer in layers.items():
            model.add_module(name, layer)
        return model, torch.optim.SGD(model.parameters(), lr=0.1)

    return make


def assert_drawn_and_written(report: coordcheck.Report) -> None:
    for kind in ("divergence", "slopes"):
        report.figure(kind).canvas.draw()
    assert json.loads(report.to_json())["exit_code"] == 1
    assert "not finite" in str(report)


@pytest.mark.parametrize(("value", "word"), [(math.inf, "inf"), (math.nan, "nan")])
def test_a_layer_that_leaves_the_numbers_is_a_verdict(value: float, word: str, tmp_path: Path):
    report = check(bursting(value, at=2, width_from=64), widths=(16, 32, 64, 128), steps=3, save_to=tmp_path)
    verdicts = report.verdicts.set_index("layer")["verdict"]
    assert verdicts["burst"] == "not finite"
    assert report.exit_code == 1
    assert not report.missing
    assert [note for note in report.notes if f"first {word} in burst at t=2" in note] == [
        f"make: first {word} in burst at t=2 (width 64, 128, 2 runs)"
    ]
    with pytest.raises(NotWidthInvariant, match="not finite"):
        report.raise_for_status()
    assert_drawn_and_written(report)
    assert coordcheck.load(tmp_path).exit_code == 1


@pytest.mark.parametrize("value", [math.inf, math.nan])
@pytest.mark.parametrize("width_from", [1, 32, 64])
@pytest.mark.parametrize("at", [0, 2])
def test_wherever_the_numbers_are_left_the_report_is_whole(value: float, width_from: int, at: int):
    report = check(bursting(value, at=at, width_from=width_from))
    assert report.exit_code == 1
    assert_drawn_and_written(report)


def test_numbers_that_are_never_left_are_not_reported():
    report = check(bursting(math.inf, at=2, width_from=1000))
    assert "not finite" not in set(report.verdicts["verdict"])
    assert not [note for note in report.notes if "first" in note]


@pytest.mark.parametrize("rate", [math.inf, math.nan])
def test_a_learning_rate_that_is_no_number_is_a_verdict_and_is_saved(rate: float, tmp_path: Path):
    def make(width: int) -> Any:
        model, _ = parts(width)
        return model, torch.optim.SGD(model.parameters(), lr=rate)

    assert check(make, save_to=tmp_path).exit_code == 1
    assert coordcheck.load(tmp_path).exit_code == 1


@pytest.mark.fault(47)
@pytest.mark.parametrize("widths", [(64,), 64])
def test_one_width_shows_its_scales_and_has_no_verdict(widths):
    report = check(widths=widths)
    assert (report.exit_code, report.status["build"].value) == (2, "undecided")
    assert "a verdict needs at least 3 distinct widths with finished runs; 'build' has 1 (64)" in str(report)
    assert re.search(r"readout +64 +[\d.]+", str(report))


@pytest.mark.fault(49)
def test_two_widths_have_no_slope_and_no_verdict():
    report = check(widths=(64, 32))
    assert (report.exit_code, report.widths) == (2, [32, 64])
    assert report.slopes["slope"].isna().all()


@pytest.mark.fault(48)
def test_widths_given_twice_are_checked_once_and_that_is_told(caplog):
    assert distinct_widths([64, "32", 64, 128, 32]) == [32, 64, 128]
    assert [record.getMessage() for record in caplog.records] == ["widths given twice are checked once: 32, 64"]
    caplog.clear()
    assert distinct_widths([128, 32]) == [32, 128]
    assert caplog.records == []


@pytest.mark.fault(52)
def test_a_width_that_the_heads_do_not_divide_fails_alone():
    def make(width: int) -> Any:
        if width % 16:
            raise ValueError(f"embed_dim {width} must be divisible by num_heads 16")
        return mlp("SP")(width)

    report = check(make, widths=(16, 32, 40, 64))
    assert [(record.key.width, record.outcome.value) for record in report.missing] == [(40, "failed")]
    assert "make: 1 run failed (width 40): ValueError: embed_dim 40 must be divisible by num_heads 16" in report.notes
    assert report.exit_code in (1, 3)
    assert set(report.status) == {"make"}
    assert report.widths == [16, 32, 64]
