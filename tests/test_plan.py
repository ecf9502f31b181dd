"""What a check would train, before it is trained: everything is read off models that were never given memory."""

from __future__ import annotations

import json
import math
import random
import re
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import default_device, pair_batch
from rich.console import Console
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.overrides import _get_current_function_mode_stack

import coordcheck
from coordcheck import CoordCheckError
from coordcheck.checks import demo
from coordcheck.checks.plans import Plan, drafting, plan
from coordcheck.checks.plans.blueprints import Place
from coordcheck.checks.plans.timings import carried_on
from coordcheck.models import mlp, transformer

WIDTHS = (16, 32, 64)


def planned(build: Any, **options: Any) -> Plan:
    return plan(build, **{"widths": WIDTHS, **options})


def adam(model: nn.Module, lr: float = 1e-3) -> tuple[nn.Module, torch.optim.Optimizer]:
    return model, torch.optim.Adam(model.parameters(), lr=lr)


def net(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4))


def column(found: Plan, name: str) -> dict[str, Any]:
    values = [None if value != value else value for value in found.parameters[name]]
    return dict(zip(found.parameters["parameter"], values, strict=True))


def texts(found: Plan, level: str) -> list[str]:
    return found.problems.loc[found.problems["level"] == level, "text"].tolist()


def said(found: Plan, level: str) -> str:
    """The one obstacle of a level."""
    (text,) = texts(found, level)
    return text


def places(found: Plan) -> list[str]:
    return found.builds["place"].tolist()


# ---- the reference models: roles, shapes and exponents exactly


def test_roles_shapes_and_learning_rates_of_the_reference_mlp():
    found = planned(mlp("µP", lr=0.01, base_width=16, inputs=8, outputs=4))
    assert column(found, "role") == {
        "input.weight": "input",
        "input.bias": "vector",
        "hidden.0.weight": "hidden",
        "hidden.0.bias": "vector",
        "hidden.1.weight": "hidden",
        "hidden.1.bias": "vector",
        "readout.weight": "readout",
        "readout.bias": "constant",
    }
    assert list(column(found, "shape").values()) == ["n×8", "n", "n×n", "n", "n×n", "n", "4×n", "4"]
    rates = column(found, "learning_rate_exponent")
    assert [name for name, exponent in rates.items() if exponent == -1.0] == [
        "hidden.0.weight",
        "hidden.1.weight",
        "readout.weight",
    ]
    assert set(rates.values()) == {0.0, -1.0}
    assert set(column(found, "learning_rate_text").values()) == {"0.01", "0.01 × m^-1"}
    assert found.exit_code == 0
    assert found.problems.empty


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_exponents_are_those_of_the_parametrizations_tables(optimizer: str):
    builds = {name: mlp(name, optimizer) for name in ("SP", "NTK", "mean-field", "µP")}
    table = planned(builds).parameters
    for name in builds:
        model, made = builds[name](16)
        roles = {id(p): role for p, role in model.roles()}
        rules = coordcheck.models.parametrization("mlp", name, optimizer).rules
        expected = {n: rules[roles[id(p)]].lr for n, p in model.named_parameters()}
        own = table[table["label"] == name]
        assert dict(zip(own["parameter"], own["learning_rate_exponent"], strict=True)) == expected
        assert made


def test_roles_of_the_reference_transformer():
    found = planned(transformer("µP", depth=1, biases=True, norm="layernorm"))
    roles = column(found, "role")
    matrices = ("query", "key", "value", "output")
    assert {name: role for name, role in roles.items() if name.endswith("weight")} == {
        "embedding.weight": "input",
        "positions.weight": "input",
        "blocks.0.attention_norm.weight": "vector",
        **{f"blocks.0.attention.{name}.weight": "hidden" for name in matrices},
        "blocks.0.mlp_norm.weight": "vector",
        "blocks.0.mlp.up.weight": "hidden",
        "blocks.0.mlp.down.weight": "hidden",
        "final_norm.weight": "vector",
        "unembedding.weight": "readout",
    }
    biases = {name: role for name, role in roles.items() if name.endswith("bias")}
    assert biases.pop("unembedding.bias") == "constant"
    assert set(biases.values()) == {"vector"}
    shapes = column(found, "shape")
    assert (shapes["blocks.0.mlp.up.weight"], shapes["unembedding.weight"]) == ("4n×n", "256×n")


def test_shared_keys_and_values_are_narrow_in_every_block():
    found = planned(transformer("µP", kv_heads=1, grows="heads", depth=2))
    narrow = {name for name, role in column(found, "role").items() if role == "narrow"}
    assert narrow == {f"blocks.{block}.attention.{name}.weight" for block in (0, 1) for name in ("key", "value")}
    assert column(found, "role")["unembedding.weight"] == "readout"


