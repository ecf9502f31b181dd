"""The degree of optimizers of the user's own, which blocks of random numbers may not tell."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import pair_batch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.optimizer import register_optimizer_step_pre_hook

import coordcheck
from coordcheck.models import mlp
from coordcheck.recording.updates.degrees import degrees, is_plain
from coordcheck.training import probe
from coordcheck.training.whole_degrees import lessen_eps


class ByNumber(SGD):
    """Knows by their number which parameters it moves by the sign of their gradients: the matrices."""

    def __init__(self, params: Iterable[Tensor]) -> None:
        params = list(params)
        super().__init__(params, lr=0.01)
        self.signs = {id(p): not number % 2 for number, p in enumerate(params)}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for p in self.param_groups[0]["params"]:
            p -= self.param_groups[0]["lr"] * (p.grad.sign() if self.signs[id(p)] else p.grad)


class OwnList(SGD):
    """Keeps its own list of the parameters."""

    def __init__(self, params: Iterable[Tensor]) -> None:
        self.own = list(params)
        super().__init__(self.own, lr=0.1)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for p in self.own:
            p -= 0.1 * p.grad


class Wrapper:
    """No optimizer of torch's, but it has a step and groups."""

    def __init__(self, inner: Optimizer) -> None:
        self.inner = inner

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.inner.param_groups

    def step(self) -> None:
        self.inner.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.inner.zero_grad(set_to_none=set_to_none)


class Halfway(Optimizer):
    """An optimizer around another one, which was not made as torch's are."""

    def __init__(self, inner: Optimizer) -> None:
        self.inner, self.param_groups, self.state, self.defaults = inner, inner.param_groups, inner.state, {}

    def step(self, closure: Any = None) -> None:
        self.inner.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.inner.zero_grad(set_to_none=set_to_none)


def of_signs(params: Iterable[Tensor]) -> Optimizer:
    """SGD with a hook that makes signs of the gradients."""
    optimizer = SGD(params, lr=0.01)

    def change(optimizer: Optimizer, *call: Any) -> None:
        for p in optimizer.param_groups[0]["params"]:
            p.grad.sign_()

    optimizer.register_step_pre_hook(change)
    return optimizer


MATRICES, ONES, ZEROS = {"weight": 0, "bias": 1}, {"weight": 1, "bias": 1}, {"weight": 0, "bias": 0}
OPTIMIZERS = {
    "by number": (ByNumber, MATRICES),
    "a list of its own": (OwnList, ONES),
    "a wrapper": (lambda params: Wrapper(SGD(params, lr=0.1)), ONES),
    "made halfway": (lambda params: Halfway(Adam(params)), ZEROS),
    "signs in a hook": (of_signs, ZEROS),
}


def diagnosed(make: Callable[[Iterable[Tensor]], Any], *, lazy: bool = False, zero: bool = False) -> coordcheck.Report:
    def build(width: int) -> tuple[nn.Module, Any]:
        first = nn.LazyLinear(width) if lazy else nn.Linear(64, width)
        model = nn.Sequential(first, nn.ReLU(), nn.Linear(width, 10))
        if zero:
            nn.init.zeros_(model[2].weight)  # so that the first gradients of the other layer are zero
        return model, make(model.parameters())

    return coordcheck.diagnose(build, pair_batch(), loss=F.cross_entropy, widths=(16, 32, 64), seeds=1)


