"""Whole models that are built of attention: encoders, decoders, sets and slots."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sweep.attention import Attention, attend, network
from sweep.data import CLASSES, INPUTS, SETS, TOKENS, VOCABULARY, classify, labels, normal, own
from sweep.mup import architecture
from sweep.recurrent import HEAD, heads, joined, projections


@architecture("Loshchilov et al. 2024, arXiv:2410.01131", TOKENS, classify, keep=("alpha*", "scale*"))
class NGPT(nn.Module):
    """All on the unit sphere: states, and the rows of every matrix as the forward pass sees them."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n, self.embedding, self.readout = n, nn.Embedding(VOCABULARY, n), nn.Linear(n, VOCABULARY, bias=False)
        self.q, self.k, self.v, self.out, self.up, self.gate, self.down = projections(n, 7)
        self.alpha, self.alpha2 = (nn.Parameter(torch.full((n,), 0.2)) for _ in range(2))
        self.scale = nn.Parameter(torch.ones(HEAD))

    def forward(self, tokens: Tensor) -> Tensor:
        def unit(x: Tensor) -> Tensor:
            return F.normalize(x, dim=-1)

        x = unit(self.embedding(tokens))
        q, k = (unit(heads(F.linear(x, unit(layer.weight)))) * self.scale for layer in (self.q, self.k))
        y = F.scaled_dot_product_attention(q, k, heads(F.linear(x, unit(self.v.weight))), is_causal=True, scale=4.0)
        x = unit(x + self.alpha * (unit(F.linear(joined(y), unit(self.out.weight.T).T)) - x))
        u, g = (F.linear(x, unit(layer.weight)) * self.n**0.5 for layer in (self.up, self.gate))
        x = unit(x + self.alpha2 * (unit(F.linear(u * F.silu(g), unit(self.down.weight.T).T)) - x))
        return self.readout(x * self.n**0.5)


