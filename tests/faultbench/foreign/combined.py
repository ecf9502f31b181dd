"""Matrices combined with data before use; weights masked, noised, summed, merged, clamped; complex parameters."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faultbench.families import draw, linear, tag
from faultbench.faults import init, lr
from faultbench.foreign.kit import Kind

# --- c: combined with data ------------------------------------------------------------------------------------------


class Modulated(nn.Module):
    """A matrix whose columns are multiplied by a style per example, and whose rows are then normalised (StyleGAN2)."""

    def __init__(self, width: int, *, demodulate: bool = True) -> None:
        super().__init__()
        self.matrix, self.style = draw(torch.empty(width, width), "hidden", width), linear(width, width, "hidden")
        self.demodulate = demodulate

    def forward(self, x: Tensor) -> Tensor:
        weight = self.matrix * (1 + self.style(x)).unsqueeze(1)  # (batch, out, in)
        if self.demodulate:
            weight = weight * torch.rsqrt(weight.square().sum(-1, keepdim=True) + 1e-8)
        return torch.bmm(weight, x.unsqueeze(-1)).squeeze(-1)


class ModulatedConv(nn.Module):
    """The same as a grouped convolution over the examples, of x as one row of pixels: (batch, n) -> (batch, n)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.kernel, self.style = (
            draw(torch.empty(width, width, 3), "hidden", 3 * width),
            linear(width, width, "hidden"),
        )

    def forward(self, x: Tensor) -> Tensor:
        batch, width = x.shape
        weight = self.kernel * (1 + self.style(x)).view(batch, 1, width, 1)
        weight = weight * torch.rsqrt(weight.square().sum((2, 3), keepdim=True) + 1e-8)
        pixels = x.unsqueeze(-1).expand(-1, -1, 4).reshape(1, batch * width, 4)
        found = F.conv1d(pixels, weight.view(batch * width, width, 3), padding=1, groups=batch)
        return found.view(batch, width, 4).mean(-1)


class HyperNetwork(nn.Module):
    """A square matrix that is a linear function of eight features of the example."""

    def __init__(self, width: int, *, module: bool = True) -> None:
        super().__init__()
        self.narrow = linear(width, 8, "narrow")
        self.maker = nn.Linear(8, width * width, bias=False) if module else None
        table = self.maker.weight if self.maker is not None else torch.empty(width, width, 8)
        drawn = draw(table, "hidden", 8 * width)
        self.table = None if module else drawn

    def forward(self, x: Tensor) -> Tensor:
        code, width = torch.tanh(self.narrow(x)), x.shape[-1]
        made = self.maker(code).view(-1, width, width) if self.table is None else self.table @ code[:, None, :, None]
        return torch.einsum("boi,bi->bo", made.reshape(-1, width, width), x)


class FastWeights(nn.Module):
    """Linear attention: W is the sum of v k^T over the times of the example, and is applied to q, over n."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value, self.output = (linear(width, width, "hidden") for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x, x.shape[-1:])
        weight = torch.einsum("btv,btk->bvk", self.value(x), self.key(x)) / x.shape[-1]
        return self.output(torch.einsum("bvk,btk->btv", weight, self.query(x)))


class Mixture(nn.Module):
    """A matrix per example, mixed from four by a router (CondConv), or by its first four coordinates."""

    def __init__(self, width: int, *, routed: bool = True) -> None:
        super().__init__()
        self.router = linear(width, 4, "narrow") if routed else None
        self.experts = draw(torch.empty(4, width, width), "hidden", width)

    def forward(self, x: Tensor) -> Tensor:
        gates = 2 * torch.sigmoid(x[:, :4] if self.router is None else self.router(x))
        weight = torch.einsum("be,eoi->boi", gates, self.experts) / 2
        return torch.bmm(weight, x.unsqueeze(-1)).squeeze(-1)


def _combined() -> None:
    kind = Kind("c", "a matrix combined with data before use")
    demodulated = kind.net("modulated", Modulated)
    plain = kind.net("modulated, not demodulated", lambda n: Modulated(n, demodulate=False), "sgd")
    conv = kind.net("modulated conv", ModulatedConv, "adamw")
    hyper = kind.net("hypernetwork", HyperNetwork)
    table = kind.net("hypernetwork of one table", lambda n: HyperNetwork(n, module=False), "sign")
    fast = kind.net("fast weights", FastWeights, times=6, residual=True)
    mixed = kind.net("mixed matrix", Mixture)
    mixed_sgd = kind.net("mixed by coordinates", lambda n: Mixture(n, routed=False), "sgd")
    for family in (demodulated, plain, conv, hyper, table, fast, mixed, mixed_sgd):
        kind.healthy(family)
    kind.planted(demodulated, "matrix lr", "base rate of a modulated matrix", lr(1, "middle.matrix"))
    kind.planted(demodulated, "style lr", "base rate of the style", lr(1, "middle.style.weight"))
    kind.planted(plain, "matrix init", "a modulated matrix of constant size", init(0.5, "middle.matrix"))
    kind.planted(plain, "matrix lr 1/n", "Adam's rule under SGD", lr(-1, "middle.matrix"))
    kind.planted(conv, "kernel lr", "base rate of a modulated kernel", lr(1, "middle.kernel"))
    kind.planted(conv, "style init", "styles too small", init(-0.5, "middle.style.weight"))
    kind.planted(hyper, "maker lr", "a hypernetwork taken for a first layer", lr(1, "middle.maker.weight"))
    kind.planted(hyper, "maker init", "the maker drawn by its own fan-in", init(0.5, "middle.maker.weight"))
    kind.planted(table, "table init", "too small a table", init(-0.5, "middle.table"))
    kind.planted(table, "narrow lr 1/n", "features learn too slowly", lr(-1, "middle.narrow.weight"))
    kind.planted(fast, "value init", "values of constant size", init(0.5, "middle.value.weight"))
    kind.planted(fast, "key lr", "base rate of the keys", lr(1, "middle.key.weight"))
    kind.planted(mixed, "experts init", "mixed matrices too small", init(-0.5, "middle.experts"))
    kind.planted(mixed, "experts lr", "base rate of mixed matrices", lr(1, "middle.experts"))
    kind.planted(mixed, "router lr", "a router that learns too fast", lr(1, "middle.router.weight"))
    kind.planted(mixed_sgd, "experts lr 1/n", "Adam's rule under SGD", lr(-1, "middle.experts"))


# --- e: masked, noised, summed, merged, clamped; complex ------------------------------------------------------------


class Changed(nn.Module):
    """A square matrix that goes through a function before it is used."""

    def __init__(self, width: int, through: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.matrix, self.through = draw(torch.empty(width, width), "hidden", width), through

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.through(self.matrix))


def centred(weight: Tensor) -> Tensor:
    return weight - weight.mean(1, keepdim=True)


def noised(weight: Tensor) -> Tensor:
    return weight + 0.1 * len(weight) ** -0.5 * torch.randn_like(weight)


def clamped(weight: Tensor) -> Tensor:
    return weight.clamp(-4 * len(weight) ** -0.5, 4 * len(weight) ** -0.5)


def causal(weight: Tensor) -> Tensor:
    return weight.masked_fill(torch.ones_like(weight, dtype=torch.bool).triu(1), 0.0)


class Summed(nn.Module):
    """Two square matrices that are added before they are used, and a low-rank product that is merged into them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = (draw(torch.empty(width, width), "hidden", 2 * width) for _ in range(2))
        self.down = draw(torch.empty(4, width), "narrow", width)
        self.up = tag(nn.Parameter(torch.zeros(width, 4)), "input")

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.first + self.second + 2 * self.up @ self.down)


