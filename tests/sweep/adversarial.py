"""Critics and generators; each is trained by itself, on data that stand for the other's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sweep.data import INPUTS, labels, normal, own
from sweep.mup import architecture


@architecture("Gulrajani et al. 2017, arXiv:1704.00028", (normal(4, 3, 8, 8), normal(4, 3, 8, 8, seed=5)), own)
class Critic(nn.Module):
    """A Wasserstein critic with a penalty on its gradient: its loss is differentiated twice."""

    def __init__(self, n: int) -> None:
        super().__init__()
        c = n // 4
        self.layers = nn.ModuleList(nn.Conv2d(i, o, 3, 2, 1) for i, o in ((3, c), (c, 2 * c), (2 * c, 4 * c)))
        self.readout = nn.Linear(n, 1)

    def score(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
        return self.readout(x.flatten(1))

    def forward(self, real: Tensor, fake: Tensor) -> Tensor:
        between = (0.3 * real + 0.7 * fake).requires_grad_()
        (slope,) = torch.autograd.grad(self.score(between).sum(), between, create_graph=True)
        penalty = (slope.flatten(1).norm(dim=1) - 1).square().mean()
        return self.score(fake).mean() - self.score(real).mean() + 10 * penalty


@architecture("Miyato et al. 2018, arXiv:1802.05957", (normal(4, 3, 8, 8), labels(4, of=2)), own)
class ProjectionCritic(nn.Module):
    """A hinge critic with an embedding of the class, projected on the features."""

    def __init__(self, n: int) -> None:
        super().__init__()
        c = n // 4
        self.layers = nn.ModuleList(nn.Conv2d(i, o, 3, 2, 1) for i, o in ((3, c), (c, 2 * c), (2 * c, 4 * c)))
        self.classes, self.readout, self.size = nn.Embedding(2, n), nn.Linear(n, 1), n

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        for layer in self.layers:
            x = F.relu(layer(x))
        features = x.flatten(1)
        score = self.readout(features)[:, 0] + (self.classes(y) * features).sum(-1) / self.size
        return F.relu(1 - score[:2]).mean() + F.relu(1 + score[2:]).mean()


@architecture("Radford et al. 2016, arXiv:1511.06434", (normal(4, INPUTS), normal(4, 3, 16, 16, seed=2).tanh()), own)
class Generator(nn.Module):
    """Transposed convolutions with batch norms, from noise to an image; trained towards images for itself."""

    def __init__(self, n: int) -> None:
        super().__init__()
        c = n // 4
        self.first, self.norm = nn.ConvTranspose2d(INPUTS, 2 * c, 4, 1, 0, bias=False), nn.BatchNorm2d(2 * c)
        self.second, self.norm2 = nn.ConvTranspose2d(2 * c, c, 4, 2, 1, bias=False), nn.BatchNorm2d(c)
        self.readout = nn.ConvTranspose2d(c, 3, 4, 2, 1)

    def forward(self, z: Tensor, target: Tensor) -> Tensor:
        x = F.relu(self.norm(self.first(z[..., None, None])))
        x = F.relu(self.norm2(self.second(x)))
        return F.mse_loss(torch.tanh(self.readout(x)), target)


@architecture(
    "Karras et al. 2020, arXiv:1912.04958",
    (normal(4, INPUTS), normal(4, 3, 4, 4, seed=2)),
    own,
    axes={"start": (None, 1), "weight": (1, 0)},
    keep=("weight",),
)
class StyleGAN(nn.Module):
    """A mapping network, and one convolution modulated by the style and demodulated."""

    def __init__(self, n: int) -> None:
        super().__init__()
        c = self.c = n // 2
        self.mapping, self.style = (
            nn.Sequential(nn.Linear(INPUTS, n), nn.LeakyReLU(0.2), nn.Linear(n, n)),
            nn.Linear(n, c),
        )
        self.start, self.weight = (
            nn.Parameter(torch.empty(1, c, 4, 4)),
            nn.Parameter(torch.randn(c, c, 3, 3) / (9 * c) ** 0.5),
        )
        self.readout = nn.Conv2d(c, 3, 1)

    def forward(self, z: Tensor, target: Tensor) -> Tensor:
        style = 1 + self.style(F.leaky_relu(self.mapping(z), 0.2))
        weight = self.weight * style[:, None, :, None, None]
        weight = weight * (weight.square().sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()
        x = self.start.expand(len(z), -1, -1, -1).reshape(1, -1, 4, 4)
        x = F.conv2d(x, weight.flatten(0, 1), padding=1, groups=len(z)).view(len(z), self.c, 4, 4)
        return F.mse_loss(self.readout(F.leaky_relu(x, 0.2)), target)