def test_roles_agree_with_those_that_a_diagnosis_sees():
    batch = pair_batch()
    found = planned(mlp("µP", depth=4))
    report = coordcheck.diagnose(mlp("µP", depth=4), batch, loss=nn.functional.cross_entropy, widths=WIDTHS, seeds=1)
    seen = report.parameters
    assert column(found, "role") == dict(zip(seen["layer"], seen["role"], strict=True))


class Zoo(nn.Module):
    """One of each kind of module whose weights tell their axes, and some that do not."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.own = nn.Parameter(torch.zeros(8, width))
        self.own_square = nn.Parameter(torch.zeros(width, width))
        self.experts = nn.Parameter(torch.zeros(4, width, 2 * width))
        self.table = nn.Parameter(torch.zeros(3, 5))
        self.scalar = nn.Parameter(torch.zeros(()))
        self.stem = nn.Conv2d(3, width, 3)
        self.depthwise = nn.Conv2d(width, width, 3, groups=width)
        self.up = nn.ConvTranspose2d(width, width, 2)
        self.up_depthwise = nn.ConvTranspose2d(width, width, 2, groups=width)
        self.norm = nn.LayerNorm((4, width))
        self.attention = nn.MultiheadAttention(width, 2, add_bias_kv=True)
        self.recurrent = nn.LSTM(width, width)
        self.router = nn.Linear(width, 4)
        self.widen = nn.Linear(4, width)
        self.value = nn.Linear(width, 1)
        self.policy = nn.Linear(width, 6)


def test_roles_by_the_kind_of_module():
    found = planned(lambda width: adam(Zoo(width)))
    roles = column(found, "role")
    assert {name: role for name, role in roles.items() if not name.endswith(".bias")} == {
        "own": None,  # added, or multiplied from either side: one growing axis does not tell
        "own_square": "hidden",
        "experts": "hidden",
        "table": "constant",
        "scalar": "constant",
        "stem.weight": "input",
        "depthwise.weight": "input",
        "up.weight": "hidden",
        "up_depthwise.weight": "input",
        "norm.weight": "vector",
        "attention.in_proj_weight": "hidden",
        "attention.in_proj_bias": "vector",
        "attention.bias_k": None,
        "attention.bias_v": None,
        "attention.out_proj.weight": "hidden",
        "recurrent.weight_ih_l0": "hidden",
        "recurrent.weight_hh_l0": "hidden",
        "recurrent.bias_ih_l0": "vector",
        "recurrent.bias_hh_l0": "vector",
        "router.weight": "narrow",
        "widen.weight": "input",
        "value.weight": "readout",
        "policy.weight": "readout",
    }
    assert column(found, "shape")["recurrent.weight_ih_l0"] == "4n×n"
    assert column(found, "shape")["scalar"] == "scalar"
    assert said(found, "note") == (
        "role unclear by shape: own, attention.bias_k, attention.bias_v: one axis grows, in a kind of module that is "
        "not known. A check sees how it is used"
    )
    assert "unclear" in str(found)


class Conv1D(nn.Module):
    """A linear layer whose weight is (in, out), as transformers has it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(inputs, outputs))


def test_a_transposed_linear_layer_is_known_by_name():
    found = planned(lambda width: adam(nn.Sequential(Conv1D(8, width), Conv1D(width, 4))))
    assert list(column(found, "role").values()) == ["input", "readout"]


def test_roles_may_be_overridden():
    found = planned(lambda width: adam(Zoo(width)), roles={"own": "vector", "*_k": "vector", "attention.*": "vector"})
    assert column(found, "role")["own"] == "vector"
    assert not texts(found, "note")


# ---- settings


def test_weight_decay_and_its_product_with_the_learning_rate():
    def build(width: int) -> Any:
        model = net(width)
        matrices = [p for p in model.parameters() if p.dim() == 2]
        rest = [p for p in model.parameters() if p.dim() < 2]
        groups = [{"params": matrices, "lr": 0.1 / width, "weight_decay": width / 1000}, {"params": rest}]
        return model, torch.optim.AdamW(groups, lr=0.01, weight_decay=0.1)

    found = planned(build)
    table = found.parameters.set_index("parameter")
    assert table.loc["2.weight", ["learning_rate_exponent", "weight_decay_exponent", "decay_exponent"]].tolist() == [
        -1.0,
        1.0,
        0.0,
    ]
    assert table.loc["2.weight", "weight_decay_text"] == "0.016 × m^1"
    assert table.loc["2.weight", "learning_rate"] == pytest.approx(0.1 / 16)
    assert found.problems.empty
    assert "weight decay" in str(found)


