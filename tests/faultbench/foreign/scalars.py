"""Scalars that are no multiplier of the matrix beside them, and weights that start from parameters alone."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faultbench.families import BASE, CLASSES, INPUTS, linear, tag
from faultbench.faults import init, lr, multiplier
from faultbench.foreign.kit import Kind

# --- a: scalars -----------------------------------------------------------------------------------------------------


class AfterLengthNorm(nn.Module):
    """x / |x| times a gain times sqrt(n), as RMSNorm is often written, in front of a matrix."""

    def __init__(self, width: int, order: str = "gain, scale") -> None:
        super().__init__()
        self.gain = tag(nn.Parameter(torch.ones(width)), "vector")
        self.matrix = linear(width, width, "hidden")
        self.scale, self.order = math.sqrt(width), order

    def forward(self, x: Tensor) -> Tensor:
        x = F.normalize(x, dim=-1)
        return self.matrix(x * self.gain * self.scale if self.order == "gain, scale" else self.scale * x)


class UnitWeights(nn.Module):
    """Self-attention whose weights have RMS 1, times n ** -1/2 outside; heads of size 8."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.output = (linear(width, out, "hidden", theta=0.5) for out in (3 * width, width))
        self.multipliers = {"qkv": (width / BASE) ** -0.5, "output": (width / BASE) ** -0.5}

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x, x.shape[-1:])
        qkv = self.qkv(x) * self.multipliers["qkv"]
        query, key, value = (part.unflatten(-1, (-1, 8)).transpose(1, 2) for part in qkv.chunk(3, -1))
        mixed = F.scaled_dot_product_attention(query, key, value, scale=1 / 8)
        return self.output(mixed.transpose(1, 2).flatten(2)) * self.multipliers["output"]


