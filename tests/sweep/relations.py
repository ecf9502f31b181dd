"""Graphs, tables and recommenders, and sets."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sweep.attention import attend
from sweep.data import CLASSES, INPUTS, SETS, classify, labels, normal, own, regress
from sweep.mup import architecture

EDGES = (normal(8, 8, seed=4) + normal(8, 8, seed=4).T > 0.3).float() + torch.eye(8)
NODES = normal(8, INPUTS), labels(8)
CLICKS = labels(8, 3, of=6), normal(8, 4), (normal(8, seed=6) > 0).float()


@architecture("Kipf & Welling 2017, arXiv:1609.02907", NODES, classify, optimizer="sgd", lr=0.05)
class GCN(nn.Module):
    """Two graph convolutions and a readout of every node."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.one, self.two, self.readout = nn.Linear(INPUTS, n), nn.Linear(n, n), nn.Linear(n, CLASSES)
        degree = EDGES.sum(1).rsqrt()
        self.register_buffer("graph", degree[:, None] * EDGES * degree)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.graph @ self.one(x))
        return self.readout(F.relu(self.graph @ self.two(x)))


@architecture(
    "Velickovic et al. 2018, arXiv:1710.10903",
    NODES,
    classify,
    axes={"source": (0, 1), "target": (0, 1)},
    roles={"source": "narrow", "target": "narrow"},
)
class GAT(nn.Module):
    """Four heads that grow; each scores an edge by a vector for its source and one for its target."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.into, self.hidden, self.readout = nn.Linear(INPUTS, n), nn.Linear(n, n), nn.Linear(n, CLASSES)
        self.source, self.target = (nn.Parameter(torch.empty(n // 4, 4)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        h = self.hidden(F.elu(self.into(x))).unflatten(-1, (4, -1))
        scores = [torch.einsum("ihd,dh->hi", h, vector) for vector in (self.source, self.target)]
        scores = F.leaky_relu(scores[0][:, :, None] + scores[1][:, None, :], 0.2)
        weights = scores.masked_fill(EDGES == 0, -1e9).softmax(-1)
        return self.readout(F.elu(torch.einsum("hij,jhd->ihd", weights, h).flatten(1)))


@architecture(
    "Xu et al. 2019, arXiv:1810.00826",
    (torch.stack([normal(8, INPUTS, seed=s) for s in range(4)]), labels(4)),
    classify,
    keep=("eps*",),
)
class GIN(nn.Module):
    """Sums over neighbours, a network with batch norms, a sum over nodes that all layers read out."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.networks = nn.ModuleList(
            nn.Sequential(nn.Linear(i, n), nn.LayerNorm(n), nn.ReLU(), nn.Linear(n, n), nn.ReLU()) for i in (INPUTS, n)
        )
        self.eps, self.readouts = nn.Parameter(torch.zeros(2)), nn.ModuleList(nn.Linear(n, CLASSES) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        total = 0
        for network, readout, eps in zip(self.networks, self.readouts, self.eps, strict=True):
            x = network((1 + eps) * x + (EDGES @ x) / 4)
            total = total + readout(x.mean(1))
        return total


@architecture("Gilmer et al. 2017, arXiv:1704.01212", (NODES[0], normal(8, 1)), regress)
class MessagePassing(nn.Module):
    """Messages from both ends of an edge by index_add, a GRU for the nodes, edges by index."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.into, self.message, self.cell = nn.Linear(INPUTS, n), nn.Linear(2 * n, n), nn.GRUCell(n, n)
        self.length = nn.Linear(1, n, bias=False)
        self.readout = nn.Linear(n, 1)

    def forward(self, x: Tensor) -> Tensor:
        source, target = EDGES.nonzero().T
        x = torch.tanh(self.into(x))
        for _ in range(2):
            length = (source - target).abs()[:, None].float() / 8
            messages = F.relu(self.message(torch.cat([x[source], x[target]], -1)) + self.length(length))
            x = self.cell(torch.zeros_like(x).index_add(0, target, messages) / 4, x)
        return self.readout(x)


@architecture("Satorras et al. 2021, arXiv:2102.09844", (NODES[0], normal(8, 3), normal(8, 3, seed=2)), own)
class EquivariantGraph(nn.Module):
    """E(n)-equivariant: a network of distances moves the positions."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.into, self.edge, self.node = nn.Linear(INPUTS, n), nn.Linear(2 * n, n), nn.Linear(2 * n, n)
        self.away, self.away3 = (nn.Linear(1, n, bias=False) for _ in range(2))
        self.edge2, self.edge3, self.readout = nn.Linear(n, n), nn.Linear(2 * n, n), nn.Linear(n, 1, bias=False)

    def forward(self, x: Tensor, places: Tensor, target: Tensor) -> Tensor:
        h, away = self.into(x), places[:, None] - places
        distance = away.square().sum(-1, keepdim=True) / 6
        pairs = torch.cat([h[:, None].expand(8, 8, -1), h.expand(8, 8, -1)], -1)
        messages = F.silu(self.edge2(F.silu(self.edge(pairs) + self.away(distance))))
        h = h + self.node(torch.cat([h, messages.mean(1)], -1))
        pairs = torch.cat([h[:, None].expand(8, 8, -1), h.expand(8, 8, -1)], -1)
        moved = places + (away * self.readout(F.silu(self.edge3(pairs) + self.away3(distance)))).mean(1)
        return F.mse_loss(moved, target)


@architecture("Naumov et al. 2019, arXiv:1906.00091", CLICKS, own, roles={"bottom.2.weight": "narrow"})
class DLRM(nn.Module):
    """Tables of 8 numbers; the networks below and on top grow; between them stand the products of the embeddings."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.EmbeddingBag(6, 8) for _ in range(3))
        self.bottom = nn.Sequential(nn.Linear(4, n), nn.ReLU(), nn.Linear(n, 8))
        self.top, self.top2, self.readout = nn.Linear(8 + 6, n), nn.Linear(n, n), nn.Linear(n, 1)

    def forward(self, kinds: Tensor, numbers: Tensor, clicks: Tensor) -> Tensor:
        dense = self.bottom(numbers)
        rows = torch.stack([dense, *(table(kinds[:, i : i + 1]) for i, table in enumerate(self.tables))], 1)
        i, j = torch.triu_indices(4, 4, 1)
        products = (rows @ rows.mT / 8)[:, i, j]
        h = F.relu(self.top2(F.relu(self.top(torch.cat([dense, products], 1)))))
        return F.binary_cross_entropy_with_logits(self.readout(h)[:, 0], clicks)


@architecture("Gorishniy et al. 2021, arXiv:2106.11959", CLICKS, own, axes={"scale": (None, 1), "token": (None, 1)})
class TabularTransformer(nn.Module):
    """FT-Transformer: each number is multiplied by a vector of its own, each class has its embedding."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.scale, self.shift, self.token = (
            nn.Parameter(torch.empty(4, n)),
            nn.Embedding(4, n),
            nn.Parameter(torch.empty(1, n)),
        )
        self.tables, self.qkv, self.out = (
            nn.ModuleList(nn.Embedding(6, n) for _ in range(3)),
            nn.Linear(n, 3 * n),
            nn.Linear(n, n),
        )
        self.norm, self.last, self.up, self.down = (
            nn.LayerNorm(n),
            nn.LayerNorm(n),
            nn.Linear(n, 4 * n),
            nn.Linear(2 * n, n),
        )
        self.readout = nn.Linear(n, 1)

    def forward(self, kinds: Tensor, numbers: Tensor, clicks: Tensor) -> Tensor:
        x = numbers[..., None] * self.scale + self.shift.weight
        x = torch.cat(
            [self.token.expand(len(x), -1, -1), x, *(t(kinds[:, i : i + 1]) for i, t in enumerate(self.tables))], 1
        )
        x = x + self.out(attend(*self.qkv(self.norm(x)).chunk(3, -1)))
        x = x + self.down(F.glu(self.up(self.last(x)), -1))
        return F.binary_cross_entropy_with_logits(self.readout(x[:, 0])[:, 0], clicks)