def test_a_decay_whose_pull_depends_on_the_width_is_noted():
    found = planned(mlp("µP", "adamw"))
    assert column(found, "decay_exponent")["hidden.0.weight"] == -1.0
    assert "learning rate x weight decay of hidden.0.weight and 2 more scales as m^-1 (m = width / base width)" in said(
        found, "note"
    )


def test_a_learning_rate_that_is_no_power_of_the_width_is_noted():
    rates = {16: 0.1, 32: 0.01, 64: 0.08}
    found = planned(lambda width: adam(net(width), rates[width]))
    assert said(found, "note") == (
        "the learning rate of {0,2,4}.weight (3), {0,2,4}.bias (3) is no power of the width: 0.1, 0.01, 0.08"
    )
    assert set(column(found, "learning_rate_text").values()) == {"0.1…0.08"}


def test_a_learning_rate_of_0_is_a_problem():
    def build(width: int) -> Any:
        model, optimizer = adam(net(width))
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 100)
        return model, optimizer

    found = planned(build)
    assert said(found, "problem").startswith("learning rate 0 at the start: {0,2,4}.weight (3), {0,2,4}.bias (3).")
    assert found.exit_code == 0


def test_a_learning_rate_in_a_tensor_is_read():
    found = planned(lambda width: adam(net(width), torch.tensor(0.01) / width))
    assert set(column(found, "learning_rate_exponent").values()) == {-1.0}
    assert places(found) == ["parameters on meta"] * 3


def test_several_optimizers_are_one():
    def build(width: int) -> Any:
        model = net(width)
        return model, [torch.optim.SGD(model[:2].parameters(), lr=1.0), torch.optim.Adam(model[2:].parameters())]

    found = planned(build)
    assert column(found, "learning_rate")["0.weight"] == 1.0
    assert column(found, "learning_rate")["2.weight"] == 1e-3
    assert set(found.builds["optimizer"]) == {"SGD, Adam"}
    assert "SGD, Adam" in str(found)


def test_a_trial_is_accepted():
    def build(width: int) -> coordcheck.Trial:
        return coordcheck.Trial(*adam(net(width)), batch=(torch.randn(4, 8), torch.zeros(4)))

    assert planned(build).exit_code == 0


# ---- what the optimizers hold


def test_a_parameter_that_no_optimizer_holds_is_a_problem():
    def build(width: int) -> Any:
        model = net(width)
        return model, torch.optim.Adam(model[2:].parameters())

    found = planned(build)
    assert said(found, "problem") == (
        "no optimizer holds 0.weight, 0.bias: never updated, though requires_grad is True"
    )
    assert column(found, "learning_rate")["0.weight"] is None
    assert "no optimizer" in str(found)


def test_an_optimizer_of_another_model_cannot_be_checked():
    found = planned(lambda width: (net(width), torch.optim.Adam(net(width).parameters())))
    assert found.exit_code == 2
    assert "the optimizer holds none of the model's 6 trainable parameters" in said(found, "stops")


def test_tensors_that_the_model_no_longer_has_are_a_problem():
    def build(width: int) -> Any:
        model, optimizer = adam(net(width))
        model[4] = nn.Linear(width, 4)
        return model, optimizer

    problems = texts(planned(build), "problem")
    assert problems[0].startswith("no optimizer holds 4.weight, 4.bias")
    assert problems[1] == (
        "the optimizer holds 2 tensors that are not the model's parameters (width 16: 4×16, 4): was it made from "
        "another model, or before a part was replaced?"
    )


def test_a_parameter_in_two_optimizers_is_a_problem():
    def build(width: int) -> Any:
        model = net(width)
        return model, [torch.optim.SGD(model.parameters(), lr=1.0), torch.optim.Adam(model[4].parameters())]

    assert said(planned(build), "problem").startswith("held more than once: 4.weight, 4.bias:")


def test_frozen_parameters_are_listed():
    def build(width: int) -> Any:
        model = net(width)
        model[0].requires_grad_(False)
        return adam(model)

    found = planned(build)
    assert "frozen (requires_grad is False), neither trained nor judged: 0.weight, 0.bias" in texts(found, "note")
    assert not column(found, "trainable")["0.weight"]
    assert "frozen" in str(found)


def test_what_holds_at_some_widths_only_says_at_which():
    def build(width: int) -> Any:
        model = net(width)
        model[0].requires_grad_(width != 32)
        return adam(model)

    notes = texts(planned(build), "note")
    assert notes == ["frozen (requires_grad is False), neither trained nor judged: 0.weight, 0.bias (width 32)"]


