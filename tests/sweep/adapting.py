"""Weights that are computed, adapted or shared out: hypernetworks, inner loops, fixed points, adapters, experts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from sweep.attention import Attention, network
from sweep.data import CLASSES, INPUTS, TOKENS, VECTORS, VOCABULARY, classify, labels, normal, own
from sweep.mup import BASE, architecture


def four(n: int) -> tuple[nn.Linear, ...]:
    """Input, two hidden matrices and readout."""
    return nn.Linear(INPUTS, n), nn.Linear(n, n), nn.Linear(n, n), nn.Linear(n, CLASSES)


TASKS = normal(8, INPUTS), normal(8, 4, seed=3), labels(8)


@architecture("Ha et al. 2016, arXiv:1609.09106", TASKS, own)
class HyperNetwork(nn.Module):
    """A network that grows gives all weights of a small one, for each task; they start small, as a readout does."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.one, self.two, self.weights = nn.Linear(4, n), nn.Linear(n, n), nn.Linear(n, CLASSES * INPUTS)

    def forward(self, x: Tensor, task: Tensor, y: Tensor) -> Tensor:
        weights = self.weights(F.relu(self.two(F.relu(self.one(task))))).unflatten(1, (CLASSES, INPUTS))
        return F.cross_entropy((weights @ x[..., None])[..., 0], y)


@architecture(
    "Ha et al. 2016, arXiv:1609.09106; von Oswald et al. 2020, arXiv:1906.00695",
    (VECTORS[0], normal(1, 4), VECTORS[1]),
    own,
    axes={"basis": (2, 1)},
    keep=("basis",),
)
class GeneratedLayer(nn.Module):
    """A hidden matrix is a sum of four, weighted by the embedding of a task."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.into, self.readout, self.code = nn.Linear(INPUTS, n), nn.Linear(n, CLASSES), nn.Linear(4, 4)
        self.basis = nn.Parameter(torch.randn(4, n, n) / (4 * n) ** 0.5)

    def forward(self, x: Tensor, task: Tensor, y: Tensor) -> Tensor:
        weight = torch.einsum("k,kij->ij", 1 + self.code(task)[0], self.basis)
        return F.cross_entropy(self.readout(F.relu(F.linear(F.relu(self.into(x)), weight))), y)


@architecture("Finn et al. 2017, arXiv:1703.03400", (*VECTORS, normal(8, INPUTS, seed=4), labels(8, seed=5)), own)
class MAML(nn.Module):
    """One inner step, whose rates are those of µP for SGD; the outer loss is differentiated through it."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.net, m = (
            nn.Sequential(nn.Linear(INPUTS, n), nn.Tanh(), nn.Linear(n, n), nn.Tanh(), nn.Linear(n, CLASSES)),
            n / BASE,
        )
        self.rates = {"0.weight": m, "0.bias": m, "2.weight": 1.0, "2.bias": m, "4.weight": 1 / m, "4.bias": 1.0}

    def forward(self, x: Tensor, y: Tensor, x2: Tensor, y2: Tensor) -> Tensor:
        weights = dict(self.net.named_parameters())
        loss = F.cross_entropy(functional_call(self.net, weights, x), y)
        slopes = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
        adapted = {
            name: weight - 0.05 * self.rates[name] * slope
            for (name, weight), slope in zip(weights.items(), slopes, strict=True)
        }
        return F.cross_entropy(functional_call(self.net, adapted, x2), y2)