@architecture("He et al. 2017, arXiv:1708.05031", (CLICKS[0], CLICKS[2]), own)
class NeuralCollaborativeFiltering(nn.Module):
    """A product of user and item beside a network of both."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.user, self.item, self.user2, self.item2 = (nn.Embedding(6, n) for _ in range(4))
        self.one, self.two, self.readout = nn.Linear(2 * n, n), nn.Linear(n, n // 2), nn.Linear(n + n // 2, 1)

    def forward(self, kinds: Tensor, clicks: Tensor) -> Tensor:
        user, item = kinds[:, 0], kinds[:, 1]
        h = F.relu(self.two(F.relu(self.one(torch.cat([self.user2(user), self.item2(item)], -1)))))
        score = self.readout(torch.cat([self.user(user) * self.item(item), h], -1))[:, 0]
        return F.binary_cross_entropy_with_logits(score, clicks)


@architecture("Wang et al. 2021, arXiv:2008.13535", CLICKS, own)
class CrossNetwork(nn.Module):
    """DCN-V2: x0 times (W x + b), twice, beside x."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.tables, self.dense = nn.ModuleList(nn.Embedding(6, n // 4) for _ in range(3)), nn.Linear(4, n // 4)
        self.cross, self.readout = nn.ModuleList(nn.Linear(n, n) for _ in range(2)), nn.Linear(n, 1)

    def forward(self, kinds: Tensor, numbers: Tensor, clicks: Tensor) -> Tensor:
        x = first = torch.cat([self.dense(numbers), *(t(kinds[:, i]) for i, t in enumerate(self.tables))], -1)
        for layer in self.cross:
            x = first * layer(x) + x
        return F.binary_cross_entropy_with_logits(self.readout(x)[:, 0], clicks)


@architecture("Zaheer et al. 2017, arXiv:1703.06114", SETS, classify)
class DeepSets(nn.Module):
    """A network per element, the mean and the largest, a network of the set."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.one, self.two, self.three, self.readout = (
            nn.Linear(INPUTS, n),
            nn.Linear(n, n),
            nn.Linear(2 * n, n),
            nn.Linear(n, CLASSES),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.two(torch.tanh(self.one(x)))
        return self.readout(F.relu(self.three(torch.cat([x.mean(1), x.amax(1)], -1))))
