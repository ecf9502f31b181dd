"""Convolutional models, and others that see; a quarter of the width counts their channels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sweep.data import CLASSES, IMAGES, classify, labels, normal
from sweep.mup import architecture


def patches(images: Tensor, size: int = 2) -> Tensor:
    """(batch, 3, 8, 8) -> (batch, places, 3 * size ** 2)."""
    return F.unfold(images, size, stride=size).mT


class Image(nn.Module):
    """A stem, blocks, a norm, the mean over places, a readout."""

    def __init__(self, channels: int, *blocks: nn.Module) -> None:
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(3, channels, 3, padding=1, stride=2), nn.Sequential(*blocks)
        self.last, self.readout = nn.GroupNorm(1, channels), nn.Linear(channels, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.last(self.blocks(self.stem(x))).mean((2, 3)))


@architecture(
    "Liu et al. 2022, arXiv:2201.03545",
    IMAGES,
    classify,
    optimizer="adamw",
    axes={"blocks.*.scale": (None, 0)},
    keep=("*.scale",),
)
class ConvNeXt(Image):
    """Depthwise 7 x 7, a norm of channels, an inverted bottleneck, a layer scale."""

    class Block(nn.Module):
        def __init__(self, c: int) -> None:
            super().__init__()
            self.depth, self.norm = nn.Conv2d(c, c, 7, padding=3, groups=c), nn.LayerNorm(c)
            self.up, self.down, self.scale = (
                nn.Linear(c, 4 * c),
                nn.Linear(4 * c, c),
                nn.Parameter(torch.full((c,), 0.1)),
            )

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(self.depth(x).movedim(1, -1))
            return x + (self.scale * self.down(F.gelu(self.up(y)))).movedim(-1, 1)

    def __init__(self, n: int) -> None:
        super().__init__(n // 2, self.Block(n // 2), self.Block(n // 2))


@architecture("Tan & Le 2019, arXiv:1905.11946", IMAGES, classify)
class EfficientNet(Image):
    """Inverted bottlenecks with batch norms and squeeze and excitation."""

    class Block(nn.Module):
        def __init__(self, c: int) -> None:
            super().__init__()
            self.up, self.down = nn.Conv2d(c, 4 * c, 1, bias=False), nn.Conv2d(4 * c, c, 1, bias=False)
            self.depth = nn.Conv2d(4 * c, 4 * c, 3, padding=1, groups=4 * c, bias=False)
            self.squeeze, self.excite = nn.Conv2d(4 * c, c // 4, 1), nn.Conv2d(c // 4, 4 * c, 1)
            self.norms = nn.ModuleList(nn.BatchNorm2d(k) for k in (4 * c, 4 * c, c))

        def forward(self, x: Tensor) -> Tensor:
            y = F.silu(self.norms[1](self.depth(F.silu(self.norms[0](self.up(x))))))
            y = y * torch.sigmoid(self.excite(F.silu(self.squeeze(y.mean((2, 3), keepdim=True)))))
            return x + self.norms[2](self.down(y))

    def __init__(self, n: int) -> None:
        super().__init__(n // 4, self.Block(n // 4))


@architecture(
    "He et al. 2016, arXiv:1603.05027; Xie et al. 2017, arXiv:1611.05431", IMAGES, classify, optimizer="sgd", lr=0.05
)
class ResNeXt(Image):
    """Blocks with norms in front, and a grouped convolution of four groups."""

    class Block(nn.Module):
        def __init__(self, c: int, wider: int) -> None:
            super().__init__()
            self.norms = nn.ModuleList([nn.BatchNorm2d(c), nn.BatchNorm2d(c), nn.BatchNorm2d(c)])
            self.one, self.grouped = nn.Conv2d(c, c, 1, bias=False), nn.Conv2d(c, c, 3, padding=1, groups=4, bias=False)
            self.two, self.shortcut = nn.Conv2d(c, wider, 1, bias=False), nn.Conv2d(c, wider, 1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.norms[0](x))
            y = F.relu(self.norms[1](self.one(x)))
            return self.shortcut(x) + self.two(F.relu(self.norms[2](self.grouped(y))))

    def __init__(self, n: int) -> None:
        super().__init__(n // 2, self.Block(n // 2, n // 2))


@architecture("Huang et al. 2017, arXiv:1608.06993", IMAGES, classify)
class DenseNet(nn.Module):
    """Every layer sees all those before it."""

    def __init__(self, n: int) -> None:
        super().__init__()
        c = n // 4
        self.stem = nn.Conv2d(3, c, 3, padding=1, stride=2)
        self.layers = nn.ModuleList(nn.Conv2d(c * (1 + i), c, 3, padding=1, bias=False) for i in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm2d(c * (1 + i)) for i in range(4))
        self.readout = nn.Linear(4 * c, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer, norm in zip(self.layers, self.norms, strict=False):
            x = torch.cat([x, layer(F.relu(norm(x)))], 1)
        return self.readout(F.relu(self.norms[-1](x)).mean((2, 3)))


@architecture("Tolstikhin et al. 2021, arXiv:2105.01601", IMAGES, classify)
class Mixer(nn.Module):
    """Networks over the places, whose hidden size is constant, and over the channels."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.into, self.norm, self.norm2, self.last = nn.Linear(12, n), *(nn.LayerNorm(n) for _ in range(3))
        self.places = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.channels = nn.Sequential(nn.Linear(n, 2 * n), nn.GELU(), nn.Linear(2 * n, n))
        self.readout = nn.Linear(n, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(patches(x))
        x = x + self.places(self.norm(x).mT).mT
        x = x + self.channels(self.norm2(x))
        return self.readout(self.last(x).mean(1))


@architecture(
    "Dosovitskiy et al. 2021, arXiv:2010.11929; Darcet et al. 2024, arXiv:2309.16588",
    IMAGES,
    classify,
    axes={"tokens": (None, 1), "places": (None, 1)},
)
class VisionTransformer(nn.Module):
    """A class token and registers, one layer of torch's own encoder with norms in front."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.into, self.tokens, self.places = (
            nn.Linear(12, n),
            nn.Parameter(torch.empty(3, n)),
            nn.Parameter(torch.empty(16, n)),
        )
        self.layer = nn.TransformerEncoderLayer(
            n, n // 16, 2 * n, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.last, self.readout = nn.LayerNorm(n), nn.Linear(n, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.tokens.expand(len(x), -1, -1), self.into(patches(x)) + self.places], 1)
        return self.readout(self.last(self.layer(x)[:, 0]))


@architecture(
    "Liu et al. 2021, arXiv:2103.14030",
    IMAGES,
    classify,
    roles={"bias": "constant"},
    axes={"bias": (None, 1)},
    keep=("bias",),
)
class Swin(nn.Module):
    """Attention in shifted windows, and merging of patches, which doubles the channels."""

    def __init__(self, n: int) -> None:
        super().__init__()
        c = self.c = n // 2
        self.into, self.qkv, self.out = nn.Linear(12, c), nn.Linear(c, 3 * c), nn.Linear(c, c)
        self.norm, self.norm2, self.merged = nn.LayerNorm(c), nn.LayerNorm(c), nn.LayerNorm(4 * c)
        self.network, self.merge = (
            nn.Sequential(nn.Linear(c, 2 * c), nn.GELU(), nn.Linear(2 * c, c)),
            nn.Linear(4 * c, n, bias=False),
        )
        self.last, self.readout = nn.LayerNorm(n), nn.Linear(n, CLASSES)

    def windows(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(len(x), 2, 2, 2, 2, 3, -1, 16).permute(5, 0, 1, 3, 6, 2, 4, 7).flatten(5, 6)
        y = F.scaled_dot_product_attention(q, k, v).unflatten(4, (2, 2)).permute(0, 1, 4, 2, 5, 3, 6)
        return self.out(y.reshape(len(x), 4, 4, self.c))

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(patches(x)).unflatten(1, (4, 4))
        for shift in (0, 1):
            y = torch.roll(self.norm(x), (-shift, -shift), (1, 2))
            x = x + torch.roll(self.windows(y), (shift, shift), (1, 2))
            x = x + self.network(self.norm2(x))
        x = x.view(len(x), 2, 2, 2, 2, self.c).movedim(2, 3).reshape(len(x), 4, 4 * self.c)
        return self.readout(self.last(self.merge(self.merged(x))).mean(1))


@architecture("Sabour et al. 2017, arXiv:1710.09829", IMAGES, classify, axes={"votes": (2, 0)})
class Capsules(nn.Module):
    """Capsules of 8 numbers, whose number grows, vote for classes of 8; votes are averaged, and routed by agreement."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.stem, self.primary = nn.Conv2d(3, n, 3, padding=1, stride=2), nn.Conv2d(n, n, 4)
        self.votes = nn.Parameter(torch.empty(n // 8, CLASSES, 8, 8))

    def squash(self, x: Tensor) -> Tensor:
        length = x.norm(dim=-1, keepdim=True)
        return x * length / (1 + length**2)

    def forward(self, x: Tensor) -> Tensor:
        capsules = self.squash(self.primary(F.relu(self.stem(x))).flatten(1).unflatten(1, (-1, 8)))
        votes = torch.einsum("bid,ijde->bije", capsules, self.votes)
        logits = votes.new_zeros(votes.shape[:3])
        for _ in range(2):
            found = self.squash((logits.softmax(2)[..., None] * votes).mean(1) * CLASSES)
            logits = logits + (votes * found[:, None]).sum(-1)
        return 4 * found.norm(dim=-1)


@architecture(
    "Lin et al. 2017, arXiv:1612.03144; Tian et al. 2019, arXiv:1904.01355",
    (normal(2, 3, 8, 8), labels(2, 80, of=5)),
    lambda m, b: F.cross_entropy(m(b[0]).flatten(0, 1), b[1].flatten()),
)
class FeaturePyramid(nn.Module):
    """Two levels with lateral and top-down paths, and one head that both share."""

    def __init__(self, n: int) -> None:
        super().__init__()
        c = n // 4
        self.low, self.high = nn.Conv2d(3, c, 3, padding=1), nn.Conv2d(c, 2 * c, 3, stride=2, padding=1)
        self.lateral, self.top, self.smooth = nn.Conv2d(c, c, 1), nn.Conv2d(2 * c, c, 1), nn.Conv2d(c, c, 3, padding=1)
        self.norm, self.norm2, self.tower, self.readout = (
            nn.GroupNorm(4, c),
            nn.GroupNorm(4, c),
            nn.Conv2d(c, c, 3, padding=1),
            nn.Conv2d(c, 5, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        low = F.relu(self.norm(self.low(x)))
        top = self.top(F.relu(self.high(low)))
        level = self.smooth(self.lateral(low) + F.interpolate(top, scale_factor=2, mode="nearest"))
        outputs = [self.readout(F.relu(self.norm2(self.tower(y)))).flatten(2) for y in (level, top)]
        return torch.cat(outputs, -1).mT
