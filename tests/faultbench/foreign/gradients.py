"""Gradients that are small, or start at zero: Adam's eps, a zero readout under SGD."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from faultbench.families import Setup, linear
from faultbench.faults import Change, act, init, lr
from faultbench.foreign.kit import Kind
from faultbench.foreign.optimizers import plain

# --- k: Adam's eps --------------------------------------------------------------------------------------------------


def with_eps(eps: float, power: float = 0.0) -> Change:
    """Adam's eps, times growth ** power."""

    def apply(setup: Setup) -> None:
        for group in setup.optimizers[0].param_groups:
            group["eps"] = eps * setup.growth**power

    return act(apply)


def _eps() -> None:
    kind = Kind("k", "Adam's eps")
    net = kind.family("tanh net", plain, "adamw")
    relu = kind.net("relu net", lambda n: linear(n, n, "hidden", bias=True), "adam", bias=True)
    deep = kind.net(
        "two more", lambda n: nn.Sequential(linear(n, n, "hidden"), nn.Tanh(), linear(n, n, "hidden")), "adam"
    )
    for family in (net, relu, deep):
        kind.healthy(family, "tiny", "an eps that no gradient is near", with_eps(1e-14))
        kind.healthy(
            family,
            "with the gradient",
            "a large eps that falls as the gradients do",
            with_eps(1e-2, -1),
            _fixed_readout(0.0),
        )
    matrices = ("input.weight", "middle.weight")
    both = dict.fromkeys(matrices, ("eps", -1.0))
    biases = dict.fromkeys(("input.bias", "middle.bias"), ("eps", -1.0))
    layers = dict.fromkeys(("input.weight", "middle.0.weight", "middle.2.weight"), ("eps", -1.0))
    why = "gradients fall as 1/n below a fixed eps, which stops all but the readout"
    kind.planted(net, "1e-2", why, with_eps(1e-2), _fixed_readout(1e-14), truth=both)
    kind.planted(net, "1e-1", why, with_eps(1e-1), _fixed_readout(1e-14), truth=both)
    kind.planted(relu, "1e-2", why, with_eps(1e-2), _fixed_readout(1e-14), truth={**both, **biases})
    kind.planted(deep, "1e-2", why, with_eps(1e-2), _fixed_readout(1e-14), truth=layers)
    kind.planted(
        relu,
        "tiny, middle lr",
        "a rate, and no eps",
        with_eps(1e-14),
        lr(1, "middle.weight"),
        truth={"middle.weight": ("lr", -1.0)},
    )


def _fixed_readout(eps: float) -> Change:
    """The readout's own eps: its gradients do not fall with the width."""

    def apply(setup: Setup) -> None:
        for name in ("readout.weight", "readout.bias"):
            if name in setup.groups:
                setup.groups[name]["eps"] = max(eps, 1e-14)

    return act(apply)


# --- l: a zero readout under SGD ------------------------------------------------------------------------------------


def zero(*names: str) -> Change:
    def apply(setup: Setup) -> None:
        for name in names:
            nn.init.zeros_(setup.parameters[name])

    return act(apply)


class Wide(nn.Module):
    """Up to 2 n and back to n, with biases."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = (
            linear(width, 2 * width, "hidden", bias=True),
            linear(2 * width, width, "hidden", bias=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


def _zero_readouts() -> None:
    kind = Kind("l", "a zero readout under SGD")
    net, biased = (
        kind.family("tanh net", plain, "sgd"),
        kind.net("relu net", lambda n: linear(n, n, "hidden"), "momentum", bias=True),
    )
    deep = kind.net(
        "two more",
        lambda n: nn.Sequential(linear(n, n, "hidden"), nn.Tanh(), linear(n, n, "hidden")),
        "sgd",
        activation=F.gelu,
    )
    wide = kind.net("wide hidden", Wide, "sgd", bias=True)
    none = zero("readout.weight")
    for family in (net, biased, deep, wide):
        kind.healthy(family, "zero readout", "a readout of zeros, by design", none)
    truth = {"input.weight": ("lr", 1.0), "readout.weight": ("lr", -1.0)}
    kind.planted(
        net,
        "one rate",
        "SP's rates: the hidden one is µP's",
        none,
        lr(-1, "input.weight"),
        lr(1, "readout.weight"),
        truth=truth,
    )
    kind.planted(net, "hidden lr 1/n", "Adam's rule", none, lr(-1, "middle.weight"))
    kind.planted(biased, "readout lr", "the readout keeps its rate", none, lr(1, "readout.weight"))
    kind.planted(biased, "bias lr const", "a bias without SGD's factor n", none, lr(-1, "input.bias"))
    kind.planted(wide, "up lr 1/n", "Adam's rule", none, lr(-1, "middle.up.weight"))
    kind.planted(wide, "down init", "a hidden matrix too small", none, init(-0.5, "middle.down.weight"))
    kind.planted(deep, "readout lr 1/n²", "the readout scaled twice", none, lr(-1, "readout.weight"))
    kind.planted(deep, "middle init", "a hidden matrix of constant size", none, init(0.5, "middle.0.weight"))


_eps()
_zero_readouts()
