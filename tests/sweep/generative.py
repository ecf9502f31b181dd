"""Models that generate: diffusion, autoencoders, flows. Noise is a part of the batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sweep.attention import attend
from sweep.data import INPUTS, TOKENS, VECTORS, VOCABULARY, classify, labels, normal, own
from sweep.mup import architecture

NOISE = normal(8, INPUTS, seed=3)


def waves(t: Tensor, size: int = 16) -> Tensor:
    """(batch,) -> (batch, size): sines and cosines."""
    angles = t[:, None] * 100.0 ** torch.linspace(-1, 0, size // 2)
    return torch.cat([angles.sin(), angles.cos()], -1)


@architecture(
    "Ho et al. 2020, arXiv:2006.11239", (normal(2, 3, 8, 8), torch.tensor([0.2, 0.7]), normal(2, 3, 8, 8, seed=2)), own
)
class DiffusionUNet(nn.Module):
    """Residual blocks with the embedded time, attention at the bottom, skips that are concatenated."""

    class Block(nn.Module):
        def __init__(self, i: int, o: int, n: int) -> None:
            super().__init__()
            self.norm, self.norm2, self.time = nn.GroupNorm(4, i), nn.GroupNorm(4, o), nn.Linear(n, o)
            self.one, self.two, self.skip = (
                nn.Conv2d(i, o, 3, padding=1),
                nn.Conv2d(o, o, 3, padding=1),
                nn.Conv2d(i, o, 1),
            )

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            y = self.one(F.silu(self.norm(x))) + self.time(F.silu(t))[..., None, None]
            return self.skip(x) + self.two(F.silu(self.norm2(y)))

    def __init__(self, n: int) -> None:
        super().__init__()
        c = n // 4
        self.time = nn.Sequential(nn.Linear(16, n), nn.SiLU(), nn.Linear(n, n))
        self.stem, self.low, self.bottom, self.up = (
            nn.Conv2d(3, c, 3, padding=1),
            self.Block(c, c, n),
            self.Block(c, 2 * c, n),
            self.Block(3 * c, c, n),
        )
        self.down, self.qkv, self.out, self.norm = (
            nn.Conv2d(c, c, 3, 2, 1),
            nn.Conv2d(2 * c, 6 * c, 1),
            nn.Conv2d(2 * c, 2 * c, 1),
            nn.GroupNorm(4, 2 * c),
        )
        self.last, self.readout = nn.GroupNorm(4, c), nn.Conv2d(c, 3, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        signal = (1 - t).sqrt()[:, None, None, None]
        x, t = self.stem(signal * x + (1 - signal**2).sqrt() * noise), self.time(waves(1000 * t))
        x = low = self.low(x, t)
        x = self.bottom(self.down(x), t)
        y = attend(*self.qkv(self.norm(x)).flatten(2).mT.chunk(3, -1))
        x = x + self.out(y.mT.reshape(x.shape))
        x = self.up(torch.cat([F.interpolate(x, scale_factor=2), low], 1), t)
        return F.mse_loss(self.readout(F.silu(self.last(x))), noise)


@architecture(
    "Peebles & Xie 2023, arXiv:2212.09748",
    (normal(2, 8, 12), torch.tensor([0.2, 0.7]), labels(2), normal(2, 8, 12, seed=2)),
    own,
    axes={"places": (None, 1)},
    keep=("modulation.*", "last.*", "readout.*"),
    widths=(64, 128, 256),
)
class DiT(nn.Module):
    """A block modulated by time and class, whose modulation and readout start at zero."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.into, self.places, self.classes = nn.Linear(12, n), nn.Parameter(torch.empty(8, n)), nn.Embedding(10, n)
        self.time, self.qkv, self.out = (
            nn.Sequential(nn.Linear(16, n), nn.SiLU(), nn.Linear(n, n)),
            nn.Linear(n, 3 * n),
            nn.Linear(n, n),
        )
        self.up, self.down, self.norm = (
            nn.Linear(n, 2 * n),
            nn.Linear(2 * n, n),
            nn.LayerNorm(n, elementwise_affine=False),
        )
        self.modulation, self.last, self.readout = nn.Linear(n, 6 * n), nn.Linear(n, 2 * n), nn.Linear(n, 12)
        for layer in (self.modulation, self.last, self.readout):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, t: Tensor, y: Tensor, noise: Tensor) -> Tensor:
        x = self.into(x + t[:, None, None] * noise) + self.places
        condition = F.silu(self.time(waves(1000 * t)) + self.classes(y))[:, None]
        a, b, c, d, e, f = self.modulation(condition).chunk(6, -1)
        x = x + c * self.out(attend(*self.qkv(self.norm(x) * (1 + b) + a).chunk(3, -1)))
        x = x + f * self.down(F.gelu(self.up(self.norm(x) * (1 + e) + d)))
        a, b = self.last(condition).chunk(2, -1)
        return F.mse_loss(self.readout(self.norm(x) * (1 + b) + a), noise)