def test_tied_parameters_are_one_and_listed():
    def build(width: int) -> Any:
        model = nn.ModuleDict({"embedding": nn.Embedding(32, width), "head": nn.Linear(width, 32, bias=False)})
        model["head"].weight = model["embedding"].weight
        return adam(model)

    for make in (build, lambda width: torch.linspace(0, 1, 2).tolist() and build(width)):
        found = planned(make)
        assert said(found, "note") == "tied: embedding.weight = head.weight"
        assert found.parameters["parameter"].tolist() == ["embedding.weight"]
        assert found.builds["parameters"].tolist() == [32 * width for width in WIDTHS]
    assert places(found) == ["parameters on meta"] * 3


def test_lazy_parameters_are_listed():
    def build(width: int) -> Any:
        return adam(nn.Sequential(nn.LazyLinear(width), nn.ReLU(), nn.Linear(width, 4)))

    found = planned(build)
    assert said(found, "note") == ("lazy, of no shape before a first forward pass, and not counted: 0.weight, 0.bias")
    assert column(found, "shape")["0.weight"] == "not known yet"
    assert column(found, "role") == {"0.weight": None, "0.bias": None, "2.weight": "readout", "2.bias": "constant"}
    assert found.exit_code == 0


# ---- names and shapes across the widths


def test_names_that_depend_on_the_width():
    def build(width: int) -> Any:
        model = net(width)
        if width > 16:
            model.add_module("downsample", nn.Linear(width, width))
        return adam(model)

    found = planned(build)
    assert said(found, "problem") == (
        "2 parameters only at width 32, 64: downsample.weight, downsample.bias; not compared elsewhere"
    )
    assert said(found, "note") == "the number of parameters differs: 6 at 16, 8 at 32, 8 at 64"
    assert column(found, "widths")["downsample.weight"] == 2
    assert found.exit_code == 0


def test_names_that_never_agree_stop_the_check():
    found = planned(lambda width: adam(nn.ModuleDict({f"layer{width}": nn.Linear(8, width)})))
    assert said(found, "stops") == "no parameter has the same name at 3 widths, so nothing can be compared"
    assert found.exit_code == 2


def test_a_factory_that_ignores_the_width_cannot_be_checked():
    found = planned(lambda width: adam(net(16)))
    assert said(found, "stops") == (
        "equal parameter shapes at widths 16, 32, 64: does the factory use its width argument? "
        'If another axis is checked, name it: axis="depth".'
    )
    assert found.exit_code == 2


def test_widths_that_are_rounded_to_one_are_a_problem():
    found = planned(lambda width: adam(net(max(width, 33))), widths=(48, 16, 24, 64))
    assert found.exit_code == 2
    found = planned(lambda width: adam(net({40: 32}.get(width, width))), widths=(16, 32, 40, 64))
    assert "equal parameter shapes at widths 32, 40" in said(found, "problem")
    assert found.exit_code == 0


def test_along_another_axis_the_shapes_may_stay_and_names_may_differ():
    def build(depth: int) -> Any:
        return adam(nn.Sequential(*(nn.Linear(8, 8) for _ in range(depth))), lr=0.1 / depth)

    found = planned(build, widths=(2, 4, 8), axis="depth")
    assert found.exit_code == 0
    assert not texts(found, "problem")
    assert set(column(found, "role").values()) == {None}
    assert found.cost.diagnosed == 0
    text = str(found)
    assert "depth 2 to 8" in text
    assert "m = depth/2" in text
    assert "unclear" not in text


def test_sizes_that_are_rounded_are_noted():
    def build(width: int) -> Any:
        inner = 16 * math.ceil(8 * width / 3 / 16)
        return adam(nn.Sequential(nn.Linear(8, width), nn.Linear(width, inner), nn.Linear(inner, 4)))

    found = planned(build, widths=(16, 32, 64, 128))
    assert said(found, "note") == (
        "grows in no power of the width (rounded?): 1.weight, 1.bias, 2.weight: 48, 96, 176, 352"
    )
    assert column(found, "shape")["1.weight"] == "48…352×n"
    assert column(found, "role")["1.weight"] == "hidden"


def test_fewer_than_three_widths_cannot_be_judged():
    found = planned(mlp(), widths=(64, 128))
    assert found.exit_code == 2
    assert said(found, "stops").startswith("a verdict needs at least 3 distinct widths, got 2 (64, 128).")
    assert column(found, "role")["hidden.0.weight"] == "hidden"


# ---- builds that raise


