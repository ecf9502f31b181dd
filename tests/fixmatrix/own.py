"""Models of torch alone, in torch's default initialisation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from sweep import data
from sweep.catalogue import ARCHITECTURES
from sweep.mup import matching
from torch import Tensor, nn
from zoo import Reader

from fixmatrix.entries import Model

HEAD = 16


def vectors(seed: int) -> tuple[Tensor, Tensor]:
    """32 examples of 16 numbers, and their classes."""
    return data.normal(32, data.INPUTS, seed=seed), data.labels(32, seed=seed + 1)


def sequences(seed: int) -> tuple[Tensor, Tensor]:
    """(4, 10, 16) sequences, and their classes."""
    return data.normal(4, 10, data.INPUTS, seed=seed), data.labels(4, seed=seed + 1)


def images(seed: int) -> tuple[Tensor, Tensor]:
    """4 images of 3 x 8 x 8, and their classes."""
    return data.normal(4, 3, 8, 8, seed=seed), data.labels(4, seed=seed + 1)


def texts(seed: int) -> tuple[Tensor, Tensor]:
    """4 texts of 8 tokens, and the tokens that follow."""
    shape = (4, 8)
    return (
        data.labels(*shape, of=data.VOCABULARY, seed=seed),
        data.labels(*shape, of=data.VOCABULARY, seed=seed + 1),
    )


def diffusion(seed: int) -> tuple[Tensor, ...]:
    """Images, times and noise."""
    return data.normal(2, 3, 8, 8, seed=seed), torch.tensor([0.2, 0.7]), data.normal(2, 3, 8, 8, seed=seed + 1)


def patches(seed: int) -> tuple[Tensor, ...]:
    """(2, 8, 12) patches, times, classes and noise."""
    noise = data.normal(2, 8, 12, seed=seed + 1)
    return data.normal(2, 8, 12, seed=seed), torch.tensor([0.2, 0.7]), data.labels(2, seed=seed + 2), noise


class MLP(nn.Module):
    """A residual network without norms."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.input, self.readout = nn.Linear(data.INPUTS, n), nn.Linear(n, data.CLASSES)
        self.hidden = nn.ModuleList(nn.Linear(n, n) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.input(x))
        for layer in self.hidden:
            x = x + F.gelu(layer(x))
        return self.readout(x)


class ConvNet(nn.Module):
    """Convolutions with batch norms; half of the width counts channels."""

    def __init__(self, n: int) -> None:
        super().__init__()
        c = n // 2
        self.layers = nn.Sequential(
            *(nn.Conv2d(3, c, 3, padding=1, bias=False), nn.BatchNorm2d(c), nn.ReLU()),
            *(nn.Conv2d(c, c, 3, padding=1, bias=False), nn.BatchNorm2d(c), nn.ReLU()),
            *(nn.Conv2d(c, 2 * c, 3, padding=1, stride=2, bias=False), nn.BatchNorm2d(2 * c), nn.ReLU()),
        )
        self.readout = nn.Linear(2 * c, data.CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.layers(x).mean((2, 3)))