class ComplexLinear(nn.Module):
    """A complex matrix on pairs of coordinates."""

    def __init__(self, width: int) -> None:
        super().__init__()
        drawn = torch.empty(width // 2, width // 2, dtype=torch.complex64)
        self.matrix = draw(drawn, "hidden", width // 2)

    def forward(self, x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.view(*x.shape[:-1], -1, 2))
        return torch.view_as_real(F.linear(pairs, self.matrix)).flatten(-2)


class Spectrum(nn.Module):
    """A complex number per frequency of the coordinates, and a matrix behind it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.filter = draw(torch.empty(width // 2 + 1, dtype=torch.complex64), "vector", 1)
        self.matrix = linear(width, width, "hidden")

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(x, norm="ortho") * self.filter
        return self.matrix(torch.fft.irfft(spectrum, n=x.shape[-1], norm="ortho"))


def _changed() -> None:
    kind = Kind("e", "weights masked, noised, summed, merged, clamped; complex")
    even = kind.net("centred", lambda n: Changed(n, centred), activation=torch.tanh)
    dropped = kind.net("dropped out", lambda n: Changed(n, lambda weight: F.dropout(weight, 0.2)), "sgd")
    noisy = kind.net("noised anew", lambda n: Changed(n, noised), "momentum")
    clipped = kind.net("clamped", lambda n: Changed(n, clamped), "sgd")
    masked = kind.net("triangular", lambda n: Changed(n, causal), "sign")
    summed = kind.net("summed", Summed)
    turned, turned_sgd = kind.net("complex", ComplexLinear), kind.net("complex", ComplexLinear, "sgd")
    spectrum = kind.net("spectrum", Spectrum, "adamw")
    for family in (even, dropped, noisy, clipped, masked, summed, turned, turned_sgd, spectrum):
        kind.healthy(family)
    for family, power in ((even, 0.5), (dropped, -0.5), (masked, 0.5), (turned, -0.5), (turned_sgd, 0.5)):
        kind.planted(family, f"init {power:+g}", "a drawn weight of the wrong size", init(power, "middle.matrix"))
    for family, power in ((even, 1), (noisy, -1), (clipped, -1), (turned, 1), (turned_sgd, -1)):
        kind.planted(family, f"lr {power:+d}", "a weight with another optimizer's rate", lr(power, "middle.matrix"))
    kind.planted(summed, "second lr", "one of two summed matrices", lr(1, "middle.second"))
    kind.planted(summed, "first init", "one of two summed matrices", init(0.5, "middle.first"))
    kind.planted(summed, "up lr 1/n", "the low rank's second factor", lr(-1, "middle.up"))
    kind.planted(spectrum, "filter lr 1/n", "a filter scaled as a matrix", lr(-1, "middle.filter"))
    kind.planted(spectrum, "matrix lr", "base rate behind a filter", lr(1, "middle.matrix.weight"))


_combined()
_changed()