@architecture(
    "Kingma & Welling 2014, arXiv:1312.6114", (VECTORS[0], normal(8, 4)), own, roles={"moments.weight": "readout"}
)
class VAE(nn.Module):
    """A latent of constant size, sampled by its mean and variance."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.one, self.two, self.moments = nn.Linear(INPUTS, n), nn.Linear(n, n), nn.Linear(n, 8)
        self.three, self.four, self.readout = nn.Linear(4, n), nn.Linear(n, n), nn.Linear(n, INPUTS)

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        mean, log = self.moments(F.relu(self.two(F.relu(self.one(x))))).chunk(2, -1)
        z = mean + noise * torch.exp(log / 2)
        found = self.readout(F.relu(self.four(F.relu(self.three(z)))))
        return F.mse_loss(found, x) + 0.1 * (mean.square() + log.exp() - log - 1).mean()


@architecture("van den Oord et al. 2017, arXiv:1711.00937", (VECTORS[0],), own)
class VQVAE(nn.Module):
    """The nearest of 8 codes of the width's size, passed straight through."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.one, self.two, self.codes = nn.Linear(INPUTS, n), nn.Linear(n, n), nn.Embedding(8, n)
        self.three, self.readout = nn.Linear(n, n), nn.Linear(n, INPUTS)

    def forward(self, x: Tensor) -> Tensor:
        z = self.two(F.relu(self.one(x)))
        code = self.codes(torch.cdist(z.detach(), self.codes.weight.detach()).argmin(-1))
        through = z + (code - z).detach()
        found = self.readout(F.relu(self.three(through)))
        return F.mse_loss(found, x) + F.mse_loss(code, z.detach()) + 0.25 * F.mse_loss(z, code.detach())


@architecture("Dinh et al. 2017, arXiv:1605.08803", (VECTORS[0],), own)
class RealNVP(nn.Module):
    """Two affine couplings, by networks that grow; the loss is a likelihood."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.couplings = nn.ModuleList(
            nn.Sequential(nn.Linear(8, n), nn.Tanh(), nn.Linear(n, n), nn.Tanh(), nn.Linear(n, 16)) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        total = 0
        for coupling in self.couplings:
            log, shift = coupling(a).chunk(2, -1)
            a, b = b * torch.exp(torch.tanh(log)) + shift, a
            total = total + torch.tanh(log).sum(-1)
        return (a.square().sum(-1) / 2 + b.square().sum(-1) / 2 - total).mean() / 16


@architecture(
    "Lipman et al. 2023, arXiv:2210.02747",
    (VECTORS[0], NOISE, torch.linspace(0.1, 0.9, 8)),
    own,
    optimizer="sgd",
    lr=0.05,
)
class FlowMatching(nn.Module):
    """A field of velocities, given time by a scale and a shift (FiLM)."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.into, self.hidden, self.readout = nn.Linear(INPUTS, n), nn.Linear(n, n), nn.Linear(n, INPUTS)
        self.film = nn.Linear(16, 2 * n)

    def forward(self, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        scale, shift = self.film(waves(10 * t)).chunk(2, -1)
        h = F.silu(self.into(torch.lerp(noise, x, t[:, None]))) * (1 + 0.3 * scale) + 0.3 * shift
        return F.mse_loss(self.readout(F.silu(self.hidden(h))), x - noise)


@architecture(
    "He et al. 2022, arXiv:2111.06377", (normal(2, 8, 12),), own, axes={"mask": (None, 1), "places": (None, 1)}
)
class MaskedAutoencoder(nn.Module):
    """The encoder sees half of the patches; the narrower decoder sees those and a token for the rest."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.into, self.encoder = nn.Linear(12, n), nn.TransformerEncoderLayer(n, n // 16, 2 * n, 0.0, batch_first=True)
        self.between, self.mask = nn.Linear(n, n // 2), nn.Parameter(torch.empty(1, n // 2))
        self.places, self.decoder = (
            nn.Parameter(torch.empty(8, n)),
            nn.TransformerEncoderLayer(n // 2, n // 32, n, 0.0, batch_first=True),
        )
        self.readout = nn.Linear(n // 2, 12)

    def forward(self, x: Tensor) -> Tensor:
        z = self.between(self.encoder((self.into(x) + self.places)[:, ::2]))
        z = torch.stack([z, self.mask.expand_as(z)], 2).flatten(1, 2) + self.places.chunk(2, -1)[0]
        return F.mse_loss(self.readout(self.decoder(z))[:, 1::2], x[:, 1::2])


@architecture("Song & Ermon 2019, arXiv:1907.05600", (VECTORS[0], NOISE), own)
class EnergyModel(nn.Module):
    """A scalar energy, whose gradient in the input is matched to the noise."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.one, self.two, self.readout = nn.Linear(INPUTS, n), nn.Linear(n, n), nn.Linear(n, 1)

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        x = (x + 0.5 * noise).requires_grad_()
        energy = self.readout(F.softplus(self.two(F.softplus(self.one(x)))))
        (score,) = torch.autograd.grad(energy.sum(), x, create_graph=True)
        return (score - noise).square().mean()


@architecture("Austin et al. 2021, arXiv:2107.03006", (TOKENS[0].masked_fill(normal(2, 8) > 0, 0), TOKENS[0]), classify)
class MaskedDiffusion(nn.Module):
    """Tokens that were replaced by a mask are found again by attention in both directions."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.embedding, self.places = nn.Embedding(VOCABULARY, n), nn.Embedding(8, n)
        self.qkv, self.out, self.up, self.down = (
            nn.Linear(n, 3 * n),
            nn.Linear(n, n),
            nn.Linear(n, 2 * n),
            nn.Linear(2 * n, n),
        )
        self.norms, self.readout = nn.ModuleList(nn.LayerNorm(n) for _ in range(3)), nn.Linear(n, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens) + self.places.weight
        x = x + self.out(attend(*self.qkv(self.norms[0](x)).chunk(3, -1)))
        x = x + self.down(F.gelu(self.up(self.norms[1](x))))
        return self.readout(self.norms[2](x))
