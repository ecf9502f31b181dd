"""Networks of coordinates, and of functions on edges."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sweep.data import CLASSES, INPUTS, VECTORS, classify, normal, own, regress
from sweep.mup import architecture


@architecture("Mildenhall et al. 2020, arXiv:2003.08934", (normal(4, 6), normal(4, 3, seed=2).sigmoid()), regress)
class NeRF(nn.Module):
    """Density and colour along a ray, with encoded positions and a skip, composed by alpha."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.first, self.second, self.third, self.again = (
            nn.Linear(24, n),
            nn.Linear(n, n),
            nn.Linear(n, n),
            nn.Linear(24, n),
        )
        self.density, self.feature = nn.Linear(n, 1), nn.Linear(n, n)
        self.view, self.side, self.colour = nn.Linear(n, n // 2), nn.Linear(3, n // 2), nn.Linear(n // 2, 3)

    def forward(self, rays: Tensor) -> Tensor:
        start, direction = rays.chunk(2, -1)
        points = start[:, None] + torch.linspace(0.2, 1, 4)[:, None] * direction[:, None]
        encoded = torch.cat([f(2.0**k * points) for k in range(4) for f in (torch.sin, torch.cos)], -1)
        h = F.relu(self.second(F.relu(self.first(encoded))))
        h = F.relu(self.third(h) + self.again(encoded))
        clear = torch.exp(-0.2 * F.softplus(self.density(h)[..., 0]))
        seen = torch.cat([torch.ones_like(clear[:, :1]), clear.cumprod(-1)[:, :-1]], 1) * (1 - clear)
        h = F.relu(self.view(self.feature(h)) + self.side(direction)[:, None])
        return (seen[..., None] * torch.sigmoid(self.colour(h))).sum(1)


@architecture(
    "Sitzmann et al. 2020, arXiv:2006.09661",
    (normal(8, 2).tanh(), normal(8, 3, seed=2)),
    regress,
)
class SIREN(nn.Module):
    """Sines of layers; frequencies stand behind them."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.first, self.second, self.third, self.readout = (
            nn.Linear(2, n),
            nn.Linear(n, n),
            nn.Linear(n, n),
            nn.Linear(n, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sin(10 * self.first(x))
        for layer in (self.second, self.third):
            x = torch.sin(2 * layer(x))
        return self.readout(x)


@architecture("Raissi et al. 2019", (normal(8, 2).tanh(), normal(8, 1)), own)
class PhysicsInformed(nn.Module):
    """The heat equation: first and second derivatives of the output stand in the loss."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.one, self.two, self.readout = nn.Linear(2, n), nn.Linear(n, n), nn.Linear(n, 1)

    def forward(self, x: Tensor, start: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        u = self.readout(torch.tanh(self.two(torch.tanh(self.one(x)))))
        (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(slope[:, 0].sum(), x, create_graph=True)
        return (slope[:, 1] - 0.1 * second[:, 0]).square().mean() + F.mse_loss(u, start)


@architecture(
    "Liu et al. 2024, arXiv:2404.19756",
    VECTORS,
    classify,
    axes={"into": (1, 2), "hidden": (1, 2)},
    keep=("into", "hidden"),
)
class KAN(nn.Module):
    """A learnt function on every edge: five Gaussians each, beside a plain layer."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.register_buffer("centres", torch.linspace(-2, 2, 5))
        self.into, self.hidden = (
            nn.Parameter(torch.randn(5, INPUTS, n) / (5 * INPUTS) ** 0.5),
            nn.Parameter(torch.randn(5, n, n) / (5 * n) ** 0.5),
        )
        self.base, self.norm, self.readout = nn.Linear(n, n), nn.LayerNorm(n), nn.Linear(n, CLASSES)

    def edges(self, x: Tensor) -> Tensor:
        return torch.exp(-(x[..., None] - self.centres).square())

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(torch.einsum("bik,kio->bo", self.edges(x), self.into))
        return self.readout(torch.einsum("bik,kio->bo", self.edges(x), self.hidden) + self.base(F.silu(x)))