@pytest.mark.parametrize("model", [{}, {"lazy": True}, {"zero": True}], ids=["plain", "lazy", "zeros"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_degrees_of_an_optimizer_of_ones_own(kind, model):
    make, expected = OPTIMIZERS[kind]
    found = diagnosed(make, **model).verdicts.set_index("parameter")["degree"].dropna()
    assert {name: round(degree, 2) for name, degree in found.items()} == {
        f"{layer}.{what}": degree for layer in (0, 2) for what, degree in expected.items()
    }


def test_blocks_do_not_tell_what_the_models_do(monkeypatch):
    """The test can fail."""
    monkeypatch.setattr(probe, "is_plain", lambda optimizer: True)
    report = diagnosed(ByNumber)
    assert report.status["build"].value == "undecided"
    assert any("how the update of 0.bias and 3 more depends" in note for note in report.notes)


class InEigenbasis(Optimizer):
    """Adam in the eigenbasis of the gradient, as SOAP at its first step: rounding errors stand where it has no rank."""

    def __init__(self, params: Iterable[Any], eps: Any = 1e-8) -> None:
        super().__init__(params, {"lr": 1e-3, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                grad = p.grad if p.dim() == 2 else p.grad[None]
                left, right = (torch.linalg.eigh(square)[1] for square in (grad @ grad.T, grad.T @ grad))
                turned = left.T @ grad @ right
                p -= group["lr"] * (left @ (turned / (turned.abs() + group["eps"])) @ right.T).view_as(p)


@pytest.mark.parametrize("eps", [1e-8, torch.tensor(1e-8)], ids=["a number", "a tensor"])
@pytest.mark.parametrize("healthy", [True, False])
def test_rounding_errors_in_an_eigenbasis_are_no_updates(healthy, eps):
    """Its updates are orthonormal, of the rank of the few examples: what µP's Adam rates are right for shrinks."""

    def build(width: int) -> tuple[nn.Module, Optimizer]:
        model, adam = mlp("µP", biases=False)(width)

        def rate(p: Tensor, lr: float) -> float:
            fan_out, fan_in = (size == width for size in p.shape)
            return 1e-3 * width ** ((fan_out - fan_in) / 2) if healthy else lr

        groups = [{"params": [p], "lr": rate(p, g["lr"])} for g in adam.param_groups for p in g["params"]]
        return model, InEigenbasis(groups, eps)

    report = coordcheck.diagnose(build, pair_batch(), loss=F.cross_entropy, widths=(32, 64, 128), seeds=3)
    found = {row.parameter: (row.cause, row.lr_exponent) for row in report.culprits.itertuples()}
    lr = {"input": 0.5, "hidden.0": 1.0, "hidden.1": 1.0, "readout": 0.5}
    assert found == ({} if healthy else {f"{name}.weight": ("lr", exponent) for name, exponent in lr.items()})
    matrices = report.parameters.set_index("parameter")
    assert (matrices["degree"] < 0.02).all()
    assert all(
        abs(matrices["response_measured"] + [0.0 if healthy else lr[n.removesuffix(".weight")] for n in matrices.index])
        < 0.1
    )


def test_an_eps_is_made_small_whatever_it_is_called_and_held_in():
    weight = nn.Parameter(torch.ones(2))
    beside = None, 1e-3  # the second of Adafactor's stands beside the parameter
    groups = [{"eps": 1e-8}, {"eps": torch.tensor(1e-8)}, {"epsilon": 1e-6}, {"eps": beside}, {"eps_root": 0.5}]
    optimizers = [SGD([{"params": [weight], **group}], lr=0.1) for group in groups]
    lessen_eps(nn.ParameterList([weight]), optimizers)
    values = [float(o.param_groups[0][name]) for o, g in zip(optimizers[:3], groups, strict=False) for name in g]
    assert values == pytest.approx([1e-14, 1e-14, 1e-12])
    assert optimizers[3].param_groups[0]["eps"] == beside
    assert optimizers[4].param_groups[0]["eps_root"] == 0.5


def test_what_is_plain():
    model = nn.Linear(4, 4)
    scheduled = SGD(model.parameters(), lr=0.1)
    assert is_plain(scheduled)
    LambdaLR(scheduled, lambda t: 1.0)  # puts a step of its own on the optimizer
    ours = [make(model.parameters()) for make, _ in OPTIMIZERS.values()]
    assert not any(map(is_plain, [scheduled, *ours]))
    handle = register_optimizer_step_pre_hook(lambda *call: None)
    assert not is_plain(Adam(model.parameters()))
    handle.remove()
    assert is_plain(Adam(model.parameters()))


def test_a_wrapper_without_a_state_is_measured_on_blocks_as_well():
    model = nn.Linear(40, 30)
    found = degrees(model, [Wrapper(SGD(model.parameters(), lr=0.1))])  # type: ignore[list-item]  # it has what is used
    assert found == {"weight": pytest.approx(1), "bias": pytest.approx(1)}


@pytest.mark.parametrize(("size", "expected"), [(1e-6, 1e-9), (1e-8, 1e-11), (1e3, 1e-8), (1e-13, 1e-14)])
def test_an_eps_is_far_below_the_smallest_gradient_of_its_group_and_far_above_its_roundings(size, expected):
    model = nn.ParameterDict({str(by): nn.Parameter(torch.ones(4)) for by in (1, 10, 1e-16, 100)})
    groups = [{"params": [model[str(by)] for by in (1, 10, 1e-16)]}, {"params": [model["100"]]}]
    optimizer = Adam(groups, eps=1e-8)
    lessen_eps(model, [optimizer], {name: torch.full((4,), float(name) * size).double() for name in model})
    assert [group["eps"] for group in optimizer.param_groups] == pytest.approx(
        [expected, min(max(0.1 * size, 1e-14), 1e-8)]
    )


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_a_decay_beside_which_gradients_are_small_does_not_hide_what_they_do(decay):
    def build(width: int) -> tuple[nn.Module, Optimizer]:  # in SP: the gradients of the gains fall with the width
        model = nn.Sequential(nn.Linear(16, width), nn.LayerNorm(width), nn.Tanh(), nn.Linear(width, 10))
        return model, SGD(model.parameters(), lr=0.1, weight_decay=decay)

    batch = pair_batch(examples=16, inputs=16)
    report = coordcheck.diagnose(build, batch, loss=F.cross_entropy, widths=(64, 128, 256), seeds=2)
    rates = {row.parameter: row.lr_exponent for row in report.culprits.itertuples()}
    assert {rates[name] for name in ("0.weight", "0.bias", "1.weight", "1.bias")} == {1.0}
