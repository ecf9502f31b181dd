"""Optimizers of one's own, updates of low rank and of signs, Adam's eps, a zero readout under SGD."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from faultbench.families import INPUTS, Setup, conv, labelled_batch, linear, orthogonalised
from faultbench.faults import init, lr
from faultbench.foreign.kit import ADAM, NORM, RECIPES, SGD, Kind, Net, Recipe

# --- i: optimizers --------------------------------------------------------------------------------------------------


Update = Callable[[Tensor, dict[str, Any]], Tensor]


class Own(Optimizer):
    """p -= lr * update(p), where an update may write into p.grad and keep what it likes in the state."""

    def __init__(self, groups: Any, lr: float, update: Update, **options: Any) -> None:
        super().__init__(groups, {"lr": lr, **options})
        self.update = update

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                self.state[p]["group"] = group
                p.sub_(group["lr"] * self.update(p, self.state[p]))
        return loss


def own(update: Update, exponents: dict[str, float], degree: int = 0, rate: float = 1e-3, **options: Any) -> Recipe:
    return Recipe(lambda groups, lr: Own(groups, lr, update, **options), exponents, rate, degree)


def clipped(p: Tensor, state: dict[str, Any]) -> Tensor:
    """The gradient, whose norm is cut to 1e-4, which all are above."""
    norm = p.grad.norm()
    return p.grad * (1e-4 / norm.clamp(min=1e-4)) * 1e3


def into_gradient(p: Tensor, state: dict[str, Any]) -> Tensor:
    """Adam's update without momenta, written into the gradient."""
    return p.grad.div_(p.grad.abs() + 1e-12)


def trusted(p: Tensor, state: dict[str, Any]) -> Tensor:
    """LARS: the gradient brought to the norm of the weights, in place; of weights of zero as it is."""
    norm = p.norm()
    return p.grad.mul_(norm / p.grad.norm()) if norm > 0 else p.grad


def eigenbasis(p: Tensor, state: dict[str, Any], dtype: torch.dtype = torch.float64) -> Tensor:
    """SOAP: Adam in the eigenbasis of G G^T and G^T G, of the first gradient; its eps is the group's, or its own.

    In single precision, what should be 0 in that basis is rounding error, which a small eps would make 1.
    """
    gradient = p.grad.to(dtype)
    if p.dim() != 2:
        return p.grad / (p.grad.abs() + 1e-12)
    if "left" not in state:
        state["left"] = torch.linalg.eigh(gradient @ gradient.T).eigenvectors
        state["right"] = torch.linalg.eigh(gradient.T @ gradient).eigenvectors
        state["square"] = torch.zeros_like(gradient)
        state["step"] = 0
    state["step"] += 1
    turned = state["left"].T @ gradient @ state["right"]
    state["square"].lerp_(turned.square(), 0.05)
    scaled = turned / ((state["square"] / (1 - 0.95 ** state["step"])).sqrt() + state["group"].get("eps", 1e-8))
    return (state["left"] @ scaled @ state["right"].T).to(p.dtype)


def every_second(p: Tensor, state: dict[str, Any]) -> Tensor:
    """The signs of the sum of two gradients, at every second step; nothing at the others."""
    state["sum"] = state.get("sum", 0.0) + p.grad
    state["step"] = state.get("step", 0) + 1
    return torch.zeros_like(p) if state["step"] % 2 else state.pop("sum").sign()


def centralised(p: Tensor, state: dict[str, Any]) -> Tensor:
    """The gradient without the mean of each row, in place."""
    return p.grad.sub_(p.grad.mean(1, keepdim=True)) if p.dim() > 1 else p.grad


LARS = {"input": 0.0, "hidden": -0.5, "narrow": -0.5, "readout": 0.0}
SPECTRAL = {"input": 0.5, "hidden": 0.0, "narrow": -0.5, "readout": -0.5, "vector": 0.0, "constant": 0.0}


def plain(width: int) -> nn.Module:
    return Net(width, lambda n: linear(n, n, "hidden"), activation=torch.tanh)