def test_a_width_that_raises_is_named_and_the_others_are_planned():
    found = planned(transformer(), widths=(16, 32, 50, 64))
    assert (
        said(found, "missing")
        == "build fails at width 50: width 50 is not a multiple of 4, the part that does not grow."
    )
    assert found.exit_code == 3
    assert places(found) == ["meta", "meta", "failed", "meta"]
    assert "WIDTHS MISSING" in str(found)
    assert column(found, "shape")["blocks.0.mlp.up.weight"] == "4n×n"


def test_a_build_that_raises_everywhere_stops_the_check():
    def build(width: int) -> Any:
        raise ZeroDivisionError("first line\nlast line")

    found = planned({"bad": build, "good": mlp()})
    assert said(found, "stops") == "build fails at every width: ZeroDivisionError: last line"
    assert found.exit_code == 2
    text = str(found)
    assert "bad: CANNOT BE CHECKED" in text
    assert "good: CAN BE CHECKED" in text


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda width: None, "returned NoneType; it must return (model, optimizer) or a Trial."),
        (lambda width: (3, 4), "returned int as the model; it must be a torch.nn.Module."),
        (lambda width: (net(width), 3), "returned int as the optimizer"),
    ],
)
def test_what_is_no_model_and_optimizer_is_said(made: Callable[[int], Any], message: str):
    found = planned({"it": made})
    assert said(found, "stops").startswith(f"build fails at every width: {message}")
    assert found.exit_code == 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_model_that_a_check_would_refuse_is_refused():
    found = planned(lambda width: adam(torch.compile(net(width), backend="eager")))
    assert "the model is compiled, and hooks on a compiled model silently do not fire" in said(found, "stops")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"build": 3}, "must be a function of the width"),
        ({"build": {}}, "there is nothing to check"),
        ({"widths": (0, 1, 2)}, "widths must be positive integers"),
        ({"seeds": 0}, "seeds must be"),
        ({"steps": -1}, "steps must be"),
        ({"roles": {"a": "big"}}, "roles must map"),
    ],
)
def test_bad_arguments_are_refused(options: dict[str, Any], message: str):
    with pytest.raises(coordcheck.CoordCheckError, match=re.escape(message)):
        plan(**{"build": mlp(), **options})


# ---- where it is built


def reads_a_value(width: int) -> Any:
    rates = [rate.item() for rate in torch.linspace(0, 0.1, 3)]
    return adam(nn.Sequential(nn.Linear(8, width), nn.Dropout(rates[0]), nn.Linear(width, 4)))


def from_numpy(width: int) -> Any:
    model = net(width)
    values = np.random.default_rng(0).normal(size=(width, width)).astype(np.float32)
    model[2].weight = nn.Parameter(torch.from_numpy(values))
    return adam(model)


def on_a_device(width: int) -> Any:
    return adam(nn.Sequential(nn.Linear(8, width, device="cpu"), nn.Linear(width, 4, device="cpu")))


def moved(width: int) -> Any:
    return adam(net(width).to("cpu").to(torch.bfloat16).cpu())


def accelerated(width: int) -> Any:
    return adam(nn.Sequential(nn.Linear(8, width, device="cuda"), nn.Linear(width, 4)).cuda().to("cuda:0"))


def shared_outside(width: int) -> Any:
    weight = nn.Parameter(torch.full((width, 8), torch.linspace(0, 1, 2)[1].item()))
    model = nn.Module()
    model.first, model.second = weight, weight
    return model, torch.optim.Adam([weight])


@pytest.mark.parametrize(
    ("build", "place"),
    [
        (reads_a_value, "parameters on meta"),
        (from_numpy, "meta"),
        (on_a_device, "meta"),
        (moved, "meta"),
        (accelerated, "meta"),
        (shared_outside, "parameters on meta"),
    ],
)
def test_builds_that_name_devices_or_values_take_no_memory(build: Callable[[int], Any], place: str):
    found = planned(build)
    assert places(found) == [place] * 3
    assert found.exit_code == 0
    assert not texts(found, "problem")


def test_the_type_that_a_model_is_moved_to_is_kept():
    assert planned(moved).builds["bytes"].tolist() == [2 * size for size in planned(moved).builds["parameters"]]


def for_real(width: int) -> Any:
    model = net(width)
    scale = model[0].weight.std().item()
    return adam(model, lr=1e-3 if scale > 0 else math.nan)


def test_a_build_that_reads_its_parameters_is_built_for_real_and_says_why():
    found = planned(for_real)
    assert places(found) == ["for real"] * 3
    assert said(found, "note") == (
        "width 16, 32, 64 built for real: RuntimeError: Tensor.item() cannot be called on meta tensors"
    )
    assert column(found, "role")["2.weight"] == "hidden"
    assert found.exit_code == 0
    assert found.builds["state_bytes"].isna().all()
    assert "for real, " in str(found)


