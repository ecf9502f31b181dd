"""Stacks and block-diagonal matrices, copies of a parameter, bilinear forms, experts of one tensor."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faultbench.families import BASE, CLASSES, INPUTS, draw, linear, tag
from faultbench.faults import init, lr
from faultbench.foreign.kit import Kind

# --- d: stacks ------------------------------------------------------------------------------------------------------


class Blocks(nn.Module):
    """(heads, d, d): a block-diagonal matrix; its blocks grow, or their number does."""

    def __init__(self, width: int, *, heads: int | None = None, size: int = 16, form: str = "einsum") -> None:
        super().__init__()
        self.heads = heads or width // size
        size = width // self.heads
        self.blocks = draw(torch.empty(self.heads, size, size), "hidden" if heads else "input", size)
        self.form = form

    def forward(self, x: Tensor) -> Tensor:
        parts = x.unflatten(-1, (self.heads, -1))
        if self.form == "einsum":
            return torch.einsum("bhi,hio->bho", parts, self.blocks).flatten(1)
        if self.form == "matmul":
            return (parts.unsqueeze(-2) @ self.blocks).flatten(1)
        if self.form == "diagonal":
            return F.linear(x, torch.block_diag(*self.blocks))
        return torch.bmm(parts.transpose(0, 1), self.blocks).transpose(0, 1).flatten(1)


class Monarch(nn.Module):
    """Eight growing blocks, a transposition, and a growing number of blocks of eight."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.left = draw(torch.empty(8, width // 8, width // 8), "hidden", width // 8)
        self.right = draw(torch.empty(width // 8, 8, 8), "input", 8)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.einsum("bki,kio->bok", x.unflatten(-1, (8, -1)), self.left)  # (batch, n / 8, 8)
        return torch.einsum("bok,okj->boj", x, self.right).flatten(1)


class BlockRecurrence(nn.Module):
    """(batch, time, n): heads of a fixed size whose states go through their own matrix, as in xLSTM."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.taken = linear(width, width, "hidden")
        self.kept = draw(torch.empty(width // 16, 16, 16), "input", 16)

    def forward(self, x: Tensor) -> Tensor:
        given = self.taken(x).unflatten(-1, (-1, 16))
        state = torch.tanh(given[:, 0])
        for time in range(1, x.shape[1]):
            state = torch.tanh(given[:, time] + torch.einsum("bhi,hoi->bho", state, self.kept))
        return state.flatten(1).unsqueeze(1)


def _stacks() -> None:
    kind = Kind("d", "stacks and block-diagonal matrices")
    growing = kind.net("growing blocks, einsum", lambda n: Blocks(n, heads=4))
    growing_sgd = kind.net("growing blocks, matmul", lambda n: Blocks(n, heads=4, form="matmul"), "sgd")
    many = kind.net("more and more blocks, bmm", lambda n: Blocks(n, form="bmm"))
    many_sgd = kind.net("more and more blocks, einsum", Blocks, "sgd")
    diagonal = kind.net("block_diag", lambda n: Blocks(n, heads=4, form="diagonal"), "adamw")
    monarch = kind.net("Monarch", Monarch)
    monarch_sgd = kind.net("Monarch", Monarch, "momentum")
    states = kind.net("block recurrence", BlockRecurrence, times=4)
    for family in (growing, growing_sgd, many, many_sgd, diagonal, monarch, monarch_sgd, states):
        kind.healthy(family)
    kind.planted(growing, "init const", "growing blocks of constant size", init(0.5, "middle.blocks"))
    kind.planted(growing_sgd, "lr 1/n", "Adam's rule under SGD", lr(-1, "middle.blocks"))
    kind.planted(many, "init by n", "drawn by the whole width", init(-0.5, "middle.blocks"))
    kind.planted(many, "lr 1/n", "scaled as a hidden matrix", lr(-1, "middle.blocks"))
    kind.planted(many_sgd, "lr const", "without SGD's factor n", lr(-1, "middle.blocks"))
    kind.planted(many_sgd, "init n ** 1/2", "blocks of growing size", init(0.5, "middle.blocks"))
    kind.planted(diagonal, "lr const", "base rate of growing blocks", lr(1, "middle.blocks"))
    kind.planted(monarch, "left lr", "base rate of the growing blocks", lr(1, "middle.left"))
    kind.planted(monarch, "right init", "small blocks drawn by the whole width", init(-0.5, "middle.right"))
    kind.planted(monarch_sgd, "right lr const", "without SGD's factor n", lr(-1, "middle.right"))
    kind.planted(states, "kept lr 1/n", "scaled as a hidden matrix", lr(-1, "middle.kept"))


# --- f: copies ------------------------------------------------------------------------------------------------------


class Copied(nn.Module):
    """A parameter whose copies make up the matrix that is used."""

    def __init__(self, width: int, shape: tuple[int, int], copies: Callable[[Tensor], Tensor], role: str) -> None:
        super().__init__()
        self.source, self.copies = draw(torch.empty(*shape), role, width), copies

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.copies(self.source))


class TiedBack(nn.Module):
    """There by a matrix, and back by its transpose, copied."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.there, self.between = linear(width, width, "hidden"), linear(width, width, "hidden")

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.between(torch.tanh(self.there(x))))
        return F.linear(x, self.there.weight.t().contiguous())


class RepeatedBias(nn.Module):
    """A bias and a gain of 16 numbers, repeated along the width, and a matrix."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bias = tag(nn.Parameter(torch.zeros(16)), "constant")
        self.gain = tag(nn.Parameter(torch.ones(16)), "constant")
        self.matrix = linear(width, width, "hidden")

    def forward(self, x: Tensor) -> Tensor:
        return self.matrix(x) * self.gain.tile(x.shape[-1] // 16) + self.bias.repeat_interleave(x.shape[-1] // 16)


def _copies() -> None:
    kind = Kind("f", "copies of a parameter")
    half = lambda form, role="hidden": lambda n: Copied(n, (n // 2, n), form, role)  # noqa: E731
    tiled = kind.net("tiled", half(lambda p: p.tile(2, 1)))
    columns = kind.net("columns twice", lambda n: Copied(n, (n, n // 2), lambda p: p.repeat(1, 2), "hidden"), "sgd")
    signed = kind.net("with its negative", half(lambda p: torch.cat([p, -p])), "sgd")
    stacked = kind.net("stacked", half(lambda p: torch.stack([p, p.flip(0)], 1).flatten(0, 1)), "adamw")
    turned = kind.net("transposed", lambda n: Copied(n, (n, n), lambda p: p.t().contiguous(), "hidden"), "momentum")
    few = kind.net(
        "few rows, many times",
        lambda n: Copied(n, (32, n), lambda p: p.repeat_interleave(n // 32, 0), "narrow"),
        activation=torch.tanh,
    )
    tied, vectors = kind.net("there and back", TiedBack), kind.net("repeated bias", RepeatedBias)
    for family in (tiled, columns, signed, stacked, turned, few, tied, vectors):
        kind.healthy(family)
    for family, power in ((tiled, 0.5), (signed, -0.5), (stacked, 0.5), (few, 0.5)):
        kind.planted(family, f"init {power:+g}", "what is copied has the wrong size", init(power, "middle.source"))
    for family, power in ((tiled, 1), (columns, -1), (signed, -1), (turned, -1), (few, 1)):
        kind.planted(family, f"lr {power:+d}", "what is copied has another rule's rate", lr(power, "middle.source"))
    kind.planted(tied, "there lr", "base rate of a tied matrix", lr(1, "middle.there.weight"))
    kind.planted(tied, "there init", "a tied matrix of constant size", init(0.5, "middle.there.weight"))
    kind.planted(vectors, "bias lr 1/n", "16 numbers scaled as a matrix", lr(-1, "middle.bias"))
    kind.planted(vectors, "matrix lr", "base rate in front of copies", lr(1, "middle.matrix.weight"))


# --- q: bilinear forms, experts of one tensor -----------------------------------------------------------------------


class Bilinear(nn.Module):
    """nn.Bilinear of two projections to n / 4, and back to n."""

    def __init__(self, width: int) -> None:
        super().__init__()
        size = width // 4
        self.left, self.right = linear(width, size, "hidden"), linear(width, size, "hidden")
        self.form = nn.Bilinear(size, size, size, bias=False)
        draw(self.form.weight, "pair", size * size)
        self.back = linear(size, width, "hidden")

    def forward(self, x: Tensor) -> Tensor:
        return self.back(self.form(torch.tanh(self.left(x)), torch.tanh(self.right(x))))


class BilinearReadout(nn.Module):
    """(batch, INPUTS) -> (batch, CLASSES): nn.Bilinear of two growing layers gives the logits."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.left, self.right = linear(INPUTS, width, "input"), linear(INPUTS, width, "input")
        self.readout = nn.Bilinear(width, width, CLASSES, bias=False)
        draw(self.readout.weight, "hidden", width * width)
        with torch.no_grad():  # 1 / k makes the logits O(1), of which µP has n ** -1/2
            tag(self.readout.weight, "pair readout").mul_((width / BASE) ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(torch.tanh(self.left(x)), torch.tanh(self.right(x)))


class NarrowBilinear(nn.Module):
    """nn.Bilinear of eight features and the width: its fan-in grows as the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.few, self.form = linear(width, 8, "narrow"), nn.Bilinear(8, width, width, bias=False)
        draw(self.form.weight, "hidden", 8 * width)

    def forward(self, x: Tensor) -> Tensor:
        return self.form(torch.tanh(self.few(x)), x)


class OneTensor(nn.Module):
    """Four experts in one (4 n, n) parameter, mixed by a soft router, or each for the examples of its number."""

    def __init__(self, width: int, *, routed: bool = True) -> None:
        super().__init__()
        self.router = linear(width, 4, "narrow") if routed else None
        self.experts = draw(torch.empty(4 * width, width), "hidden", width)

    def forward(self, x: Tensor) -> Tensor:
        matrices = self.experts.view(4, x.shape[-1], x.shape[-1])
        if self.router is None:
            chosen = matrices[torch.arange(len(x), device=x.device) % 4]
            return torch.bmm(chosen, x.unsqueeze(-1)).squeeze(-1)
        gates = self.router(x).softmax(-1)
        return sum(gates[:, i : i + 1] * F.linear(x, matrices[i]) for i in range(4))


def _pairs() -> None:
    kind = Kind("q", "bilinear forms, experts of one tensor")
    square, square_sgd = kind.net("bilinear", Bilinear), kind.net("bilinear", Bilinear, "sgd")
    out, out_sgd = (
        kind.family("bilinear readout", BilinearReadout),
        kind.family("bilinear readout", BilinearReadout, "sgd"),
    )
    narrow = kind.net("narrow bilinear", NarrowBilinear, "adamw")
    experts = kind.net("experts of one tensor", OneTensor)
    numbered = kind.net("numbered experts of one tensor", lambda n: OneTensor(n, routed=False), "sgd")
    for family in (square, square_sgd, out, out_sgd, narrow, experts, numbered):
        kind.healthy(family)
    kind.planted(square, "init", "drawn by one of its inputs", init(0.5, "middle.form.weight"))
    kind.planted(square, "lr 1/n", "the rate of a hidden matrix", lr(1, "middle.form.weight"))
    kind.planted(square_sgd, "lr const", "SGD's rate of a hidden matrix", lr(1, "middle.form.weight"))
    kind.planted(out, "lr 1/n", "the rate of a readout", lr(1, "readout.weight"))
    kind.planted(out_sgd, "left lr const", "without SGD's factor n", lr(-1, "left.weight"))
    kind.planted(narrow, "init", "drawn by its narrow input", init(0.5, "middle.form.weight"))
    kind.planted(narrow, "lr const", "scaled by its narrow input", lr(1, "middle.form.weight"))
    kind.planted(experts, "init", "experts drawn too small", init(-0.5, "middle.experts"))
    kind.planted(experts, "lr", "base rate of all experts", lr(1, "middle.experts"))
    kind.planted(numbered, "lr 1/n", "Adam's rule under SGD", lr(-1, "middle.experts"))


_stacks()
_copies()
_pairs()