class LoRA(nn.Module):
    """A frozen layer with a trained update of rank 16."""

    def __init__(self, n: int, rank: int = 16) -> None:
        super().__init__()
        self.base, self.a, self.b = nn.Linear(n, n), nn.Linear(n, rank, bias=False), nn.Linear(rank, n, bias=False)
        self.base.requires_grad_(False)
        nn.init.zeros_(self.b.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 2 * self.b(self.a(x))


class Adapted(nn.Module):
    """A network whose hidden layers are `LoRA`."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.input, self.one, self.two, self.readout = (
            nn.Linear(data.INPUTS, n),
            LoRA(n),
            LoRA(n),
            nn.Linear(n, data.CLASSES),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(F.gelu(self.two(F.gelu(self.one(F.gelu(self.input(x)))))))


class Attention(nn.Module):
    """Causal self-attention, with its projections fused or apart, and with one head of keys and values or all."""

    def __init__(self, n: int, heads: int, fused: bool, shared: bool) -> None:
        super().__init__()
        self.sizes = [n, n // heads, n // heads] if shared else [n, n, n]
        total = sum(self.sizes)
        parts = [total] if fused else self.sizes
        self.inputs, self.output, self.size = nn.ModuleList(nn.Linear(n, k) for k in parts), nn.Linear(n, n), n // heads

    def forward(self, x: Tensor) -> Tensor:
        joined = [layer(x) for layer in self.inputs]
        q, k, v = joined[0].split(self.sizes, -1) if len(joined) == 1 else joined
        q, k, v = (t.unflatten(-1, (-1, self.size)).transpose(1, 2) for t in (q, k, v))
        y = F.scaled_dot_product_attention(q, k.expand_as(q), v.expand_as(q), is_causal=True)
        return self.output(y.transpose(1, 2).flatten(2))


class GPT(nn.Module):
    """A decoder as nanoGPT has it, but for its initialisation, which is torch's.

    Args:
        n: the width.
        heads: how many, or None for heads of `HEAD`.
        fused: whether one matrix gives queries, keys and values.
        shared: whether all queries share one head of keys and values.
        tied: whether the embedding reads out; "functional" does so without a module.
    """

    def __init__(
        self, n: int, heads: int | None = None, fused: bool = True, shared: bool = False, tied: str = ""
    ) -> None:
        super().__init__()
        heads = heads or n // HEAD
        self.wte, self.wpe = nn.Embedding(data.VOCABULARY, n), nn.Embedding(8, n)
        self.attentions = nn.ModuleList(Attention(n, heads, fused, shared) for _ in range(2))
        self.networks = nn.ModuleList(
            nn.Sequential(nn.Linear(n, 4 * n), nn.GELU(), nn.Linear(4 * n, n)) for _ in range(2)
        )
        self.norms, self.last = nn.ModuleList(nn.LayerNorm(n) for _ in range(4)), nn.LayerNorm(n)
        self.head = nn.Identity() if tied == "functional" else nn.Linear(n, data.VOCABULARY, bias=False)
        if tied == "module":
            self.head.weight = self.wte.weight
        if tied:  # a standard deviation of 1 is too much for logits
            nn.init.normal_(self.wte.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.wte(tokens) + self.wpe.weight[: tokens.shape[1]]
        for i, (attention, network) in enumerate(zip(self.attentions, self.networks, strict=True)):
            x = x + attention(self.norms[2 * i](x))
            x = x + network(self.norms[2 * i + 1](x))
        x = self.last(x)
        return F.linear(x, self.wte.weight) if isinstance(self.head, nn.Identity) else self.head(x)


def plain(name: str, n: int) -> nn.Module:
    """An architecture of the sweep in torch's default initialisation; tensors of its own are drawn as linear layers."""
    architecture = ARCHITECTURES[name]
    model = architecture.make(n)
    for path, parameter in model.named_parameters():
        axes = matching(path, architecture.axes)
        if axes is not None and not matching(path, dict.fromkeys(architecture.keep, True)):
            deviation = 0.02 if axes[0] is None else parameter.shape[axes[0]] ** -0.5
            nn.init.normal_(parameter, std=deviation)
    return model


def swept(name: str, batch: Callable[[int], Any], loss: Any, *optimizers: str) -> Model:
    """A model of the sweep."""
    return Model(partial(plain, name), batch, loss, optimizers)


def reader(body: str, heads: int | None, n: int) -> nn.Module:
    """A layer of torch between an embedding of the input and a readout."""
    return Reader(body, n, heads or n // HEAD)


ALL = ("adam", "momentum", "muon")
PAIR = ("adam", "momentum")
MODELS: dict[str, Model] = {
    "mlp": Model(MLP, vectors, F.cross_entropy, ALL),
    "conv batch norm": Model(ConvNet, images, F.cross_entropy, PAIR),
    "lora": Model(Adapted, vectors, F.cross_entropy, PAIR),
    "gpt fused": Model(GPT, texts, data.classify, PAIR),
    "gpt fused heads=4": Model(partial(GPT, heads=4), texts, data.classify, ALL),
    "gpt tied": Model(partial(GPT, fused=False, tied="module"), texts, data.classify, ALL),
    "gpt tied functional": Model(partial(GPT, fused=False, tied="functional"), texts, data.classify, ("adam",)),
    "gpt mqa": Model(partial(GPT, fused=False, shared=True), texts, data.classify, PAIR),
    "gpt mqa fused": Model(partial(GPT, shared=True), texts, data.classify, ("adam",)),
    "torch encoder": Model(partial(reader, "encoder", None), sequences, F.cross_entropy, ALL),
    "torch encoder heads=4": Model(partial(reader, "encoder", 4), sequences, F.cross_entropy, ("adam",)),
    "torch LSTM": Model(partial(reader, "LSTM", None), sequences, F.cross_entropy, PAIR),
    "torch GRU": Model(partial(reader, "GRU", None), sequences, F.cross_entropy, ("adam",)),
    "moe switch": swept("Switch", texts, data.classify, *ALL)._replace(slower=0.05),
    "moe stacked": swept("TopTwo", texts, data.classify, "adam")._replace(slower=0.05),
    "mamba": swept("Mamba", texts, data.classify, "adam"),
    "unet": swept("DiffusionUNet", diffusion, data.own, *PAIR),
    "dit": swept("DiT", patches, data.own, *ALL),
    "convnext": swept("ConvNeXt", images, data.classify, *PAIR),
    "efficientnet": swept("EfficientNet", images, data.classify, *PAIR),
}
