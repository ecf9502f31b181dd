"""Fused matrices in other orders, attention with queries and keys of other sizes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faultbench.families import INPUTS, Family, draw, labelled_batch, linear, tag, vectors
from faultbench.faults import Change, act, attention_scale, init, lr
from faultbench.foreign.kit import Kind, Net, trained

# --- g: fused matrices in other orders ------------------------------------------------------------------------------


class FusedAttention(nn.Module):
    """Self-attention of four heads whose queries, keys and values come from one parameter, in some order.

    "per head": rows (head, q k v, d); "last": rows (head, d, q k v); "every third": rows q k v q k v ..., taken by
    [::3]; "stacked": (3, n, n), by einsum.
    """

    ROWS = {
        "per head": lambda w, d: w.view(4, 3, d, -1).transpose(0, 1),
        "last": lambda w, d: w.view(4, d, 3, -1).movedim(2, 0),
        "every third": lambda w, d: w.view(4 * d, 3, -1).transpose(0, 1),
        "stacked": lambda w, d: w,
    }
    """(rows, n) -> a view whose first axis tells queries, keys and values apart."""

    def __init__(self, width: int, order: str) -> None:
        super().__init__()
        self.order, self.size = order, width // 4
        shape = (3, width, width) if order == "stacked" else (3 * width, width)
        self.qkv, self.output = draw(torch.empty(shape), "hidden", width), linear(width, width, "hidden")

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x, x.shape[-1:])
        query, key, value = self._split(x)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=4 / self.size)
        return self.output(mixed.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> tuple[Tensor, ...]:
        batch, time, _ = x.shape
        if self.order == "stacked":
            found = torch.einsum("btn,pmn->pbtm", x, self.qkv).view(3, batch, time, 4, self.size).transpose(2, 3)
            return tuple(found)
        projected = F.linear(x, self.qkv)
        if self.order == "per head":
            parts = projected.view(batch, time, 4, 3 * self.size).chunk(3, -1)
        elif self.order == "last":
            parts = projected.view(batch, time, 4, self.size, 3).unbind(-1)
        else:
            parts = [projected[..., i::3].unflatten(-1, (4, -1)) for i in range(3)]
        return tuple(part.transpose(1, 2) for part in parts)


class InterleavedGate(nn.Module):
    """silu(gate) up, whose rows alternate in one matrix (gpt-oss), or are stacked and then split."""

    def __init__(self, width: int, *, alternate: bool = True) -> None:
        super().__init__()
        self.gate_up, self.down = (
            draw(torch.empty(4 * width, width), "hidden", width),
            linear(2 * width, width, "hidden"),
        )
        self.alternate = alternate

    def rows(self, weight: Tensor) -> Tensor:
        """(4 n, n) -> (gate or up, 2 n, n)"""
        return (
            weight.view(-1, 2, weight.shape[-1]).transpose(0, 1)
            if self.alternate
            else weight.view(2, -1, weight.shape[-1])
        )

    def forward(self, x: Tensor) -> Tensor:
        both = F.linear(F.layer_norm(x, x.shape[-1:]), self.gate_up)
        gate, up = (both[..., ::2], both[..., 1::2]) if self.alternate else both.unflatten(-1, (2, -1)).unbind(-2)
        return self.down(F.silu(gate) * up)


def rows_init(power: float, name: str, index: int, rows: Callable[[Tensor], Tensor]) -> Change:
    """The initial values of one block of rows, wherever they stand, times growth ** power."""

    def apply(setup: Any) -> None:
        with torch.no_grad():
            rows(setup.parameters[name])[index].mul_(setup.growth**power)

    return Change(apply, lambda family: {f"{name}[{index}]": ("init", -power)})


def _fused() -> None:
    kind = Kind("g", "fused matrices in other orders")
    made: dict[str, Family] = {}
    for order, recipe in (("per head", "adam"), ("last", "adamw"), ("every third", "adam"), ("stacked", "sgd")):
        made[order] = kind.net(
            f"qkv {order}", lambda n, order=order: FusedAttention(n, order), recipe, times=6, residual=True
        )
    gate = kind.net("alternating gate and up", InterleavedGate, residual=True)
    halves = kind.net("stacked gate and up", lambda n: InterleavedGate(n, alternate=False), "sgd", residual=True)
    for family in (*made.values(), gate, halves):
        kind.healthy(family)
    for order, power, index in (("per head", -0.5, 2), ("last", 0.5, 2), ("every third", 0.5, 0), ("stacked", -0.5, 2)):
        rows = lambda w, order=order: FusedAttention.ROWS[order](w, w.shape[-1] // 4)  # noqa: E731
        change = rows_init(power, "middle.qkv", index, rows)
        kind.planted(made[order], f"block {index} init", "one of queries, keys and values of the wrong size", change)
    kind.planted(made["per head"], "lr", "base rate of a fused matrix", lr(1, "middle.qkv"))
    kind.planted(made["every third"], "init", "a fused matrix of constant size", init(0.5, "middle.qkv"))
    kind.planted(made["stacked"], "lr 1/n", "Adam's rule under SGD", lr(-1, "middle.qkv"))
    up = rows_init(0.5, "middle.gate_up", 1, lambda w: w.view(-1, 2, w.shape[-1]).transpose(0, 1))
    kind.planted(gate, "up init", "the second of alternating rows of constant size", up)
    kind.planted(gate, "lr", "base rate of alternating rows", lr(1, "middle.gate_up"))
    first = rows_init(-0.5, "middle.gate_up", 0, lambda w: w.view(2, -1, w.shape[-1]))
    kind.planted(halves, "gate init", "the first of stacked halves too small", first)
    kind.planted(halves, "lr 1/n", "Adam's rule under SGD", lr(-1, "middle.gate_up"))


# --- h: attention of queries and keys of other sizes ----------------------------------------------------------------


class OtherAttention(nn.Module):
    """Self-attention with a norm on queries and keys, "rms" (coordinates of 1), "length" (of d ** -1/2) or "none"."""

    def __init__(self, width: int, *, heads: int = 4, norm: str = "rms", learned: bool = False, eager: bool = False):
        super().__init__()
        self.query, self.key, self.value, self.output = (linear(width, width, "hidden") for _ in range(4))
        self.heads, self.norm, self.eager = heads, norm, eager
        self.temperature = tag(nn.Parameter(torch.zeros(heads, 1, 1)), "constant") if learned else None
        self.scale = 4.0 if norm == "length" else 4 * heads / width

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x, x.shape[-1:])
        query, key, value = (
            part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        if self.norm == "rms":
            query, key = (F.rms_norm(part, part.shape[-1:]) for part in (query, key))
        elif self.norm == "length":
            query, key = F.normalize(query, dim=-1), F.normalize(key, dim=-1)
        if self.temperature is not None:
            query = query * self.temperature.exp()
        if self.eager:
            mixed = (query @ key.transpose(-2, -1) * self.scale).softmax(-1) @ value
        else:
            mixed = F.scaled_dot_product_attention(query, key, value, scale=self.scale)
        return self.output(mixed.transpose(1, 2).flatten(2))


class Softcapped(nn.Module):
    """Cross-attention of x on four trained queries, whose logits go through 5 tanh(logits / 5), without a softmax."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.latent = draw(torch.empty(4, width), "vector", 1)
        self.query, self.key, self.value = (linear(width, width, "hidden") for _ in range(3))
        self.scale = 4.0 / width

    def forward(self, x: Tensor) -> Tensor:
        logits = self.query(self.latent) @ self.key(F.layer_norm(x, x.shape[-1:])).transpose(-2, -1) * self.scale
        return (5 * torch.tanh(logits / 5)).sigmoid() @ self.value(F.layer_norm(x, x.shape[-1:]))