@architecture(
    "Zhu et al. 2024, arXiv:2409.19606",
    TOKENS,
    classify,
    axes={"static*": (None, 1)},
    roles={"static*": "constant", "dynamic*": "narrow"},
    keep=("static*", "dynamic*"),
)
class HyperConnections(nn.Module):
    """Four streams, mixed by weights of which a part depends on the streams, and starts at zero."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.embedding, self.readout = nn.Embedding(VOCABULARY, n), nn.Linear(n, VOCABULARY, bias=False)
        self.layers = nn.ModuleList([Attention(n), network(n)])
        self.norm, self.last = nn.LayerNorm(n), nn.LayerNorm(n)
        self.static = nn.ParameterList(torch.cat([torch.eye(4)[i][:, None], torch.eye(4)], 1) for i in range(2))
        self.dynamic = nn.ModuleList(nn.Linear(n, 6, bias=False) for _ in range(2))
        for layer in self.dynamic:
            nn.init.zeros_(layer.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        streams = self.embedding(tokens)[..., None, :].repeat(1, 1, 4, 1)
        for layer, static, dynamic in zip(self.layers, self.static, self.dynamic, strict=True):
            change = torch.tanh(dynamic(self.norm(streams)))
            mix = static + 0.1 * change[..., :5]
            into, *kept = (mix.mT @ streams).unbind(-2)
            streams = torch.stack(kept, -2) + (1 + 0.1 * change[..., 5:]) * layer(into)[..., None, :]
        return self.readout(self.last(streams.sum(-2)))


@architecture("Jaegle et al. 2021, arXiv:2103.03206", SETS, classify, axes={"latents": (None, 1)})
class Perceiver(nn.Module):
    """Latents, which are learnt, read the input again and again with the same weights."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.empty(4, n))
        self.cross, self.norm, self.inputs = Attention(n, INPUTS), nn.LayerNorm(n), nn.LayerNorm(INPUTS)
        self.inner, self.network, self.norm2 = Attention(n), network(n), nn.LayerNorm(n)
        self.last, self.readout = nn.LayerNorm(n), nn.Linear(n, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        z = self.latents.expand(len(x), -1, -1)
        for _ in range(2):
            z = z + self.cross(self.norm(z), self.inputs(x))
            z = z + self.inner(self.norm2(z))
            z = z + self.network(z)
        return self.readout(self.last(z).mean(1))


@architecture(
    "Locatello et al. 2020, arXiv:2006.15055",
    (SETS[0], normal(4, 3, 16), SETS[0]),
    own,
    axes={"mean": (None, 1), "deviation": (None, 1)},
)
class SlotAttention(nn.Module):
    """Slots compete for the elements; a GRU updates them; they are decoded and summed to the input's mean."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.encoder, self.norm, self.slots = nn.Linear(INPUTS, n), nn.LayerNorm(n), nn.LayerNorm(n)
        self.q, self.k, self.v = projections(n, 3)
        self.noise, self.mean = nn.Linear(16, n, bias=False), nn.Parameter(torch.empty(1, n))
        self.cell, self.network = nn.GRUCell(n, n), network(n)
        self.decoder = nn.Sequential(nn.Linear(n, n), nn.ReLU(), nn.Linear(n, INPUTS + 1))
        self.size = n

    def forward(self, x: Tensor, noise: Tensor, target: Tensor) -> Tensor:
        x = self.norm(self.encoder(x))
        slots, k, v = self.mean + self.noise(noise), self.k(x), self.v(x)
        for _ in range(2):
            scores = self.q(self.slots(slots)) @ k.mT / self.size
            weights = scores.softmax(1) + 1e-8
            updates = weights / weights.sum(-1, keepdim=True) @ v
            slots = self.cell(updates.flatten(0, 1), slots.flatten(0, 1)).view_as(slots)
            slots = slots + self.network(slots)
        values, mask = self.decoder(slots).split([INPUTS, 1], -1)
        return F.mse_loss((values * mask.softmax(1)).sum(1), target.mean(1))


@architecture("Gulati et al. 2020, arXiv:2005.08100", (normal(2, 8, INPUTS), labels(2, 8)), classify)
class Conformer(nn.Module):
    """Half a network, attention, a gated depthwise convolution, half a network."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.into, self.first, self.second = nn.Linear(INPUTS, n), network(n), network(n)
        self.attention, self.norm, self.norm2, self.norm3 = Attention(n), *(nn.LayerNorm(n) for _ in range(3))
        self.gated, self.depth, self.point = (
            nn.Conv1d(n, 2 * n, 1),
            nn.Conv1d(n, n, 3, padding=1, groups=n),
            nn.Conv1d(n, n, 1),
        )
        self.batch, self.last, self.readout = nn.GroupNorm(1, n), nn.LayerNorm(n), nn.Linear(n, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        x = x + 0.5 * self.first(x)
        x = x + self.attention(self.norm(x))
        y = self.depth(F.glu(self.gated(self.norm2(x).mT), 1))
        x = x + self.point(F.silu(self.batch(y))).mT
        return self.readout(self.last(x + 0.5 * self.second(x)))


@architecture(
    "Raffel et al. 2020, arXiv:1910.10683", (TOKENS[0], *TOKENS), own, axes={"bias": (None, 0)}, keep=("bias",)
)
class EncoderDecoder(nn.Module):
    """T5: an encoder, a decoder with cross attention, one table of relative positions per head."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.embedding, self.readout = nn.Embedding(VOCABULARY, n), nn.Linear(n, VOCABULARY, bias=False)
        self.q, self.k, self.v, self.out = projections(n, 4)
        self.bias = nn.Parameter(torch.zeros(n // HEAD, 15))
        self.causal, self.cross, self.network, self.network2 = Attention(n), Attention(n), network(n), network(n)
        self.norms = nn.ModuleList(nn.RMSNorm(n) for _ in range(5))

    def forward(self, source: Tensor, tokens: Tensor, target: Tensor) -> Tensor:
        x, t = self.embedding(source), torch.arange(source.shape[1])
        q, k, v = (heads(layer(self.norms[0](x))) for layer in (self.q, self.k, self.v))
        bias = self.bias[:, t[:, None] - t + 7]
        x = x + self.out(joined(F.scaled_dot_product_attention(q, k, v, attn_mask=bias)))
        x = self.norms[1](x + self.network(x))
        y = self.embedding(tokens)
        y = y + self.causal(self.norms[2](y), causal=True)
        y = y + self.cross(self.norms[3](y), x)
        y = self.norms[4](y + self.network2(y))
        return F.cross_entropy(self.readout(y).flatten(0, 1), target.flatten())


@architecture("Lee et al. 2019, arXiv:1810.00825", SETS, classify, axes={"points": (None, 1), "seed": (None, 1)})
class SetTransformer(nn.Module):
    """Induced points attend to the set and the set to them; a seed pools."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.into, self.points, self.seed = (
            nn.Linear(INPUTS, n),
            nn.Parameter(torch.empty(3, n)),
            nn.Parameter(torch.empty(1, n)),
        )
        self.up, self.back, self.pool = Attention(n), Attention(n), Attention(n)
        self.networks, self.readout = nn.ModuleList(network(n) for _ in range(3)), nn.Linear(n, CLASSES)
        self.last = nn.LayerNorm(n)

    def block(self, index: int, attention: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        x = x + attention(x, y)
        return x + self.networks[index](x)

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        induced = self.block(0, self.up, self.points.expand(len(x), -1, -1), x)
        x = self.block(1, self.back, x, induced)
        return self.readout(self.last(self.block(2, self.pool, self.seed.expand(len(x), -1, -1), x))[:, 0])


@architecture("Dehghani et al. 2019, arXiv:1807.03819", TOKENS, classify, roles={"halt.weight": "narrow"})
class UniversalTransformer(nn.Module):
    """One block applied three times, with an embedding of the time; each token halts by a probability."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.embedding, self.times, self.readout = (
            nn.Embedding(VOCABULARY, n),
            nn.Embedding(3, n),
            nn.Linear(n, VOCABULARY),
        )
        self.attention, self.network, self.norm, self.last = Attention(n), network(n), nn.LayerNorm(n), nn.LayerNorm(n)
        self.halt = nn.Linear(n, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        x, total, left = self.embedding(tokens), 0, 1
        for time in self.times.weight:
            x = x + time
            x = x + self.attention(self.norm(x), causal=True)
            x = x + self.network(x)
            halting = torch.sigmoid(self.halt(self.last(x)))
            total, left = total + left * halting * x, left * (1 - halting)
        return self.readout(self.last(total + left * x))


@architecture("Ramsauer et al. 2021, arXiv:2008.02217", SETS, classify, axes={"patterns": (None, 1)})
class Hopfield(nn.Module):
    """Continuous Hopfield pooling: a state is replaced by what it retrieves of the stored patterns, twice."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.into, self.patterns = nn.Linear(INPUTS, n), nn.Parameter(torch.empty(12, n))
        self.q, self.k, self.v = projections(n, 3)
        self.norm, self.last, self.readout = nn.LayerNorm(n), nn.LayerNorm(n), nn.Linear(n, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x, stored = self.norm(torch.relu(self.into(x))), self.patterns.expand(len(x), -1, -1)
        state, keys = self.q(x), self.k(stored)
        state = attend(state, keys, keys)
        x = x + attend(state, keys, self.v(stored))
        return self.readout(self.last(x).mean(1))