class ScaledSkip(nn.Module):
    """b(a(x)) + 0.9 a(x), both matrices with a multiplier n ** -1/2."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = (linear(width, width, "hidden", theta=0.5) for _ in range(2))
        self.multipliers = {"first": (width / BASE) ** -0.5, "second": (width / BASE) ** -0.5}

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x) * self.multipliers["first"]
        return self.second(x) * self.multipliers["second"] + 0.9 * x


class ScaledStream(nn.Module):
    """Two residual branches, and the stream divided by n in front of the norm that undoes it."""

    def __init__(self, width: int, power: float = -1.0) -> None:
        super().__init__()
        self.up, self.down = (nn.ModuleList(linear(width, width, "hidden") for _ in range(2)) for _ in range(2))
        self.power, self.growth = power, width / BASE

    def forward(self, x: Tensor) -> Tensor:
        for up, down in zip(self.up, self.down, strict=True):
            x = x + down(F.silu(up(F.rms_norm(x, x.shape[-1:])))) * 0.5
        return F.rms_norm(x * self.growth**self.power, x.shape[-1:], eps=1e-12)


class Undone(nn.Module):
    """A matrix times n ** power, and the norm that undoes it: the function and its training are as without."""

    def __init__(self, width: int, power: float = 0.5) -> None:
        super().__init__()
        self.matrix = linear(width, width, "hidden")
        self.factor = (width / BASE) ** power

    def forward(self, x: Tensor) -> Tensor:
        x = self.matrix(x) * self.factor
        return F.layer_norm(x, x.shape[-1:], eps=1e-12)


class Behind(nn.Module):
    """Two summed matrices of RMS-1 weights; n ** -1/2 stands behind the activation, or as a buffer in front."""

    def __init__(self, width: int, *, buffer: bool = False) -> None:
        super().__init__()
        self.first, self.second = (linear(width, width, "hidden", theta=0.5) for _ in range(2))
        self.register_buffer("factor", torch.tensor((width / BASE) ** -0.5))
        self.multiplier, self.buffer = (width / BASE) ** -0.5, buffer

    def forward(self, x: Tensor) -> Tensor:
        if self.buffer:
            x = x * self.factor
            return self.first(x) + self.second(x.flip(0))
        return F.relu(self.first(x) + self.second(x.flip(0))) * self.multiplier


def _scalars() -> None:
    kind = Kind("a", "scalars that are no multiplier")
    normed = kind.net("length norm, gain before scale", AfterLengthNorm)
    plain = kind.net("length norm, scale alone", lambda n: AfterLengthNorm(n, "scale"), "sgd")
    unit = kind.net("unit weights before attention", UnitWeights, times=6, residual=True)
    skip = kind.net("scaled skip", ScaledSkip)
    skip_sgd = kind.net("scaled skip", ScaledSkip, "sgd")
    stream = kind.net("scaled stream", ScaledStream)
    stream_sgd = kind.net("scaled stream", ScaledStream, "sgd")
    undone, undone_sgd = kind.net("undone by a norm", Undone), kind.net("undone by a norm", Undone, "momentum")
    behind, tensor = kind.net("behind", Behind), kind.net("a buffer", lambda n: Behind(n, buffer=True), "sgd")
    kind.planted(behind, "first init", "one summand too small", init(-0.5, "middle.first.weight"))
    kind.planted(behind, "second lr", "one summand's rate of SP", lr(0.5, "middle.second.weight"))
    kind.planted(tensor, "first lr", "one summand's rate without the scalar", lr(-1, "middle.first.weight"))
    kind.planted(tensor, "second init", "one summand too large", init(0.5, "middle.second.weight"))
    for family in (behind, tensor, normed, unit, skip, skip_sgd, stream, stream_sgd, undone, undone_sgd):
        kind.healthy(family)
    kind.planted(normed, "matrix lr", "base learning rate behind the norm", lr(1, "middle.matrix.weight"))
    kind.planted(normed, "matrix init", "constant size behind the norm", init(0.5, "middle.matrix.weight"))
    kind.planted(normed, "gain lr 1/n", "a gain scaled as a matrix", lr(-1, "middle.gain"))
    kind.planted(unit, "qkv init", "too small in front of attention", init(-0.5, "middle.qkv.weight"))
    kind.planted(unit, "qkv lr", "a rate of SP", lr(0.5, "middle.qkv.weight"))
    twice = multiplier(-0.5, "output", "middle.output.weight", module="middle")
    kind.planted(unit, "output twice", "its multiplier twice", twice)
    twice = multiplier(-0.5, "second", "middle.second.weight", module="middle")
    kind.planted(skip, "second twice", "the multiplier behind the skip twice", twice)
    lost = multiplier(0.5, "first", "middle.first.weight", module="middle")
    kind.planted(skip_sgd, "first lost", "the multiplier in front of the skip lost", lost)
    kind.planted(stream, "down lr", "the last matrix of a scaled stream", lr(1, "middle.down.1.weight"))
    kind.planted(stream, "down init", "the first branch of constant size", init(0.5, "middle.down.0.weight"))
    kind.planted(stream_sgd, "up lr 1/n", "Adam's rule under SGD", lr(-1, "middle.up.1.weight"))
    kind.planted(undone, "input lr 1/n", "in front of an undone scalar", lr(-1, "input.weight"))
    kind.planted(undone_sgd, "readout lr", "behind an undone scalar", lr(1, "readout.weight"))
    kind.planted(plain, "matrix lr 1/n", "Adam's rule under SGD", lr(-1, "middle.matrix.weight"))


# --- b: weights made of parameters alone ----------------------------------------------------------------------------


def normed_linear(fan_in: int, fan_out: int, role: str) -> nn.Linear:
    """A linear layer whose rows have a length and a direction: two parameters."""
    layer = nn.utils.parametrizations.weight_norm(linear(fan_in, fan_out, role))
    tag(layer.parametrizations.weight.original0, "vector")
    tag(layer.parametrizations.weight.original1, role)
    return layer


def orthogonal_linear(width: int) -> nn.Linear:
    """A linear layer whose weight is the exponential of a skew matrix, times a start."""
    layer = nn.Linear(width, width, bias=False)
    nn.init.orthogonal_(layer.weight)
    nn.utils.parametrizations.orthogonal(layer, orthogonal_map="matrix_exp")
    tag(layer.parametrizations.weight.original, "hidden")
    return layer


def spectral_linear(fan_in: int, fan_out: int, role: str) -> nn.Linear:
    """A linear layer whose weight is divided by its largest singular value."""
    layer = nn.utils.parametrizations.spectral_norm(linear(fan_in, fan_out, role), n_power_iterations=20)
    tag(layer.parametrizations.weight.original, role)
    return layer


class Standardised(nn.Module):
    """(w - mean) / deviation over the fan-in: a weight without a size of its own."""

    def forward(self, weight: Tensor) -> Tensor:
        fan_in = weight.shape[1]
        return F.layer_norm(weight, (fan_in,), eps=1e-12) * fan_in**-0.5


class Skew(nn.Module):
    """w - w^T, over sqrt(2)."""

    def forward(self, weight: Tensor) -> Tensor:
        return (weight - weight.T) * 0.5**0.5


def parametrized(width: int, made: Callable[[], nn.Module]) -> nn.Linear:
    layer = linear(width, width, "hidden")
    nn.utils.parametrize.register_parametrization(layer, "weight", made(), unsafe=True)
    tag(layer.parametrizations.weight.original, "hidden")
    return layer


class Times(nn.Module):
    """A layer with a multiplier outside, 1 in µP."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.multipliers = layer, {"layer": 1.0}

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.multipliers["layer"]