def test_what_would_be_large_for_real_is_not_built(monkeypatch: pytest.MonkeyPatch):
    seen = []

    def build(width: int) -> Any:
        seen.append(width)
        return for_real(width)

    monkeypatch.setattr(drafting, "LARGEST_REAL", 30_000)
    found = planned(build, widths=(16, 32, 64, 1024))
    assert places(found) == ["for real", "for real", "for real", "not built"]
    assert seen == [16, 16, 16, 32, 64]
    assert (
        "width 1024 not built: its parameters may hold 0.0051 GB, and not on the meta device"
        in texts(found, "note")[-1]
    )
    assert found.exit_code == 0
    assert "the runs whose model could be built" in str(found)


def test_an_error_of_one_width_is_not_tried_for_real_when_that_is_large(monkeypatch: pytest.MonkeyPatch):
    seen = []

    def build(width: int) -> Any:
        seen.append(width)
        if width == 1024:
            raise ValueError("too wide")
        return adam(net(width))

    monkeypatch.setattr(drafting, "LARGEST_REAL", 20_000)
    found = planned(build, widths=(16, 32, 64, 1024))
    assert said(found, "missing") == "build fails at width 1024: ValueError: too wide"
    assert seen == [16, 32, 64, 1024, 1024]


class Own(nn.Parameter):
    """A parameter of a class of its own, which is left where it is."""


def test_parameters_that_stay_real_are_said():
    def build(width: int) -> Any:
        model = net(width)
        model[4].weight = Own(torch.zeros(4, width, device="cpu"))
        return adam(model)

    found = planned(build)
    assert said(found, "note") == "width 16, 32, 64 built for real: build puts parameters on cpu by itself"


def test_a_model_of_ten_billion_parameters_takes_no_time_and_no_memory():
    planned(mlp())  # the first optimizer imports much of torch
    resource = pytest.importorskip("resource")
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    found = plan(mlp("µP", depth=40), widths=(4096, 8192, 16384))
    assert found.builds["parameters"].iloc[-1] > 10e9
    assert time.process_time() - started < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kilobytes
    assert places(found) == ["meta"] * 3


@pytest.mark.parametrize("extra", [1, 2])
def test_one_with_values_takes_no_memory_either(extra: int):
    def build(width: int) -> Any:
        rates = torch.linspace(0, 1, extra).tolist()
        return adam(nn.ModuleList(nn.Linear(width, width) for _ in rates))

    planned(mlp())  # as above
    resource = pytest.importorskip("resource")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = plan(build, widths=(4096, 8192, 16384))  # the widest matrix is 1 GB, of which no page is touched
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000
    assert places(found) == ["parameters on meta"] * 3


# ---- cost


def test_the_cost_counts_runs_passes_and_parameters():
    found = planned({"SP": mlp("SP"), "µP": mlp("µP")}, seeds=2, steps=3, widths=(16, 32, 64, 128))
    sizes = found.builds["parameters"].tolist()
    cost = found.cost
    assert (cost.runs, cost.forwards, cost.updates, cost.diagnosed) == (16, 64, 48, 12)
    assert cost.parameters == 2 * sum(sizes)
    assert cost.widest == 128
    assert cost.widest_ratio == sizes[3] / sizes[0]
    assert cost.widest_share == pytest.approx(2 * sizes[3] / sum(sizes))
    model, _ = mlp("SP")(128)
    assert sizes[3] == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("optimizer", "copies"), [("sgd", 2), ("adam", 4)])
def test_the_memory_of_training_is_measured_by_an_update_on_meta(optimizer: str, copies: int):
    found = planned(mlp("SP", optimizer))
    blueprint = found.blueprints[-1]
    tensors = len(blueprint.parameters)
    assert found.cost.state_known
    assert found.cost.training_bytes == copies * blueprint.bytes + (4 * tensors if optimizer == "adam" else 0)


def test_momentum_is_one_copy():
    def build(width: int) -> Any:
        model = net(width)
        return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    assert planned(build).builds["state_bytes"].tolist() == planned(build).builds["bytes"].tolist()


def test_the_state_of_an_optimizer_that_needs_a_closure_is_not_known():
    def build(width: int) -> Any:
        model = net(width)
        return model, torch.optim.LBFGS(model.parameters())

    found = planned(build)
    assert not found.cost.state_known
    assert found.builds["state_bytes"].isna().all()
    assert "the optimizer's state and activations come on top" in " ".join(str(found).split())


