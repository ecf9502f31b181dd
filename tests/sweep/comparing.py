"""Models that compare: twin networks, two towers, and those without negatives."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sweep.data import INPUTS, TOKENS, VOCABULARY, normal, own
from sweep.mup import architecture

VIEWS = normal(8, INPUTS), normal(8, INPUTS) + 0.3 * normal(8, INPUTS, seed=1)
"""8 examples seen twice."""


@architecture("Chen & He 2021, arXiv:2011.10566", VIEWS, own)
class SimSiam(nn.Module):
    """Two views, a predictor on one, no gradient through the other; the similarity is a cosine."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(INPUTS, n), nn.BatchNorm1d(n), nn.ReLU())
        self.project = nn.Sequential(nn.Linear(n, n), nn.ReLU(), nn.Linear(n, n))
        self.predict = nn.Sequential(nn.Linear(n, n // 4), nn.ReLU(), nn.Linear(n // 4, n))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        za, zb = (self.project(self.encode(x)) for x in (a, b))
        pairs = ((self.predict(za), zb), (self.predict(zb), za))
        return -sum(F.cosine_similarity(p, z.detach(), -1).mean() for p, z in pairs) / 2


@architecture("Chen et al. 2020, arXiv:2002.05709; Bromley et al. 1993", VIEWS, own)
class Siamese(nn.Module):
    """Twin networks with a projection of constant size; the other pairs are the negatives (InfoNCE)."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(INPUTS, n), nn.ReLU(), nn.Linear(n, n), nn.ReLU())
        self.project = nn.Linear(n, 8)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        scores = self.project(self.encode(a)) @ self.project(self.encode(b)).T
        return F.cross_entropy(scores, torch.arange(len(a)))


@architecture(
    "Radford et al. 2021, arXiv:2103.00020", (VIEWS[0], TOKENS[0].repeat(4, 1)[:, :4] + torch.arange(8)[:, None]), own
)
class CLIP(nn.Module):
    """Two towers of unlike kinds; embeddings of norm 1 and of the width's size; a learnt temperature."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Linear(INPUTS, n), nn.ReLU(), nn.Linear(n, n))
        self.text, self.text2, self.norm = nn.Embedding(VOCABULARY + 8, n), nn.Linear(n, n), nn.LayerNorm(n)
        self.temperature = nn.Parameter(torch.tensor(1.0))

    def forward(self, images: Tensor, tokens: Tensor) -> Tensor:
        a, b = self.image(images), self.text2(F.gelu(self.norm(self.text(tokens).mean(1))))
        scores = self.temperature.exp() * F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).T
        target = torch.arange(len(a))
        return (F.cross_entropy(scores, target) + F.cross_entropy(scores.T, target)) / 2


@architecture("Schroff et al. 2015, arXiv:1503.03832", (torch.stack([*VIEWS, normal(8, INPUTS, seed=7)]),), own)
class Triplet(nn.Module):
    """Anchor, positive and negative in one pass; distances in 8 dimensions."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.one, self.two, self.norm, self.embed = (
            nn.Linear(INPUTS, n),
            nn.Linear(n, n),
            nn.LayerNorm(n),
            nn.Linear(n, 8),
        )

    def forward(self, x: Tensor) -> Tensor:
        anchor, positive, negative = self.embed(self.norm(F.relu(self.two(F.relu(self.one(x))))))
        return F.softplus((anchor - positive).square().sum(-1) - (anchor - negative).square().sum(-1)).mean()


@architecture("Zbontar et al. 2021, arXiv:2103.03230", VIEWS, own)
class BarlowTwins(nn.Module):
    """The cross-correlation of two views' embeddings, of constant size, is driven to the identity."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.one, self.two, self.embed = nn.Linear(INPUTS, n), nn.Linear(n, n), nn.Linear(n, 6)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        a, b = (self.embed(F.relu(self.two(F.relu(self.one(x))))) for x in (a, b))
        a, b = ((x - x.mean(0)) / (x.var(0) + 1.0).sqrt() for x in (a, b))
        return (a.T @ b / len(a) - torch.eye(6)).square().mean()