@architecture("Bai et al. 2019, arXiv:1909.01377", VECTORS, classify)
class DEQ(nn.Module):
    """A fixed point from the state zero, found without a gradient; the last step carries it."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.into, self.state, self.readout = nn.Linear(INPUTS, n), nn.Linear(n, n), nn.Linear(n, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        u = self.into(x)
        z = torch.zeros_like(u)
        with torch.no_grad():
            for _ in range(12):
                z = torch.tanh(0.5 * self.state(z) + u)
        return self.readout(torch.tanh(0.5 * self.state(z) + u))


@architecture("Chen et al. 2018, arXiv:1806.07366", VECTORS, classify)
class NeuralODE(nn.Module):
    """Two steps of the fourth-order Runge-Kutta method; every stage calls the same layers, with the time."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.into, self.one, self.two, self.readout = four(n)
        self.time = nn.Linear(1, n, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        def slope(t: float, h: Tensor) -> Tensor:
            return self.two(torch.tanh(self.one(h) + self.time(h.new_full((1, 1), t))))

        h, step = self.into(x), 0.5
        for t in (0.0, 0.5):
            a = slope(t, h)
            b = slope(t + step / 2, h + step / 2 * a)
            c = slope(t + step / 2, h + step / 2 * b)
            h = h + step / 6 * (a + 2 * b + 2 * c + slope(t + step, h + step * c))
        return self.readout(h)


@architecture("Amos & Kolter 2017; Gould et al. 2021: a layer that descends an inner energy", VECTORS, classify)
class UnrolledDescent(nn.Module):
    """Learnt ISTA (Gregor & LeCun 2010): three thresholded steps towards a sparse code, with tied weights."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.encode, self.inner, self.readout = (
            nn.Linear(INPUTS, n, bias=False),
            nn.Linear(n, n, bias=False),
            nn.Linear(n, CLASSES),
        )
        self.threshold = nn.Parameter(torch.full((n,), 0.3))

    def forward(self, x: Tensor) -> Tensor:
        b = self.encode(x)
        z = F.relu(b - self.threshold)
        for _ in range(3):
            z = F.relu(b + 0.5 * self.inner(z) - self.threshold)
        return self.readout(z)


class Frozen(nn.Module):
    """A linear layer that is not trained, and an update of rank 4 that is."""

    def __init__(self, n: int, rank: int = 4) -> None:
        super().__init__()
        self.base, self.a, self.b = (
            nn.Linear(n, n, bias=False),
            nn.Linear(n, rank, bias=False),
            nn.Linear(rank, n, bias=False),
        )
        self.base.weight.requires_grad_(False)
        nn.init.zeros_(self.b.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 2 * self.b(self.a(x))


class Directions(Frozen):
    """DoRA: the columns' norms are learnt apart from their directions."""

    def __init__(self, n: int) -> None:
        super().__init__(n)
        self.norms = nn.Parameter(torch.ones(n))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.base.weight + 2 * self.b.weight @ self.a.weight
        return F.linear(x, weight * (self.norms / weight.norm(dim=1))[:, None])


class Adapted(nn.Module):
    """A network with two adapted layers."""

    kind: type[nn.Module] = Frozen

    def __init__(self, n: int) -> None:
        super().__init__()
        self.into, self.one, self.two = nn.Linear(INPUTS, n), self.kind(n), self.kind(n)
        self.readout = nn.Linear(n, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.into(x))
        return self.readout(F.relu(self.two(F.relu(self.one(x)))))


ADAPTERS = {"roles": {"*.a.weight": "narrow"}, "keep": ("*.b.weight",)}


@architecture("Hu et al. 2022, arXiv:2106.09685", VECTORS, classify, **ADAPTERS)
class LoRA(Adapted):
    """Low-rank adaptation, whose output matrix starts at zero."""


@architecture("Liu et al. 2024, arXiv:2402.09353", VECTORS, classify, **ADAPTERS)
class DoRA(Adapted):
    """Low-rank adaptation of the directions."""

    kind = Directions


@architecture(
    "Houlsby et al. 2019, arXiv:1902.00751", VECTORS, classify, roles={"down.weight": "narrow"}, keep=("up.weight",)
)
class Adapter(nn.Module):
    """A frozen network with a bottleneck of constant size beside it, which starts at zero."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.into, self.one, self.two, self.readout = four(n)
        self.norm, self.down, self.up = nn.LayerNorm(n), nn.Linear(n, 8), nn.Linear(8, n)
        nn.init.zeros_(self.up.weight)
        for layer in (self.into, self.one, self.two):
            layer.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(F.relu(self.into(x)))
        x = x + self.up(F.gelu(self.down(self.norm(x))))
        return self.readout(F.relu(self.two(F.relu(x))))


@architecture("Lester et al. 2021, arXiv:2104.08691", TOKENS, classify, axes={"prompt": (None, 1)})
class PromptTuning(nn.Module):
    """Only a prompt of embeddings and the readout are trained."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.embedding, self.prompt, self.readout = (
            nn.Embedding(VOCABULARY, n),
            nn.Parameter(torch.empty(4, n)),
            nn.Linear(n, VOCABULARY),
        )
        self.norm, self.attention, self.network, self.last = nn.LayerNorm(n), Attention(n), network(n), nn.LayerNorm(n)
        for part in (self.embedding, self.attention, self.network):
            part.requires_grad_(False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = torch.cat([self.prompt.expand(len(tokens), -1, -1), self.embedding(tokens)], 1)
        x = x + self.attention(self.norm(x), causal=True)
        x = x + self.network(x)
        return self.readout(self.last(x[:, 4:]))


@architecture(
    "Santoro et al. 2016, arXiv:1605.06065; Graves et al. 2014, arXiv:1410.5401",
    (normal(4, 6, INPUTS), labels(4, 6)),
    classify,
    roles={"write.weight": "hidden"},
)
class MemoryNetwork(nn.Module):
    """A controller writes its states into a memory and reads by the cosine of keys, sharpened by a constant."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.cell, self.key, self.write, self.readout = (
            nn.GRUCell(INPUTS, n),
            nn.Linear(n, n),
            nn.Linear(n, n),
            nn.Linear(n, CLASSES),
        )
        self.mixed = nn.Linear(n, n)

    def forward(self, x: Tensor) -> Tensor:
        state, rows, outputs = x.new_zeros(len(x), self.key.in_features), [], []
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], state)
            rows.append(self.write(state))
            memory = torch.stack(rows, 1)
            scores = 4 * F.cosine_similarity(self.key(state)[:, None], memory, dim=-1)
            read = (scores.softmax(-1)[..., None] * memory).sum(1)
            outputs.append(self.readout(torch.tanh(self.mixed(state) + read)))
        return torch.stack(outputs, 1)