def test_without_a_model_there_is_no_size():
    def build(width: int) -> Any:
        raise ValueError

    found = planned(build)
    assert found.cost.parameters == 0
    assert math.isnan(found.cost.widest_share)
    assert "size:" not in str(found)
    json.loads(found.to_json())


# ---- hygiene


def global_state() -> dict[str, Any]:
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": [part.tolist() if isinstance(part, np.ndarray) else part for part in np.random.get_state()],
        "python": random.getstate(),
        "dtype": torch.get_default_dtype(),
        "device": default_device(),
        "made on": torch.zeros(1).device,
        "grad": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "hooks": len(torch_module._global_parameter_registration_hooks),
        "modes": len(_get_current_function_mode_stack()),
    }


def disturbing(width: int) -> Any:
    torch.manual_seed(width)
    np.random.seed(width)
    random.seed(width)
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(torch.get_num_threads() + 1)
    torch.use_deterministic_algorithms(True)
    torch.set_grad_enabled(False)
    return adam(net(width))


def disturbing_and_raising(width: int) -> Any:
    disturbing(width)
    raise KeyError("on purpose")


@pytest.mark.parametrize("build", [mlp("µP"), reads_a_value, for_real, on_a_device, disturbing, disturbing_and_raising])
def test_the_global_state_is_left_as_found(build: Callable[[int], Any]):
    before = global_state()
    planned(build)
    assert global_state() == before


def test_the_default_device_is_left_as_found():
    def build(width: int) -> Any:
        torch.set_default_device("meta")
        return adam(net(width))

    try:
        assert places(planned(build)) == ["meta"] * 3
        assert torch.zeros(1).device == torch.device("cpu")
        torch.set_default_device(None)
        assert torch.zeros(1).device == torch.device("cpu")
        assert not _get_current_function_mode_stack()
    finally:
        torch.set_default_device(None)


def test_an_interrupt_leaves_the_global_state_as_found():
    def build(width: int) -> Any:
        net(width)
        raise KeyboardInterrupt

    before = global_state()
    with pytest.raises(KeyboardInterrupt):
        planned(build)
    assert global_state() == before


def test_a_build_finds_the_same_random_numbers_at_every_width_and_attempt():
    drawn = []

    def build(width: int) -> Any:
        drawn.append((random.random(), np.random.rand()))
        return for_real(width)

    planned(build)
    assert len(drawn) == 5
    assert len(set(drawn)) == 1


HOSTILE = "[red]x[/red]\x1b[31m\u202e<b>"


