"""Diagnosis end to end, on models that were not written for it."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer
from torch.utils.checkpoint import checkpoint

import coordcheck
from coordcheck import CoordCheckError, Trial, check, diagnose
from coordcheck.analysis.verdicts import Verdict
from coordcheck.recording.batches import PROBE_EXAMPLES
from coordcheck.recording.updates.norms import spectral_norm
from coordcheck.runs.words import Kind, Quantity, Through

GRID = (16, 32, 64)
BASE = 16
IN, CLASSES, EXAMPLES, VOCABULARY, TOKENS = 8, 5, 16, 11, 12
Made = tuple[nn.Module, Optimizer]


def pairs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(EXAMPLES, IN, generator=generator).to(dtype)
    return x, torch.randint(CLASSES, (EXAMPLES,), generator=generator)


def ids() -> tuple[Tensor, Tensor]:
    tokens = torch.randint(VOCABULARY, (EXAMPLES, TOKENS), generator=torch.Generator().manual_seed(0))
    return tokens, tokens[:, 0] % CLASSES


class Net(nn.Module):
    """Input, hidden and readout matrix; what goes on between is a function of (self, x)."""

    def __init__(self, width: int, forward: Callable[..., Any] | None = None, **parts: Any) -> None:
        super().__init__()
        self.first, self.hidden = nn.Linear(IN, width), nn.Linear(width, width)
        self.readout = nn.Linear(width, CLASSES)
        nn.init.zeros_(self.readout.weight)
        for name, part in parts.items():
            setattr(self, name, nn.Parameter(part) if isinstance(part, Tensor) else part)
        self.function = forward or Net.plain

    def plain(self, x: Tensor) -> Tensor:
        return self.readout(F.relu(self.hidden(F.relu(self.first(x)))))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self, *args, **kwargs)


SLOWER = ("hidden.", "readout.", "inner.", "experts.")  # matrices whose fan-in grows


def scaled(model: nn.Module, width: int, lr: float = 1e-3, slower: Sequence[str] = SLOWER) -> Optimizer:
    """Adam as µP wants it: matrices with a growing fan-in learn at lr / width."""
    groups = [
        {"params": [p], "lr": lr * BASE / width if p.dim() >= 2 and name.startswith(tuple(slower)) else lr}
        for name, p in model.named_parameters()
        if p.requires_grad and not isinstance(p, nn.parameter.UninitializedParameter)
    ]
    return Adam(groups)


def mup(forward: Callable[..., Any] | None = None, **makers: Callable[[int], Any]) -> Callable[[int], Made]:
    """A factory of `Net`s in µP; `makers` make further parts from the width."""

    def build(width: int) -> Made:
        model = Net(width, forward, **{name: make(width) for name, make in makers.items()})
        return model, scaled(model, width)

    return build


def sp(width: int) -> Made:
    model = Net(width)
    return model, Adam(model.parameters(), lr=1e-3)


def diagnosed(build: Any, batch: Any = None, **options: Any) -> coordcheck.Report:
    options = {"loss": F.cross_entropy, "widths": GRID, "seeds": 1, **options}
    report = diagnose(build, pairs() if batch is None else batch, **options)
    assert_all_told(report)
    return report


def assert_all_told(report: coordcheck.Report) -> None:
    """Every trainable parameter has a row: one, or one per block, or one more for a second function."""
    for record in report.records:
        if record.finished and record.uses:
            assert {info.name for info in record.parameters} <= {use.parameter for use in record.uses if use.parameter}
    for label in report.findings:
        table = report.parameters[report.parameters["label"] == label]
        names = {info.name for r in report.records if r.key.label == label for info in r.parameters}
        assert set(table["parameter"].dropna()) >= names
        assert not table["layer"].duplicated().any()
        hidden = table[table["verdict"] == "not visible"]
        assert hidden["explanation"].astype(bool).all()


def verdicts(report: coordcheck.Report) -> dict[str, str]:
    return dict(zip(report.parameters["layer"], report.parameters["verdict"], strict=True))


def roles(report: coordcheck.Report) -> dict[str, str]:
    return dict(zip(report.parameters["layer"], report.parameters["role"], strict=True))


def culprits(report: coordcheck.Report) -> dict[str, str]:
    return dict(zip(report.culprits["layer"], report.culprits["cause"], strict=True))


def row(report: coordcheck.Report, layer: str) -> Any:
    (found,) = report.parameters[report.parameters["layer"] == layer].itertuples()
    return found


def scales_of(report: coordcheck.Report, quantity: str) -> pd.DataFrame:
    table = report.measurements
    return table[table["quantity"] == quantity]


# Both controls


def test_mup_is_ok_and_sp_is_not():
    right, wrong = diagnosed(mup()), diagnosed(sp)
    assert set(verdicts(right).values()) == {"ok"}
    assert culprits(right) == {}
    assert culprits(wrong) == {"hidden.weight": "lr", "readout.weight": "lr"}


# Models that are harmless: nothing may be blamed, and SP's faults must still be found


def _checkpointed(reentrant: bool) -> Callable[..., Tensor]:
    def forward(s: Any, x: Tensor) -> Tensor:
        h = F.relu(s.first(x))
        return s.readout(checkpoint(lambda z: F.relu(s.hidden(z)), h, use_reentrant=reentrant))

    return forward


def _in_place(s: Any, x: Tensor) -> Tensor:
    h = F.relu_(s.first(x))
    return s.readout(s.hidden(h.view(1, *h.shape))[0].tanh_())


def _inplace_modules(s: Any, x: Tensor) -> Tensor:
    relu = nn.ReLU(inplace=True)
    return s.readout(relu(s.hidden(relu(s.first(x)))))


def _tuple(s: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    h = F.relu(s.hidden(F.relu(s.first(x))))
    return s.readout(h), h


def _counting(s: Any, x: Tensor) -> Tensor:
    s.calls = getattr(s, "calls", 0) + 1
    return Net.plain(s, x)


def _writing(s: Any, x: Tensor) -> Tensor:
    return Net.plain(s, x.mul_(0.5))


def _widening(s: Any, x: Tensor) -> Tensor:
    return Net.plain(s, x.to(torch.float32))


def _shared(s: Any, x: Tensor) -> Tensor:
    return s.readout(F.relu(s.hidden(F.relu(s.hidden(F.relu(s.first(x)))))))


def _dropped(s: Any, x: Tensor) -> Tensor:
    return s.readout(F.dropout(F.relu(s.hidden(F.relu(s.first(x)))), 0.1))


def _normed(s: Any, x: Tensor) -> Tensor:
    return s.readout(F.relu(s.norm(s.hidden(F.relu(s.first(x))))))


def _partly_detached(s: Any, x: Tensor) -> Tensor:
    h = F.relu(s.first(x))
    with torch.no_grad():
        s.hidden(h)
    return s.readout(F.relu(s.hidden(h)))


def first_of_tuple(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0])[0], batch[1])


HARMLESS: dict[str, tuple[Callable[[int], Made], dict[str, Any]]] = {
    "checkpoint": (mup(_checkpointed(False)), {}),
    "checkpoint, reentrant": (mup(_checkpointed(True)), {}),
    "views and in place": (mup(_in_place), {}),
    "in-place modules": (mup(_inplace_modules), {}),
    "batch norm": (mup(_normed, norm=nn.BatchNorm1d), {}),
    "layer norm": (mup(_normed, norm=nn.LayerNorm), {}),
    "rms norm": (mup(_normed, norm=nn.RMSNorm), {}),
    "dropout": (mup(_dropped), {}),
    "tuple output": (mup(_tuple), {"loss": first_of_tuple}),
    "counter": (mup(_counting), {}),
    "writes into its batch": (mup(_writing), {}),
    "float32 by force": (mup(_widening), {}),
    "called twice": (mup(_shared), {}),
    "no grad in part": (mup(_partly_detached), {}),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_harmless_models_blame_nothing(name: str):
    build, options = HARMLESS[name]
    report = diagnosed(build, **options)
    assert not report.missing
    assert culprits(report) == {}
    assert {verdicts(report)[f"{layer}.weight"] for layer in ("first", "hidden", "readout")} == {"ok"}


@pytest.mark.parametrize("name", HARMLESS)
def test_the_same_models_without_mup_are_caught(name: str):
    build, options = HARMLESS[name]

    def spoilt(width: int) -> Made:
        model, _ = build(width)
        return model, Adam(model.parameters(), lr=1e-3)

    assert culprits(diagnosed(spoilt, **options)) == {"hidden.weight": "lr", "readout.weight": "lr"}


def test_eval_mode_is_kept():
    modes = []

    def forward(s: Any, x: Tensor) -> Tensor:
        modes.append(s.training)
        return _dropped(s, x)

    def build(width: int) -> Made:
        model, optimizer = mup(forward)(width)
        return model.eval(), optimizer

    assert culprits(diagnosed(build)) == {}
    assert set(modes) == {False}


# What a parameter can be


def test_a_table_that_is_indexed_is_an_embedding():
    report = diagnosed(
        mup(lambda s, x: s.readout(F.relu(s.hidden(F.embedding(x, s.table).mean(1)))), table=_table), ids()
    )
    assert roles(report)["table"] == "input"
    assert culprits(report) == {}


def _table(width: int) -> Tensor:
    return torch.randn(VOCABULARY, width)


LOOKED_UP: list[Any] = [
    pytest.param(lambda s, x: s.table[x].mean(1), {"table": _table}, id="W[ids]"),
    pytest.param(
        lambda s, x: s.table.index_select(0, x.flatten()).view(*x.shape, -1).mean(1),
        {"table": _table},
        id="index_select",
    ),
    pytest.param(lambda s, x: s.bag(x), {"bag": lambda width: nn.EmbeddingBag(VOCABULARY, width)}, id="bag"),
]


@pytest.mark.parametrize(("looked_up", "parts"), LOOKED_UP)
def test_other_ways_of_looking_up_blame_nothing(looked_up: Any, parts: Any):
    report = diagnosed(mup(lambda s, x: s.readout(F.relu(s.hidden(looked_up(s, x)))), **parts), ids())
    assert culprits(report) == {}


TOKEN: list[Any] = [
    pytest.param(
        lambda s, h: torch.cat([s.token.expand(len(h), -1, -1), h[:, None]], 1).mean(1), id="class token, cat"
    ),
    pytest.param(lambda s, h: torch.where(h[:, None, :1] > 0, s.token, h[:, None]).mean(1), id="mask token, where"),
    pytest.param(lambda s, h: h + s.token[0].expand_as(h), id="expand_as"),
    pytest.param(lambda s, h: h + s.token[0].type_as(h), id="type_as"),
]


@pytest.mark.parametrize("joined", TOKEN)
def test_tokens_are_vectors(joined: Any):
    def forward(s: Any, x: Tensor) -> Tensor:
        return s.readout(F.relu(s.hidden(joined(s, F.relu(s.first(x))))))

    report = diagnosed(mup(forward, token=lambda width: torch.randn(1, 1, width)))
    assert {role for name, role in roles(report).items() if name.startswith("token")} == {"vector"}
    assert culprits(report) == {}


def test_an_added_table_is_a_vector():
    def forward(s: Any, x: Tensor) -> Tensor:
        return s.readout(F.relu(s.hidden(F.relu(s.first(x))[:, None] + s.positions).mean(1)))

    report = diagnosed(mup(forward, positions=lambda width: torch.randn(3, width)))
    assert roles(report)["positions"] == "vector"
    assert culprits(report) == {}


def test_a_scalar_after_an_activation_belongs_to_the_readout():
    def build(width: int) -> Made:
        model = Net(width, lambda s, x: s.readout(F.relu(s.hidden(F.relu(s.first(x)))) * (BASE / width)))
        nn.init.normal_(model.readout.weight)
        return model, scaled(model, width, slower=("hidden.",))

    assert culprits(diagnosed(build)) == {}


def test_a_scalar_after_an_activation_in_place_belongs_to_the_readout():
    def build(width: int) -> Made:
        def forward(s: Any, x: Tensor) -> Tensor:
            return s.readout(F.relu(s.hidden(F.relu(s.first(x))), inplace=True) * (BASE / width))

        model = Net(width, forward)
        nn.init.normal_(model.readout.weight)
        return model, scaled(model, width, slower=("hidden.",))

    assert culprits(diagnosed(build)) == {}


def _last_scaled(through: Callable[[Tensor], Tensor]) -> Callable[[int], Made]:
    def build(width: int) -> Made:
        def forward(s: Any, x: Tensor) -> Tensor:
            h = F.relu(s.hidden(F.relu(s.first(x))))
            return through(s.readout(torch.stack([h, h], 1))) * (BASE / width)

        model = Net(width, forward)
        nn.init.normal_(model.readout.weight)
        return model, scaled(model, width, slower=("hidden.",))

    return build


def test_a_scalar_on_the_readout_is_its_own():
    assert culprits(diagnosed(_last_scaled(lambda h: h.select(1, 0)))) == {}


@pytest.mark.parametrize(
    "through",
    [
        pytest.param(lambda h: h[:, 0], id="index"),
        pytest.param(lambda h: F.dropout(h, 0.1).select(1, 0), id="dropout"),
        pytest.param(lambda h: -h.select(1, 0), id="sign"),
    ],
)
def test_a_scalar_on_the_readout_is_its_own_through_functions_that_keep_scale(through: Any):
    assert culprits(diagnosed(_last_scaled(through))) == {}


def test_a_router_of_unit_vectors_is_not_blamed_as_attention():
    def forward(s: Any, x: Tensor) -> Tensor:
        h = F.relu(s.hidden(F.relu(s.first(x))))
        gate = F.linear(F.normalize(h, dim=-1), F.normalize(s.router, dim=-1)).softmax(-1)
        return s.readout(h) * gate[:, :1]

    report = diagnosed(mup(forward, router=lambda width: torch.randn(3, width)))
    assert "attention logits" not in roles(report).values()


@pytest.mark.parametrize("transposed", ["transpose", "mT"])
def test_shared_keys_are_narrow_however_they_are_transposed(transposed: str):
    def forward(s: Any, x: Tensor) -> Tensor:
        h = s.first(x).view(4, -1, s.first.out_features)
        q = s.inner(h).view(*h.shape[:2], -1, 8).transpose(1, 2)  # (batch, heads, time, 8)
        k = s.keys(h)[:, None]
        logits = q @ (k.mT if transposed == "mT" else k.transpose(-1, -2)) / 8
        mixed = (logits.softmax(-1) @ h[:, None].expand(-1, q.shape[1], -1, -1)).mean(1)
        return s.readout(F.relu(s.hidden(mixed))).mean(1)

    def build(width: int) -> Made:
        model = Net(width, forward, inner=nn.Linear(width, width), keys=nn.Linear(width, 8))
        return model, scaled(model, width, slower=(*SLOWER, "keys."))

    report = diagnosed(build, (pairs()[0], torch.arange(4)), probe=(pairs()[0], torch.arange(4)))
    assert roles(report)["keys.weight"] == "narrow"


@pytest.mark.fault(40)
def test_a_tied_weight_is_told_once_per_function():
    def forward(s: Any, x: Tensor) -> Tensor:
        h = F.relu(s.hidden(F.embedding(x, s.table).mean(1)))
        return F.linear(h, s.table)[:, :CLASSES]

    report = diagnosed(mup(forward, table=_table), ids())
    assert [name for name in verdicts(report) if name.startswith("table")] == ["table", "table@linear"]


def test_blocks_that_differ_are_told_one_by_one():
    """Queries, keys and values in one matrix, whose values alone start too large."""

    def build(width: int) -> Made:
        def forward(s: Any, x: Tensor) -> Tensor:
            q, k, v = s.inner(F.relu(s.first(x))).chunk(3, -1)
            return s.readout(F.relu(s.hidden(torch.tanh(q) + torch.tanh(k) + v)))

        model = Net(width, forward, inner=nn.Linear(width, 3 * width))
        with torch.no_grad():
            model.inner.weight[2 * width :] *= (width / BASE) ** 0.5
        return model, scaled(model, width)

    report = diagnosed(build)
    assert culprits(report) == {"inner.weight[2]": "init"}
    assert {"inner.weight[0]", "inner.weight[1]"} < verdicts(report).keys()
    assert "inner.weight" not in verdicts(report)


def test_blocks_that_agree_are_told_as_one():
    def forward(s: Any, x: Tensor) -> Tensor:
        q, k, v = s.inner(F.relu(s.first(x))).chunk(3, -1)
        return s.readout(F.relu(s.hidden(q * k + v)))

    report = diagnosed(mup(forward, inner=lambda width: nn.Linear(width, 3 * width)))
    assert [name for name in verdicts(report) if name.startswith("inner.weight")] == ["inner.weight"]


@pytest.mark.parametrize("wrong", [None, 1])
def test_matrices_taken_from_a_stack_one_by_one_are_judged_one_by_one(wrong: int | None):
    def forward(s: Any, x: Tensor) -> Tensor:
        h = F.relu(s.first(x))
        for expert in range(3):
            h = F.relu(F.linear(h, s.stack[expert]))
        return s.readout(F.relu(s.hidden(h)))

    def build(width: int) -> Made:
        model = Net(width, forward)
        model.stack = nn.Parameter(torch.randn(3, width, width) * (2 / width) ** 0.5)
        if wrong is not None:
            model.stack.data[wrong] *= (width / 16) ** 0.5
        return model, scaled(model, width)

    found = diagnosed(build, seeds=2)
    named = {name for name in verdicts(found) if name.startswith("stack")}
    assert named == ({"stack"} if wrong is None else {"stack[0]", "stack[1]", "stack[2]"})
    assert culprits(found).get("stack[1]") == (None if wrong is None else "init")


@pytest.mark.parametrize("norm", ["weight", "spectral"])
def test_reparametrised_weights_are_told(norm: str):
    wrap = {"weight": nn.utils.parametrizations.weight_norm, "spectral": nn.utils.parametrizations.spectral_norm}[norm]

    def forward(s: Any, x: Tensor) -> Tensor:
        return s.readout(F.relu(s.hidden(F.relu(s.inner(F.relu(s.first(x)))))))

    report = diagnosed(mup(forward, inner=lambda width: wrap(nn.Linear(width, width))))
    through = {use.through for r in report.records for use in r.uses if "parametrizations" in use.parameter}
    assert through == {Through.NORMED, Through.MADE} if norm == "weight" else {Through.NORMED}
    # the lengths of the rows, whose rate was scaled like that of a matrix
    assert culprits(report) == ({"inner.parametrizations.weight.original0": "lr"} if norm == "weight" else {})


def test_parameters_of_a_vectorised_forward_are_not_silently_missing():
    report = diagnosed(mup(lambda s, x: torch.vmap(lambda example: Net.plain(s, example))(x)))
    assert set(verdicts(report).values()) <= {"ok", "not visible"}


def test_a_parameter_that_nothing_uses_is_not_visible_with_a_reason():
    report = diagnosed(mup(idle=lambda width: nn.Linear(width, width)))
    assert verdicts(report)["idle.weight"] == "not visible"
    assert row(report, "idle.weight").explanation == "no gradient reached it"
    assert culprits(report) == {}


def test_a_parameter_that_is_not_trained_is_left_alone():
    def build(width: int) -> Made:
        model = Net(width)
        model.hidden.weight.requires_grad_(False)
        return model, scaled(model, width)

    report = diagnosed(build)
    assert verdicts(report)["hidden.weight"] == "frozen"
    assert row(report, "hidden.weight").explanation == "it is not trained"
    assert culprits(report) == {}


def test_a_matrix_that_is_not_trained_may_start_too_large():
    def build(width: int) -> Made:
        model = Net(width)
        model.hidden.weight.requires_grad_(False).mul_((width / 16) ** 0.5)
        return model, scaled(model, width)

    assert culprits(diagnosed(build)) == {"hidden.weight": "init"}


def test_a_parameter_left_out_of_the_optimizer_is_frozen():
    def build(width: int) -> Made:
        model = Net(width)
        optimizer = scaled(model, width)
        optimizer.param_groups = [g for g in optimizer.param_groups if g["params"][0] is not model.hidden.weight]
        return model, optimizer

    report = diagnosed(build)
    assert verdicts(report)["hidden.weight"] == "frozen"
    assert culprits(report) == {"hidden.weight": "frozen"}
    assert "give it to the optimizer" in row(report, "hidden.weight").remedy
    assert any("no optimizer holds hidden.weight" in note for note in report.notes)
    assert report.exit_code == 1


@pytest.mark.fault(50)
def test_a_group_with_learning_rate_zero_is_frozen():
    def build(width: int) -> Made:
        model, optimizer = mup()(width)
        next(g for g in optimizer.param_groups if g["params"][0] is model.hidden.weight)["lr"] = 0.0
        return model, optimizer

    report = diagnosed(build)
    assert culprits(report) == {"hidden.weight": "frozen"}
    assert row(report, "hidden.weight").explanation.endswith("its learning rate is 0")


@pytest.mark.fault(55)
def test_learning_rate_zero_everywhere_blames_nothing():
    def build(width: int) -> Made:
        model = Net(width)
        return model, Adam(model.parameters(), lr=0.0)

    report = diagnosed(build)
    assert set(verdicts(report).values()) == {"undecided"}
    assert culprits(report) == {}
    assert "learning rate zero?" in row(report, "hidden.weight").explanation
    assert report.exit_code == 3


class WarmUp(Adam):
    """Adam whose first update is at learning rate 0."""

    def step(self, closure: Any = None) -> None:
        if not hasattr(self, "wanted"):
            self.wanted = [group["lr"] for group in self.param_groups]
            for group in self.param_groups:
                group["lr"] = 0.0
        else:
            for group, lr in zip(self.param_groups, self.wanted, strict=True):
                group["lr"] = lr
        super().step()


def test_a_warm_up_from_zero_is_judged_at_its_first_movement():
    def build(width: int, model_rate: float = 1e-3) -> Made:
        model = Net(width)
        return model, WarmUp(model.parameters(), lr=model_rate)

    report = diagnosed(build)
    assert row(report, "readout.weight").step == 2
    assert row(report, "hidden.weight").step == 3, "it has no gradient before its readout has moved"
    assert culprits(report) == {"hidden.weight": "lr", "readout.weight": "lr"}
    assert any("nothing moved before t=2" in note for note in report.notes)


@pytest.mark.fault(50)
def test_a_readout_that_starts_at_zero_is_ok_by_design():
    report = diagnosed(mup())
    assert row(report, "readout.weight").verdict == "ok"
    weights = scales_of(report, Quantity.WEIGHT.value).query("layer == 'readout.weight'")
    assert set(weights["status"].astype(str)) == {"zero"}


def test_a_branch_that_starts_at_zero_moves_its_first_matrix_later():
    """Zero initialisation of a branch's last matrix: the first gets no gradient before the second update."""

    def build(width: int) -> Made:
        def forward(s: Any, x: Tensor) -> Tensor:
            h = F.relu(s.first(x))
            return s.readout(h + s.inner(F.relu(s.hidden(h))))

        model = Net(width, forward, inner=nn.Linear(width, width))
        nn.init.zeros_(model.inner.weight)
        nn.init.normal_(model.readout.weight, std=1 / width)
        return model, scaled(model, width)

    report = diagnosed(build)
    assert row(report, "hidden.weight").step == 2
    assert culprits(report) == {}