class GainedNorm(nn.Module):
    """Self-attention with an RMSNorm with gains on queries and keys, whose scale stands in the queries' gains."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.output = linear(width, 3 * width, "hidden"), linear(width, width, "hidden")
        self.query_norm, self.key_norm = (vectors(nn.RMSNorm(width // 4)) for _ in range(2))
        self.scale = 16 / width

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(F.layer_norm(x, x.shape[-1:])).unflatten(-1, (3, 4, -1)).unbind(-3)
        query, key, value = (part.transpose(1, 2) for part in parts)
        logits = torch.einsum("bhqd,bhkd->bhqk", self.query_norm(query) * self.scale, self.key_norm(key))
        return self.output((logits.softmax(-1) @ value).transpose(1, 2).flatten(2))


def heads_of(width: int) -> int:
    """4, 6 and 8 heads at 64, 128 and 256: as the root of the width."""
    return round(math.sqrt(width) / 2)


def both_grow(width: int) -> int:
    """The width nearest to the one asked for of which the heads and their size grow as its root: 64, 138, 256."""
    return heads_of(width) * round(2 * math.sqrt(width))


def _attentions() -> None:
    kind = Kind("h", "attention of queries and keys of other sizes")

    def attended(name: str, recipe: str = "adam", **options: Any) -> Family:
        return kind.net(name, lambda n: OtherAttention(n, **options), recipe, times=6, residual=True)

    rms, rms_eager = attended("QK norm"), attended("QK norm, eager", "adamw", eager=True)
    cosine, cosine_sgd = attended("cosine", norm="length"), attended("cosine, eager", norm="length", eager=True)
    learned = attended("cosine, learned temperature", "adamw", norm="length", learned=True)

    def build(width: int) -> Any:
        n = both_grow(width)
        return trained(
            Net(n, lambda n: OtherAttention(n, heads=heads_of(width), norm="none"), residual=True), n, "adam"
        )

    roots = Family("h heads and head size grow, adam", build, labelled_batch(8, 6, INPUTS), F.cross_entropy)
    capped = kind.net("softcapped, cross", Softcapped, times=6)
    gained = kind.net("gained QK norm", GainedNorm, times=6, residual=True)
    for family in (rms, rms_eager, cosine, cosine_sgd, learned, roots, capped, gained):
        kind.healthy(family)
    path = ("middle",)
    kind.planted(rms, "1/sqrt(d)", "the usual scale", attention_scale(0.5, *path))
    kind.planted(rms, "query lr", "base rate in front of the norm", lr(1, "middle.query.weight"))
    kind.planted(rms_eager, "no scale", "normalised queries and keys without a scale", attention_scale(1, *path))
    kind.planted(cosine, "sqrt(d)", "a scale that grows", attention_scale(0.5, *path))
    kind.planted(cosine, "value init", "values of constant size", init(0.5, "middle.value.weight"))
    kind.planted(cosine_sgd, "1/sqrt(d)", "a scale for coordinates of 1", attention_scale(-0.5, *path))
    kind.planted(learned, "key lr 1/n²", "keys too slow in front of the norm", lr(-1, "middle.key.weight"))
    kind.planted(learned, "temperature lr", "four numbers scaled as a matrix", lr(-1, "middle.temperature"))
    kind.planted(capped, "1/sqrt(d)", "the usual scale in front of a cap", attention_scale(0.5, *path))
    kind.planted(capped, "latent lr 1/n", "trained queries scaled as a matrix", lr(-1, "middle.latent"))
    kind.planted(gained, "1/sqrt(d)", "the usual scale behind gains", attention_scale(0.5, *path))
    kind.planted(gained, "gain lr 1/n", "gains of the keys scaled as a matrix", lr(-1, "middle.key_norm.weight"))
    quarter = act(lambda setup: setattr(setup.model.middle, "scale", (setup.width / setup.model.middle.heads) ** -0.5))
    kind.planted(
        roots,
        "1/sqrt(d)",
        "the head size is the root of the width",
        quarter,
        truth={"middle": ("attention scale", -0.25)},
    )
    both = init(-0.5, "middle.query.weight"), attention_scale(0.5, *path)
    kind.planted(roots, "small queries", "queries too small, made up for by the scale", *both)


_fused()
_attentions()