class SpectralFirst(nn.Module):
    """An MLP whose first layer is divided by its largest singular value, ~ sqrt(n), and multiplied by sqrt(n)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.input = spectral_linear(INPUTS, width, "input")
        self.hidden, self.readout = linear(width, width, "hidden"), linear(width, CLASSES, "readout")
        self.multipliers = {"input": (width / BASE) ** 0.5}

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(F.relu(self.hidden(F.relu(self.input(x) * self.multipliers["input"]))))


def _made() -> None:
    kind = Kind("b", "weights made of parameters alone")
    lengths = kind.net("weight norm", lambda n: normed_linear(n, n, "hidden"))
    lengths_sgd = kind.net("weight norm", lambda n: normed_linear(n, n, "hidden"), "sgd")
    turned = kind.net("orthogonal", lambda n: Times(orthogonal_linear(n)), "adamw")
    spectral = kind.net("spectral norm", lambda n: Times(spectral_linear(n, n, "hidden")))
    first = kind.family("spectral norm first", SpectralFirst)
    even = kind.net("standardised", lambda n: parametrized(n, Standardised), activation=torch.tanh)
    skew = kind.net("skew", lambda n: parametrized(n, Skew), "sign")
    for family in (lengths, lengths_sgd, turned, spectral, first, even, skew):
        kind.healthy(family)
    path = "middle.parametrizations.weight.original"
    kind.planted(lengths, "lengths init", "rows of growing length", init(0.5, f"{path}0"))
    kind.planted(lengths, "directions lr", "base rate of the directions", lr(1, f"{path}1"))
    kind.planted(lengths, "lengths lr 1/n", "lengths scaled as a matrix", lr(-1, f"{path}0"))
    kind.planted(lengths_sgd, "lengths lr const", "lengths without SGD's n", lr(-1, f"{path}0"))
    kind.planted(lengths_sgd, "directions lr 1/n", "Adam's rule under SGD", lr(-1, f"{path}1"))
    inner = "middle.layer.parametrizations.weight.original"
    kind.planted(turned, "skew lr", "base rate of an orthogonal weight", lr(1, inner))
    kind.planted(turned, "times", "multiplied by sqrt(n)", multiplier(0.5, "layer", inner, module="middle"))
    kind.planted(spectral, "times", "multiplied by n ** -1/2", multiplier(-0.5, "layer", inner, module="middle"))
    kind.planted(spectral, "lr", "base rate of a divided weight", lr(1, inner))
    lost = multiplier(-0.5, "input", "input.parametrizations.weight.original")
    kind.planted(first, "sqrt(n) lost", "spectral norm makes a first layer small", lost)
    kind.planted(even, "lr", "base rate of a standardised weight", lr(1, path))
    kind.planted(even, "readout init", "behind a standardised weight", init(0.5, "readout.weight"))
    kind.planted(skew, "init", "a skew weight of constant size", init(0.5, path))
    kind.planted(skew, "lr sqrt", "a rate of n ** -1/2", lr(0.5, path))


_scalars()
_made()