# Experts


def routed(seen: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """Two experts; `seen` says which examples the second one gets."""

    def forward(s: Any, x: Tensor) -> Tensor:
        h, mask = F.relu(s.first(x)), seen(x)
        mixed = torch.zeros_like(h)
        mixed[~mask] = s.experts[0](h[~mask])
        mixed[mask] = s.experts[1](h[mask])
        return s.readout(F.relu(s.hidden(F.relu(mixed))))

    return forward


def experts(width: int) -> nn.ModuleList:
    return nn.ModuleList([nn.Linear(width, width) for _ in range(2)])


def test_expert_matrices_that_are_gathered_are_hidden():
    """One matrix per example, picked from a stack by its expert's number."""

    def forward(s: Any, x: Tensor) -> Tensor:
        chosen = s.stack[torch.arange(len(x)) % 2]  # (examples, width, width)
        return s.readout(F.relu(torch.einsum("bi,boi->bo", F.relu(s.hidden(F.relu(s.first(x)))), chosen)))

    def build(width: int) -> Made:
        model = Net(width, forward, stack=torch.randn(2, width, width) / width**0.5)
        return model, scaled(model, width, slower=(*SLOWER, "stack"))

    report = diagnosed(build)
    assert roles(report)["stack"] == "hidden"
    assert culprits(report) == {}


def test_experts_that_see_examples_are_judged():
    half = routed(lambda x: torch.arange(len(x)) % 2 == 0)
    report = diagnosed(mup(half, experts=experts))
    assert {name: v for name, v in verdicts(report).items() if name.startswith("experts") and "weight" in name} == {
        "experts.0.weight": "ok",
        "experts.1.weight": "ok",
    }


def test_an_expert_that_no_example_reaches_is_not_visible():
    report = diagnosed(mup(routed(lambda x: torch.zeros(len(x), dtype=torch.bool)), experts=experts))
    assert not report.missing
    assert verdicts(report)["experts.1.weight"] == "not visible"
    assert verdicts(report)["experts.0.weight"] == "ok"


def test_an_expert_that_is_not_called_is_not_visible():
    def forward(s: Any, x: Tensor) -> Tensor:
        return s.readout(F.relu(s.hidden(F.relu(s.experts[0](F.relu(s.first(x)))))))

    report = diagnosed(mup(forward, experts=experts))
    assert verdicts(report)["experts.1.weight"] == "not visible"
    assert verdicts(report)["experts.0.weight"] == "ok"


# Batches


def test_a_model_that_takes_its_whole_batch_only():
    def forward(s: Any, x: Tensor) -> Tensor:
        return Net.plain(s, x.view(EXAMPLES, IN))

    report = diagnosed(mup(forward))
    assert not report.missing
    assert culprits(report) == {}


def test_a_model_that_takes_its_whole_length_only():
    def forward(s: Any, x: Tensor) -> Tensor:
        return s.readout(F.relu(s.hidden((F.embedding(x, s.table) + s.positions).mean(1))))

    build = mup(forward, table=_table, positions=lambda width: torch.randn(TOKENS, width))
    report = diagnosed(build, ids())
    assert not report.missing
    assert culprits(report) == {}
    assert roles(report)["positions"] == "vector"


def test_integer_inputs():
    report = diagnosed(mup(lambda s, x: Net.plain(s, F.one_hot(x, VOCABULARY)[:, :, :IN].sum(1).float())), ids())
    assert culprits(report) == {}


def test_mapping_batches_with_the_models_own_loss():
    def forward(s: Any, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        logits = Net.plain(s, x)
        return {"loss": F.cross_entropy(logits, y), "logits": logits}

    x, y = pairs()
    report = diagnosed(mup(forward), {"x": x, "y": y}, loss=None)
    assert set(verdicts(report).values()) == {"ok"}


def test_batches_that_are_a_function_of_the_seed():
    def batch(seed: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(EXAMPLES, IN, generator=generator), torch.arange(EXAMPLES) % CLASSES

    report = diagnosed(mup(), batch, seeds=2)
    assert set(verdicts(report).values()) == {"ok"}
    inputs = scales_of(report, Quantity.INPUT.value).query("layer == 'first.weight' and step == 0")
    assert inputs.groupby("seed", observed=True)["value"].nunique().tolist() == [1, 1]
    assert inputs["value"].nunique() == 2


def test_a_trial_with_its_own_batch_and_loss():
    def build(width: int) -> Trial:
        model = Net(width)
        return Trial(model, scaled(model, width), batch=pairs(), loss=lambda m, b: F.cross_entropy(m(b[0]), b[1]))

    report = diagnose(build, widths=GRID, seeds=1)
    assert_all_told(report)
    assert set(verdicts(report).values()) == {"ok"}


def test_several_optimizers():
    def build(width: int) -> Trial:
        model = Net(width)
        slow = [model.hidden.weight, model.readout.weight]
        fast = [p for p in model.parameters() if all(p is not other for other in slow)]
        return Trial(model, [Adam(fast, lr=1e-3), Adam(slow, lr=1e-3 * BASE / width)])

    assert set(verdicts(diagnosed(build)).values()) == {"ok"}


def test_one_optimizer_of_degree_one_among_others():
    def build(width: int) -> Trial:
        model = Net(width)
        rest = [p for p in model.parameters() if p is not model.first.bias]
        return Trial(model, [Adam(rest, lr=1e-3), SGD([model.first.bias], lr=1e-2)])

    report = diagnosed(build)
    assert row(report, "first.bias").degree == pytest.approx(1, abs=0.05)
    assert row(report, "hidden.weight").degree == pytest.approx(0, abs=0.05)


def test_the_users_probe_is_used_as_it_is():
    seen = []

    def forward(s: Any, x: Tensor) -> Tensor:
        seen.append(len(x))
        return Net.plain(s, x)

    diagnosed(mup(forward), probe=tuple(t[:2] for t in pairs()))
    assert set(seen) == {2}


def test_the_batch_is_not_changed_by_a_model_that_writes_into_it():
    x, y = pairs()
    before = x.clone()
    diagnosed(mup(_writing), (x, y))
    assert torch.equal(x, before)


def test_every_pass_sees_the_probe_as_it_was():
    """Halving the input in place is halving it: nothing is inherited by the first layer."""
    report = diagnosed(mup(_writing))
    inherited = scales_of(report, Quantity.INHERITED.value).query("layer == 'first.weight'")
    assert set(inherited["value"].dropna()) == {0.0}


def test_nothing_is_inherited_by_the_first_layer_of_a_tidy_model():
    inherited = scales_of(diagnosed(mup()), Quantity.INHERITED.value).query("layer == 'first.weight'")
    assert set(inherited["value"].dropna()) == {0.0}


# What goes wrong


def test_a_model_that_raises_at_one_width_costs_that_run_alone():
    def forward(s: Any, x: Tensor) -> Tensor:
        if s.first.out_features == 32:
            raise ValueError("no thirty-two")
        return Net.plain(s, x)

    report = diagnosed(mup(forward), widths=(16, 32, 64, 128))
    (missing,) = report.missing
    assert missing.key.width == 32
    assert "no thirty-two" in missing.reason
    assert set(verdicts(report).values()) == {"ok"}
    assert report.exit_code == 3


def test_a_model_that_always_raises_says_why():
    def forward(s: Any, x: Tensor) -> Tensor:
        raise ValueError("not today")

    with pytest.raises(CoordCheckError, match="not today"):
        diagnosed(mup(forward))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_told(bad: float):
    report = diagnosed(mup(lambda s, x: Net.plain(s, x) + s.first(x).sum() * bad))
    assert set(verdicts(report).values()) <= {"not finite", "not visible"}
    assert "not finite" in verdicts(report).values()
    assert report.exit_code == 1


def _beside_zero(s: Any, x: Tensor) -> Tensor:
    return Net.plain(s, x) + s.branch(x) * 0.0


def test_a_branch_that_is_multiplied_by_zero_is_not_visible():
    report = diagnosed(mup(_beside_zero, branch=lambda width: nn.Linear(IN, CLASSES)))
    assert verdicts(report)["branch.weight"] == "not visible"


def test_a_parameter_without_coordinates_is_not_visible():
    report = diagnosed(mup(empty=lambda width: torch.zeros(0)))
    assert verdicts(report)["empty"] == "not visible"
    assert verdicts(report)["hidden.weight"] == "ok"


def test_sparse_gradients():
    def build(width: int) -> Made:
        embedding = nn.Embedding(VOCABULARY, width, sparse=True)
        model = Net(width, lambda s, x: s.readout(F.relu(s.hidden(s.table(x).mean(1)))), table=embedding)
        return model, SGD(model.parameters(), lr=1e-2)

    assert not diagnosed(build, ids()).missing


def test_complex_parameters():
    def forward(s: Any, x: Tensor) -> Tensor:
        return s.readout(F.relu(s.hidden((F.relu(s.first(x)) * s.phase).abs())))

    report = diagnosed(mup(forward, phase=lambda width: torch.randn(width, dtype=torch.cfloat)))
    assert not report.missing


def test_a_loss_that_differentiates_the_model():
    """As of physics-informed networks, energy models and gradient penalties."""

    def loss(model: nn.Module, batch: Any) -> Tensor:
        x = batch[0].detach().requires_grad_()
        output = model(x)
        (slope,) = torch.autograd.grad(output.sum(), x, create_graph=True)
        return F.cross_entropy(output, batch[1]) + slope.pow(2).mean()

    report = diagnosed(mup(lambda s, x: s.readout(torch.tanh(s.hidden(torch.tanh(s.first(x)))))), loss=loss)
    assert not report.missing


@pytest.mark.fault(41)
def test_lazy_modules_are_told():
    def build(width: int) -> Made:
        model = Net(width, lambda s, x: s.readout(F.relu(s.hidden(F.relu(s.lazy(x))))), lazy=nn.LazyLinear(width))
        return model, Adam(model.parameters(), lr=1e-3)

    report = diagnosed(build)
    assert {"lazy.weight", "lazy.bias"} < verdicts(report).keys()
    assert culprits(report) == {"hidden.weight": "lr", "readout.weight": "lr"}


@pytest.mark.parametrize("lazy", [False, True])
def test_a_lazy_readout_that_starts_too_large_is_caught(lazy: bool):
    def build(width: int) -> Made:
        model = Net(width)
        model.readout = nn.LazyLinear(CLASSES) if lazy else nn.Linear(width, CLASSES)
        return model, Adam(model.parameters(), lr=1e-3)

    assert row(diagnosed(build), "readout.weight").init_exponent == -0.5


def test_parameters_created_in_the_first_forward_are_told():
    def forward(s: Any, x: Tensor) -> Tensor:
        h = F.relu(s.hidden(F.relu(s.first(x))))
        if not hasattr(s, "gain"):
            s.gain = nn.Parameter(torch.ones(h.shape[-1]))
        return s.readout(h * s.gain)

    report = diagnosed(mup(forward))
    assert "gain" in verdicts(report)
    assert verdicts(report)["gain"] in ("frozen", "not visible")
    assert culprits(report).keys() <= {"gain"}


# Precision


def test_half_precision_parameters_blame_what_full_precision_blames():
    def half(width: int) -> Made:
        model = Net(width).bfloat16()
        return model, Adam(model.parameters(), lr=1e-3)

    assert culprits(diagnosed(half, pairs(torch.bfloat16))) == {"hidden.weight": "lr", "readout.weight": "lr"}


def test_half_precision_parameters_have_the_exponents_of_full_precision():
    def half(width: int) -> Made:
        model = Net(width).bfloat16()
        return model, scaled(model, width)

    report = diagnosed(half, pairs(torch.bfloat16))
    assert row(report, "hidden.weight").response == pytest.approx(0, abs=0.05)


def test_tiny_updates_are_measured_in_double_precision():
    def build(width: int) -> Made:
        model = Net(width)
        nn.init.normal_(model.readout.weight, std=1 / width)
        return model, scaled(model, width, lr=1e-9)

    report = diagnosed(build)
    assert culprits(report) == {}
    assert row(report, "hidden.weight").response == pytest.approx(0, abs=0.05)
    assert not any("rounding" in note for note in report.notes)


@pytest.mark.fault(55)
def test_a_model_that_insists_on_its_precision_is_told_to_be_blurred():
    def forward(s: Any, x: Tensor) -> Tensor:
        if s.first.weight.dtype is torch.float64:
            raise TypeError("float32 only")
        return Net.plain(s, x)

    def build(width: int) -> Made:
        model = Net(width, forward)
        nn.init.normal_(model.readout.weight, std=1 / width)
        return model, scaled(model, width, lr=1e-7)

    report = diagnosed(build)
    assert not report.missing
    assert any("rounding blurs" in note for note in report.notes)


# Everything is left as it was


@pytest.mark.fault(22)
@pytest.mark.fault(23)
def test_hooks_modes_and_random_states_are_left_as_they_were():
    made = []

    def build(width: int) -> Made:
        model, optimizer = mup(_dropped)(width)
        made.append(model)
        return model, optimizer

    state, dtype = torch.get_rng_state(), torch.get_default_dtype()
    with torch.no_grad():
        diagnosed(build)
        assert not torch.is_grad_enabled()
    assert torch.equal(state, torch.get_rng_state())
    assert torch.get_default_dtype() is dtype
    assert made
    for module in (module for model in made for module in model.modules()):
        assert not any((module._forward_hooks, module._forward_pre_hooks, module._backward_hooks))
    assert not torch.overrides._get_current_function_mode_stack()


@pytest.mark.fault(22)
def test_they_are_also_after_a_model_that_raises():
    made = []

    def build(width: int) -> Made:
        def forward(s: Any, x: Tensor) -> Tensor:
            s.first(x)
            raise ValueError("halfway")

        model, optimizer = mup(forward)(width)
        made.append(model)
        return model, optimizer

    state = torch.get_rng_state()
    with pytest.raises(CoordCheckError, match="halfway"):
        diagnosed(build)
    assert torch.equal(state, torch.get_rng_state())
    assert all(not module._forward_hooks for model in made for module in model.modules())
    assert not torch.overrides._get_current_function_mode_stack()


def module_rows(report: coordcheck.Report) -> list[tuple[Any, ...]]:
    return [
        (record.key, record.sites[r.site].layer, r.step, r.quantity, r.value, r.status)
        for record in report.records
        for r in record.rows
        if record.sites[r.site].kind is Kind.MODULE
    ]


@pytest.mark.parametrize("name", ["counter", "writes into its batch", "dropout", "batch norm"])
def test_the_diagnosis_does_not_change_what_training_records(name: str):
    build, options = HARMLESS[name]
    options = {"loss": F.cross_entropy, "widths": GRID, "seeds": 1, "steps": 2, **options}
    with_probe, without = check(build, pairs(), **options), check(build, pairs(), probe=None, **options)
    assert module_rows(with_probe) == module_rows(without) != []
    assert [r.losses for r in with_probe.records] == [r.losses for r in without.records]
    assert len(with_probe.parameters) > len(without.parameters) == 0


def test_the_comparison_of_rows_can_fail():
    options = {"loss": F.cross_entropy, "widths": GRID, "seeds": 1, "steps": 2}
    assert module_rows(check(sp, pairs(), **options)) != module_rows(check(mup(), pairs(), **options))


def rows_of(report: coordcheck.Report) -> list[Mapping[str, Any]]:
    return [{**record.to_json(), "seconds": 0} for record in report.records]


@pytest.mark.thorough
def test_serial_and_parallel_runs_give_identical_rows():
    serial, parallel = diagnosed({"µP": mup(_dropped), "SP": sp}), diagnosed({"µP": mup(_dropped), "SP": sp}, jobs=2)
    assert json.dumps(rows_of(serial)) == json.dumps(rows_of(parallel))


def test_two_diagnoses_give_identical_rows_and_two_seeds_do_not():
    once, again = diagnosed(mup(_dropped)), diagnosed(mup(_dropped))
    assert rows_of(once) == rows_of(again)
    other = diagnosed(mup(_dropped), seeds=[1])
    assert [r["rows"] for r in rows_of(once)] != [r["rows"] for r in rows_of(other)]


READ_WITHOUT_TORCH = """
import sys
import importlib.abc

class NoTorch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ImportError("torch is not for readers")

sys.meta_path.insert(0, NoTorch())
import coordcheck
report = coordcheck.load(sys.argv[1])
print(report.verdicts.to_json(orient="records"))
"""


def test_saved_diagnoses_give_the_same_verdicts_without_torch(tmp_path: Path):
    report = diagnosed(sp, save_to=tmp_path)
    found = subprocess.run(
        [sys.executable, "-c", READ_WITHOUT_TORCH, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout) == json.loads(report.verdicts.to_json(orient="records"))
    assert culprits(coordcheck.load(tmp_path)) == culprits(report) != {}


# The largest singular value


@pytest.mark.parametrize("shape", [(5, 5), (40, 7), (7, 40)])
def test_spectral_norm_of_a_matrix_of_rank_one_is_exact(shape: tuple[int, int]):
    generator = torch.Generator().manual_seed(0)
    matrix = torch.outer(*(torch.randn(size, generator=generator) for size in shape))
    assert spectral_norm(matrix) == pytest.approx(torch.linalg.matrix_norm(matrix, 2).item(), rel=1e-5)


def test_spectral_norm_is_near_for_any_matrix_and_zero_for_zeros():
    matrix = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    true = torch.linalg.matrix_norm(matrix, 2).item()
    assert 0.85 * true < spectral_norm(matrix) <= true * 1.0001
    assert spectral_norm(torch.zeros(3, 4)) == 0


# What models from libraries brought to light


def test_the_decay_of_a_state_space_is_judged_as_the_vector_that_it_is():
    """A = -exp(A_log), as in Mamba: its own update counts, not how large its logarithm is."""

    def forward(s: Any, x: Tensor) -> Tensor:
        h = F.relu(s.hidden(F.relu(s.first(x))))
        return s.readout(h * torch.exp(-torch.exp(s.a_log.float())[None] * torch.sigmoid(h)))

    def build(width: int, rate: float = 0.0) -> Made:
        model = Net(width, forward, a_log=torch.log(torch.arange(1, width + 1)) / 4)
        others = [p for name, p in model.named_parameters() if name != "a_log"]
        slow = {id(model.hidden.weight): BASE / width, id(model.readout.weight): BASE / width}
        groups = [{"params": [p], "lr": 1e-3 * slow.get(id(p), 1.0)} for p in others]
        return model, Adam([*groups, {"params": [model.a_log], "lr": 1e-3 * (width / BASE) ** rate}])

    healthy = diagnosed(build)
    assert (roles(healthy)["a_log"], culprits(healthy)) == ("vector", {})
    assert culprits(diagnosed(lambda width: build(width, rate=1.0))) == {"a_log": "lr"}


def test_positions_that_a_buffer_picks_are_an_embedding():
    def forward(s: Any, x: Tensor) -> Tensor:
        h = s.first(x) + F.embedding(s.places[: len(x)], s.positions)
        return s.readout(F.relu(s.hidden(F.relu(h))))

    def build(width: int) -> Made:
        model = Net(width, forward, positions=torch.randn(EXAMPLES, width))
        model.register_buffer("places", torch.arange(EXAMPLES))
        return model, scaled(model, width)

    report = diagnosed(build)
    assert (roles(report)["positions"], culprits(report)) == ("input", {})


def test_keys_that_a_cache_keeps_are_no_readout():
    """One key and value head for all queries: their fan-out is fixed, and attention takes them up through a cache."""

    def forward(s: Any, x: Tensor) -> Tensor:
        h = F.relu(s.hidden(F.relu(s.first(x))))
        query = s.hidden(h).unflatten(-1, (-1, 4))
        key, value = (torch.cat([torch.tensor([]), (h @ w).expand(len(h), 4)[:, None]], dim=-2) for w in (s.k, s.v))
        mixed = torch.softmax(query @ key.transpose(-1, -2) / 2, dim=-1) @ value
        return s.readout(h + mixed.flatten(1))

    def build(width: int) -> Made:
        model = Net(width, forward, k=torch.randn(width, 4) / width**0.5, v=torch.randn(width, 4) / width**0.5)
        return model, scaled(model, width, slower=(*SLOWER, "k", "v"))

    report = diagnosed(build)
    assert {name: role for name, role in roles(report).items() if name in "kv"} == {"k": "narrow", "v": "narrow"}
    assert culprits(report) == {}


@pytest.mark.skipif(not hasattr(F, "grouped_mm"), reason="this torch has no grouped_mm")
@pytest.mark.parametrize(("slower", "blamed"), [((*SLOWER, "stack"), {}), (SLOWER, {"stack": "lr"})])
def test_experts_of_a_grouped_product_are_hidden_matrices(slower: Sequence[str], blamed: dict[str, str]):
    def forward(s: Any, x: Tensor) -> Tensor:
        h = F.relu(s.hidden(F.relu(s.first(x))))
        offsets = torch.tensor([len(x) // 2, len(x)], dtype=torch.int32)
        return s.readout(F.relu(F.grouped_mm(h, s.stack.transpose(-2, -1), offs=offsets)))

    def build(width: int) -> Made:
        model = Net(width, forward, stack=torch.randn(2, width, width) / width**0.5)
        return model, scaled(model, width, slower=slower)

    report = diagnosed(build)
    assert roles(report)["stack"] == "hidden"
    assert {name.partition("[")[0]: cause for name, cause in culprits(report).items()} == blamed


@pytest.mark.parametrize(("falls", "blamed"), [(True, {}), (False, {"hidden.weight": "eps", "hidden.bias": "eps"})])
def test_gradients_as_small_as_eps_make_no_other_culprits(falls: bool, blamed: dict[str, str]):
    """A layer scale of 1e-6, as in ConvNeXt: updates fall with the width beside a fixed eps, and are still Adam's."""

    def forward(s: Any, x: Tensor) -> Tensor:
        h = F.relu(s.first(x))
        return s.readout(h + 1e-6 * s.hidden(h))

    def build(width: int) -> Made:
        model = Net(width, forward)
        nn.init.normal_(model.readout.weight, std=1 / width)
        optimizer = scaled(model, width)
        for group in optimizer.param_groups if falls else ():
            group["eps"] *= 32 / width
        return model, optimizer

    report = diagnosed(build)
    assert culprits(report) == blamed
    assert blamed or any("is eps as large as the gradient?" in note for note in report.notes)


def test_a_probe_on_which_the_loss_says_nothing_gives_way_to_a_larger_one():
    """A mask that only the loss knows: the first examples weigh nothing, or give no number."""
    x, y = pairs()
    for ignored in (0.0, math.nan):

        def loss(model: nn.Module, batch: Any, ignored: float = ignored) -> Tensor:
            each = F.cross_entropy(model(batch[0]), batch[1], reduction="none")
            weight = (torch.arange(len(each)) >= 6).float()
            return (each * weight).sum() / weight.sum() if weight.any() else each.sum() * ignored

        assert len(x) > 6 > PROBE_EXAMPLES
        report = diagnosed({"SP": sp, "µP": mup()}, (x, y), loss=loss)
        assert {label: status.value for label, status in report.status.items()} == {"SP": "learns too fast", "µP": "ok"}


def test_a_loss_that_never_says_anything_decides_nothing():
    def loss(model: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(model(batch[0]), torch.full_like(batch[1], -100), reduction="sum")

    report = diagnosed(mup(), loss=loss)
    assert report.exit_code == 3
    assert set(report.verdicts["explanation"]) == {"nothing moved: every gradient is zero: is any target in the batch?"}


def test_where_most_parameters_are_not_visible_nothing_is_decided():
    """Half of the model is beside the loss, and its parameters have no gradient but for rounding."""

    def forward(s: Any, x: Tensor) -> Tensor:
        return s.readout(torch.relu(s.hidden(torch.relu(s.first(x))))) * 0 + s.readout.bias

    report = diagnosed(mup(forward))
    assert report.status["build"] is Verdict.UNDECIDED
    assert report.exit_code == 3
    assert "build: most of its parameters are not visible, so that nothing is decided" in report.notes