class Hostile(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_parameter("weird" + HOSTILE, nn.Parameter(torch.zeros(8, width)))
        self.register_parameter("[/bold]", nn.Parameter(torch.zeros(width)))


def hostile(width: int) -> Any:
    if width == 32:
        raise ValueError(f"{HOSTILE} {width}")
    return adam(Hostile(width))


def test_hostile_names_and_errors_are_text():
    found = planned({"[bold]": hostile}, axis="[width]")
    text = str(found)
    for name in ("[red]x[/red]", "[bold]", "[/bold]", "[width]"):
        assert name in text
    console = Console(force_terminal=True, width=100, record=True)
    with console.capture() as capture:
        console.print(found)
    for shown in (text, re.sub(r"\x1b\[[0-9;]*m", "", capture.get())):
        assert "\x1b" not in shown
        assert "\u202e" not in shown
    assert found.exit_code == 3


def strict(text: str) -> Any:
    def refuse(name: str) -> None:
        raise AssertionError(name)

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("build", [mlp("µP", "adamw"), for_real, hostile, lambda width: adam(Zoo(width))])
def test_json_is_strict_and_whole(build: Callable[[int], Any]):
    found = planned(build)
    data = strict(found.to_json())
    assert data["format"] == "coordcheck plan"
    assert data["exit_code"] == found.exit_code
    assert data["cost"]["runs"] == 9
    for name in ("builds", "parameters", "shapes", "problems"):
        assert len(data[name]) == len(getattr(found, name))
    assert data["shapes"][0]["shape"] == list(found.shapes["shape"].iloc[0])


def test_nothing_is_kept_of_the_models():
    alive: list[Tensor] = []

    def build(width: int) -> Any:
        made = adam(net(width))
        alive.append(made[0][0].weight)
        return made

    found = planned(build)
    assert all(p.is_meta for p in alive)
    assert all(not isinstance(value, Tensor) for one in found.blueprints for p in one.parameters for value in p)


def test_the_words_of_places_are_pinned():
    assert [place.value for place in Place] == ["meta", "parameters on meta", "for real", "failed", "not built"]


TEXT = """\
SP: CAN BE CHECKED  width 16 to 64; 4 parameter tensors, Adam
  width    parameters     memory    built
     16           704    2.82 kB    meta
     32         2,432    9.73 kB    meta
     64         8,960    35.8 kB    meta
  parameter              role       shape    learning rate
  input.weight           input      n×8      0.001
  hidden.*.weight (2)    hidden     n×n      0.001
  readout.weight         readout    4×n      0.001
n = width, m = width/16; roles by shapes and kinds of modules: a check sees how parameters are used
cost: 9 runs (1 label × 3 widths × 3 seeds), 45 forward passes, 36 updates; 6 runs are also
diagnosed (built again, an update or two on a few examples)
size: 36,288 parameters trained in all runs, 74% of them at width 64 (a model of 12.7 times the
smallest); 143 kB for the parameters, gradients and optimizer state of the largest model;
activations come on top"""


def test_the_text_is_one_screen():
    assert str(planned({"SP": mlp("SP", inputs=8, outputs=4, biases=False)})) == TEXT


# ---- base width and seconds


def test_powers_are_of_the_base_width():
    found = planned(mlp("µP", lr=0.01, base_width=16), base=64)
    assert column(found, "learning_rate_text")["hidden.0.weight"] == "0.0025 × m^-1"
    assert "m = width/64;" in str(found)
    assert json.loads(found.to_json())["base"] == 64
    assert column(planned(mlp("µP", lr=0.01)), "learning_rate_text")["input.weight"] == "0.01"


@pytest.mark.parametrize("base", [0, -1, "64", 1.5])
def test_a_base_width_is_a_width(base):
    with pytest.raises(CoordCheckError, match="base must be an integer of 1 or more"):
        planned(mlp(), base=base)


def test_times_are_measured_at_two_widths_and_carried_on():
    found = planned({"a": mlp(inputs=64), "b": mlp(inputs=64)}, timed=True, batch=pair_batch(), loss=F.cross_entropy)
    table = found.builds
    assert table["timed"].tolist() == [True, True, False] * 2
    assert (table["run_seconds"] > 0).all()
    text = str(found)
    assert "a run takes" in text
    assert re.search(r"\n +64 .* ~ 0\.\d+ s +meta\n", text)
    assert re.search(r"\ntime: about \d+ s for all runs, one after the other as here; measured at width 16, 32,", text)
    assert "a run takes" not in str(planned(mlp()))


@pytest.mark.parametrize(
    ("seconds", "carried"),
    [
        ([1.0, 2.0], [1.0, 2.0, 4.0]),  # in proportion to the parameters
        ([1.0, 1.0], [1.0, 1.0, 1.0]),  # the cost of a call alone
        ([2.0, 1.0], [2.0, 1.0, 1.0]),  # noise
        ([0.1, 2.0], [0.1, 2.0, 4.0]),  # no start below zero
    ],
)
def test_times_grow_with_the_parameters(seconds, carried):
    sizes = {8: 100, 16: 200, 32: 400}
    assert [timing.seconds for timing in carried_on("a", sizes, seconds)] == pytest.approx(carried)


def test_what_cannot_be_timed_is_told():
    def build(width: int) -> Any:
        raise ValueError(f"no width {width} today")

    found = planned({"good": mlp(), "bad": build}, timed=True, batch=pair_batch(), loss=F.cross_entropy)
    assert {timing.label for timing in found.timings} == {"good"}
    assert "\nnot timed: bad: ValueError: no width 16 today\n" in str(found)
    (untimed,) = planned({"it": mlp()}, timed=True, batch=pair_batch()).untimed
    assert untimed.reason.startswith("no loss= was given")


def test_a_plan_leaves_what_the_factory_keeps_as_it_was():
    found = planned(demo.build_sp, widths=(16, 32, 64))
    assert found.exit_code == 0
    assert not demo.text_batch().is_meta


def test_plan_and_check_count_the_same_parameters():
    builds = {"mlp": mlp("SP", inputs=64)}
    counted = len(planned(builds).parameters)
    told = str(coordcheck.diagnose(builds, pair_batch(), loss=F.cross_entropy, widths=(16, 32, 64), seeds=1))
    assert f"of {counted} parameters to blame" in told


def test_many_kinds_of_parameters_are_cut_short():
    def build(width: int) -> Any:
        return adam(nn.ModuleDict({f"layer{i}x": nn.Linear(width, width) for i in range(40)}))

    text = str(planned(build))
    assert "and 56 more kinds (plan.parameters)" in text
    assert len(text.splitlines()) < 45
