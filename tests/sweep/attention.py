"""Kinds of attention, and blocks with it. The size of a head is constant; the number of heads grows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sweep.data import normal
from sweep.recurrent import HEAD, heads, joined, projections, text


def attend(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
    """Attention over (batch, time, n)."""
    return joined(F.scaled_dot_product_attention(heads(q), heads(k), heads(v), is_causal=causal))


def rotate(x: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021, arXiv:2104.09864) of (batch, heads, time, size of a head)."""
    angles = torch.arange(x.shape[-2])[:, None] * 100.0 ** -torch.linspace(0, 1, HEAD // 2)
    a, b = x.chunk(2, -1)
    return torch.cat([a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()], -1)


class Attention(nn.Module):
    """From a sequence to itself or to another."""

    def __init__(self, n: int, of: int | None = None) -> None:
        super().__init__()
        self.q, self.out = nn.Linear(n, n, bias=False), nn.Linear(n, n, bias=False)
        self.k, self.v = (nn.Linear(of or n, n, bias=False) for _ in range(2))

    def forward(self, x: Tensor, other: Tensor | None = None, causal: bool = False) -> Tensor:
        other = x if other is None else other
        return self.out(attend(self.q(x), self.k(other), self.v(other), causal))


def network(n: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(n), nn.Linear(n, 2 * n), nn.GELU(), nn.Linear(2 * n, n))


@text("Touvron et al. 2023, arXiv:2307.09288", roles={"mixer.[kv].weight": "narrow"}, optimizer="adamw")
class Llama(nn.Module):
    """Rotary positions, and one head of keys and values for all queries."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.q, self.out = projections(n, 2)
        self.k, self.v = (nn.Linear(n, HEAD, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (heads(layer(x)) for layer in (self.q, self.k, self.v))
        k, v = (t.expand_as(q) for t in (rotate(k), v))
        return self.out(joined(F.scaled_dot_product_attention(rotate(q), k, v, is_causal=True)))


@text("DeepSeek-AI 2024, arXiv:2405.04434")
class LatentAttention(nn.Module):
    """Keys and values from a latent of a quarter of the width, with a norm."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.q, self.out = projections(n, 2)
        self.down, self.up = nn.Linear(n, n // 4, bias=False), nn.Linear(n // 4, 2 * n, bias=False)
        self.norm = nn.RMSNorm(n // 4)

    def forward(self, x: Tensor) -> Tensor:
        k, v = self.up(self.norm(self.down(x))).chunk(2, -1)
        return self.out(attend(self.q(x), k, v, causal=True))


@text("Ye et al. 2024, arXiv:2410.05258")
class DifferentialAttention(nn.Module):
    """The difference of two attentions, whose weight is learnt; a norm per head."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = projections(n, 4)
        self.weight, self.norm = nn.Parameter(torch.tensor(0.0)), nn.RMSNorm(HEAD, elementwise_affine=False)

    def forward(self, x: Tensor) -> Tensor:
        (q, q2), (k, k2) = (heads(layer(x)).chunk(2, -1) for layer in (self.q, self.k))
        mask = torch.ones(x.shape[1], x.shape[1]).triu(1).bool()
        maps = [(a @ b.mT * (HEAD // 2) ** -0.5).masked_fill(mask, -1e9).softmax(-1) for a, b in ((q, k), (q2, k2))]
        y = (maps[0] - (0.5 + self.weight) * maps[1]) @ heads(self.v(x))
        return self.out(joined(self.norm(y)))


@text("Chowdhery et al. 2022, arXiv:2204.02311; Dehghani et al. 2023, arXiv:2302.05442")
class ParallelBlock(nn.Module):
    """Attention with normed queries and keys beside a gated network, of one fused matrix."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n, self.fused, self.out = n, nn.Linear(n, 5 * n, bias=False), nn.Linear(2 * n, n, bias=False)
        self.q_norm, self.k_norm = nn.LayerNorm(HEAD), nn.LayerNorm(HEAD)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v, a, b = self.fused(x).chunk(5, -1)
        q, k = self.q_norm(heads(q)), self.k_norm(heads(k))
        y = joined(F.scaled_dot_product_attention(q, k, heads(v), is_causal=True))
        return self.out(torch.cat([y, F.silu(a) * b], -1))


@text("Choromanski et al. 2021, arXiv:2009.14794")
class Performer(nn.Module):
    """Linear attention by positive random features."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = projections(n, 4)
        self.register_buffer("directions", normal(HEAD, 32))

    def forward(self, x: Tensor) -> Tensor:
        q, k = (
            torch.exp((h := heads(layer(x)) * HEAD**-0.25) @ self.directions - h.square().sum(-1, keepdim=True) / 2)
            for layer in (self.q, self.k)
        )
        sums = torch.einsum("bhtf,bhtd->bhtfd", k, heads(self.v(x))).cumsum(2)
        total = (q * k.cumsum(2)).sum(-1, keepdim=True)
        return self.out(joined(torch.einsum("bhtf,bhtfd->bhtd", q, sums) / (total + 1e-6)))


@text(
    "Liu et al. 2021, arXiv:2105.08050",
    axes={"mixer.space": (None, 0), "mixer.one": (None, 0)},
    keep=("mixer.space", "mixer.one"),
)
class GatedMLP(nn.Module):
    """gMLP: a matrix over the positions gates the channels; it starts at zero, and its bias at one."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.into, self.out, self.norm = nn.Linear(n, 2 * n), nn.Linear(n, n), nn.LayerNorm(n)
        self.space, self.one = nn.Parameter(torch.zeros(8, 8)), nn.Parameter(torch.ones(8, 1))

    def forward(self, x: Tensor) -> Tensor:
        a, b = F.gelu(self.into(x)).chunk(2, -1)
        return self.out(a * (self.space.tril() @ self.norm(b) + self.one))


@text("Shazeer et al. 2020, arXiv:2003.02436")
class TalkingHeads(nn.Module):
    """Heads are mixed before and behind the softmax; their number grows."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = projections(n, 4)
        self.before, self.behind = (nn.Linear(n // HEAD, n // HEAD, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (heads(layer(x)) for layer in (self.q, self.k, self.v))
        scores = self.before((q @ k.mT * HEAD**-0.5).movedim(1, -1))
        return self.out(joined(self.behind(scores.softmax(2)).movedim(-1, 1) @ v))