def _clip_in_hook(setup: Setup) -> None:
    """Every gradient is cut in place to a norm of 1e-4, before the step."""

    def hook(optimizer: Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                p.grad.mul_(1e-4 / p.grad.norm().clamp(min=1e-4))

    setup.optimizers[0].register_step_pre_hook(hook)


def _optimizers() -> None:
    kind = Kind("i", "optimizers of one's own")
    tensorwise = kind.family("clipped inside", plain, own(clipped, NORM, rate=0.1), called="own")
    hooked = kind.family(
        "clipped in a hook", plain, RECIPES["sgd"]._replace(exponents=NORM, degree=0, rate=1e3), called="own"
    )
    hooked = hooked._replace(build=lambda width, build=hooked.build: _with(build(width), _clip_in_hook))
    written = kind.family("writes into the gradient", plain, own(into_gradient, ADAM), called="own")
    lars = kind.family("LARS", plain, own(trusted, LARS, rate=1e-2), called="own")
    soap = kind.family("SOAP, double", plain, own(eigenbasis, SPECTRAL, rate=1e-2), called="own")
    single = kind.family(
        "SOAP, single",
        plain,
        own(lambda p, s: eigenbasis(p, s, torch.float32), SPECTRAL, rate=1e-2, eps=1e-6),
        called="own",
    )
    rectified = kind.family("RAdam", plain, Recipe(torch.optim.RAdam, ADAM, 1e-3), called="own")
    second = kind.family("every second step", plain, own(every_second, ADAM), called="own")
    central = kind.family("centralised", plain, own(centralised, SGD, 1, 0.1), called="own")
    adagrad = Recipe(lambda groups, lr: torch.optim.Adagrad(groups, lr=lr, initial_accumulator_value=10.0), SGD, 0.1, 1)
    started = kind.family("Adagrad that starts at 10", plain, adagrad, called="own")
    for family in (tensorwise, hooked, written, lars, soap, single, second, central, started):
        kind.healthy(family)
    kind.healthy(rectified, "healthy", "five updates of degree 1, and degree 0 from there on: Adam's rule is right")
    for family, power, name in (
        (tensorwise, 1, "middle.weight"),
        (tensorwise, 0.5, "readout.weight"),
        (hooked, -1, "middle.weight"),
        (hooked, -0.5, "input.weight"),
        (written, 1, "middle.weight"),
        (written, -1, "input.weight"),
        (lars, 0.5, "middle.weight"),
        (lars, -1, "readout.weight"),
        (soap, -1, "middle.weight"),
        (single, 0.5, "readout.weight"),
        (second, 1, "middle.weight"),
        (second, -1, "input.weight"),
        (central, -1, "middle.weight"),
        (central, 1, "readout.weight"),
        (started, -1, "middle.weight"),
        (started, -1, "input.weight"),
    ):
        kind.planted(
            family, f"{name.partition('.')[0]} lr {power:+g}", "the rate of another optimizer", lr(power, name)
        )
    kind.planted(written, "middle init", "a matrix of constant size", init(0.5, "middle.weight"))
    kind.planted(soap, "readout init", "the readout as a hidden layer", init(0.5, "readout.weight"))


def _with(setup: Setup, change: Callable[[Setup], None]) -> Setup:
    change(setup)
    return setup


# --- j: low rank and signs ------------------------------------------------------------------------------------------


def low_rank(p: Tensor, state: dict[str, Any]) -> Tensor:
    """Dion: orthonormal of rank n / 4 at most, times sqrt(rows / columns), of hidden matrices; signs of the others."""
    if p.role != "hidden":
        return 0.05 * p.grad.sign()
    left, _, right = torch.linalg.svd(p.grad, full_matrices=False)
    rank = max(1, min(p.shape) // 4)
    return left[:, :rank] @ right[:rank] * (p.shape[0] / p.shape[1]) ** 0.5


def one_rank(p: Tensor, state: dict[str, Any]) -> Tensor:
    """The gradient's largest singular part (PowerSGD of rank 1)."""
    if p.dim() != 2:
        return p.grad
    left, values, right = torch.linalg.svd(p.grad, full_matrices=False)
    return values[0] * torch.outer(left[:, 0], right[0])


def all_orthogonal(p: Tensor, state: dict[str, Any]) -> Tensor:
    return orthogonalised(p.grad) if p.dim() == 2 else p.grad.sign()


class ConvMiddle(nn.Module):
    """(batch, n) -> (batch, n): two 3 x 3 convolutions with all coordinates as channels, on 4 x 4 copies."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = conv(width, width, "hidden"), conv(width, width, "hidden")

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, None, None] * torch.linspace(0.5, 1.5, 16, device=x.device).view(4, 4)
        return self.second(F.relu(self.first(x))).mean((-2, -1))


def _low_ranks() -> None:
    kind = Kind("j", "updates of low rank and of signs")
    dion = kind.family("Dion", plain, own(low_rank, {**ADAM, "hidden": 0.0}, rate=2e-2), called="own")
    batch = labelled_batch(128, INPUTS)
    wide = kind.family(
        "Dion, many examples", plain, own(low_rank, {**ADAM, "hidden": 0.0}, rate=2e-2), called="own", batch=batch
    )
    rank1 = kind.family("rank 1", plain, own(one_rank, SGD, 1, 0.1), called="own")
    turned = kind.family("unscaled Muon", plain, own(all_orthogonal, SPECTRAL, rate=1e-2), called="own")
    conv_adam, conv_sign = kind.net("3x3 convolutions", ConvMiddle), kind.net("3x3 convolutions", ConvMiddle, "sign")
    for family in (dion, wide, rank1, turned, conv_adam, conv_sign):
        kind.healthy(family)
    kind.planted(dion, "middle lr 1/n", "Adam's factor on an orthonormal update", lr(-1, "middle.weight"))
    kind.planted(dion, "readout lr", "base rate of signs", lr(1, "readout.weight"))
    kind.planted(wide, "middle lr sqrt", "a factor sqrt(n) on an orthonormal update", lr(0.5, "middle.weight"))
    kind.planted(rank1, "middle lr 1/n", "Adam's rule for a truncated gradient", lr(-1, "middle.weight"))
    kind.planted(rank1, "input lr const", "without SGD's factor n", lr(-1, "input.weight"))
    kind.planted(turned, "input lr const", "no factor of the shape", lr(-0.5, "input.weight"))
    kind.planted(conv_adam, "first lr", "base rate of a convolution", lr(1, "middle.first.weight"))
    kind.planted(conv_adam, "second init", "a convolution too small", init(-0.5, "middle.second.weight"))
    kind.planted(conv_sign, "second lr sqrt", "a rate of n ** -1/2", lr(0.5, "middle.second.weight"))
    kind.planted(conv_sign, "first init", "a convolution of constant size", init(0.5, "middle.first.weight"))


_optimizers()
_low_ranks()
