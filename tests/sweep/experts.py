"""Mixtures of experts. The number of experts is a constant; every token gets some."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sweep.data import TOKENS, classify
from sweep.mup import architecture
from sweep.recurrent import Text, text

EXPERTS = 4


class Network(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(n, 2 * n, bias=False), nn.Linear(2 * n, n, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.relu(self.up(x)))


@text("Fedus et al. 2021, arXiv:2101.03961", roles={"mixer.router.weight": "narrow"})
class Switch(nn.Module):
    """One expert per token, weighted by its probability."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.router, self.experts = nn.Linear(n, EXPERTS, bias=False), nn.ModuleList(Network(n) for _ in range(EXPERTS))

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.router(x).softmax(-1).max(-1)
        y = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            y[chosen == i] = expert(x[chosen == i])
        return weights[..., None] * y


@text(
    "Jiang et al. 2024, arXiv:2401.04088",
    roles={"mixer.router.weight": "narrow"},
    axes={"mixer.up": (1, 2), "mixer.down": (1, 2)},
)
class TopTwo(nn.Module):
    """Two of the experts, whose weights are stacked, per token."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.router = nn.Linear(n, EXPERTS, bias=False)
        self.up, self.down = nn.Parameter(torch.empty(EXPERTS, n, 2 * n)), nn.Parameter(torch.empty(EXPERTS, 2 * n, n))

    def forward(self, x: Tensor) -> Tensor:
        scores, chosen = self.router(x).topk(2, -1)
        weights = torch.zeros(*x.shape[:-1], EXPERTS).scatter(-1, chosen, scores.softmax(-1))
        y = F.gelu(torch.einsum("btn,enf->btef", x, self.up))
        return torch.einsum("btef,efn,bte->btn", y, self.down, weights)


@text("Puigcerver et al. 2024, arXiv:2308.00951", axes={"mixer.slots": (0, 1)}, roles={"mixer.slots": "narrow"})
class SoftExperts(nn.Module):
    """Every expert sees one weighted mean of the tokens, and every token a mean of the experts."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.slots, self.experts = (
            nn.Parameter(torch.empty(n, EXPERTS)),
            nn.ModuleList(Network(n) for _ in range(EXPERTS)),
        )

    def forward(self, x: Tensor) -> Tensor:
        logits = x @ self.slots
        seen = logits.softmax(1).mT @ x
        y = torch.stack([expert(seen[:, i]) for i, expert in enumerate(self.experts)], 1)
        return logits.softmax(-1) @ y


@text("Zhou et al. 2022, arXiv:2202.09368", roles={"mixer.router.weight": "narrow"})
class ExpertChoice(nn.Module):
    """Every expert takes the four tokens that score highest with it."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.router, self.experts = nn.Linear(n, EXPERTS, bias=False), nn.ModuleList(Network(n) for _ in range(EXPERTS))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, 1)
        weights, chosen = self.router(flat).softmax(-1).topk(8, dim=0)
        y = torch.zeros_like(flat)
        for i, expert in enumerate(self.experts):
            y = y.index_add(0, chosen[:, i], weights[:, i, None] * expert(flat[chosen[:, i]]))
        return y.view_as(x)


@text("DeepSeek-AI 2024, arXiv:2412.19437", roles={"mixer.router.weight": "narrow"}, optimizer="adamw")
class SharedExpert(nn.Module):
    """An expert for all tokens, and two small ones by sigmoid scores that are made to sum to one."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.router, self.shared = nn.Linear(n, EXPERTS, bias=False), Network(n)
        self.experts = nn.ModuleList(Network(n) for _ in range(EXPERTS))

    def forward(self, x: Tensor) -> Tensor:
        scores, chosen = self.router(x).sigmoid().topk(2, -1)
        weights = torch.zeros(*x.shape[:-1], EXPERTS).scatter(-1, chosen, scores / scores.sum(-1, keepdim=True))
        return self.shared(x) + sum(weights[..., i, None] * expert(x) for i, expert in enumerate(self.experts))


@architecture("Raposo et al. 2024, arXiv:2404.02258", TOKENS, classify, roles={"router.weight": "narrow"})
class MixtureOfDepths(Text):
    """Only half of the tokens, those with the highest scores, pass through the mixer."""

    def __init__(self, n: int) -> None:
        super().__init__(n, Network(n))
        self.router = nn.Linear(n, 1, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        scores, chosen = self.router(x)[..., 0].topk(4, -1)
        index = chosen[..., None].expand(-1, -1, x.shape[-1])
        y = torch.sigmoid(scores)[..., None] * self.mixer(self.norm(x.gather(1, index)))
        x = x.scatter_add(1, index, y)
        return self.readout(self.last(x + self.down(F.gelu(self.up(self.norm2(x))))))
