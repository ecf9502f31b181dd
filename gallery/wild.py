"""Scales that depend on the width in public code, each rebuilt small, in our own words, with what is measured by hand.

Each model holds the fault of one repository, as its file at one commit has it (`Fault.where`), in a network that is in
µP otherwise: widths n, m = n / 64, and Adam unless another optimizer is the fault's own. `hand` measures the fault in
plain torch.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

import bugs
import lesson
from bugs import BASE, CONTEXT
from coordcheck import Report
from coordcheck.checks.demo import next_byte_loss
from coordcheck.reporting.summaries import blames

RATE, BYTES, PIXELS, CLASSES = 2e-3, 256, 64, 10
WIDTHS, SEEDS = ((64, 128, 256, 512, 1024), 3) if lesson.FULL else ((64, 128, 256, 512), 1)  # of what is done by hand


Scale = Callable[[Any, torch.optim.Optimizer], float]


@dataclass(frozen=True, eq=False)
class Fault(bugs.Bug):
    """A fault as it was read in public code: `title` is the repository, below https://github.com/."""

    where: str = ""  # commit/path#lines
    hand: Mapping[str, Scale] = field(default_factory=dict)  # parameter -> a scale that µP wants level, in plain torch

    @property
    def link(self) -> str:
        """The repository, in Markdown, with a link to the lines."""
        return f"[{self.name}](https://github.com/{self.title}/blob/{self.where})"

    def by_hand(self, parameter: str) -> pd.Series:
        """The scale of one parameter by width, mean over `SEEDS`."""
        scales = {width: [] for width in WIDTHS}
        for width, seed in product(WIDTHS, range(SEEDS)):
            torch.manual_seed(seed)
            scales[width].append(self.hand[parameter](*self.build(width)))
        return pd.DataFrame(scales).mean()


def slope(scales: pd.Series) -> float:
    """Of log(scale) against log(width), by least squares."""
    return float(np.polyfit(np.log(list(scales.index)), np.log(scales), 1)[0])


def rms(x: Tensor) -> float:
    """Of all entries."""
    return float(x.detach().square().mean().sqrt())


def gain(matrix: Callable[[Any], Tensor], factor: Callable[[int], float] = lambda n: 1.0) -> Scale:
    """RMS(W x) / RMS(x) of a matrix, (fan-out, fan-in), and 256 random x, times a factor of its larger side."""

    def measure(model: Any, optimizer: torch.optim.Optimizer) -> float:
        weight = matrix(model)
        x = torch.randn(weight.shape[1], 256)
        return rms(weight @ x) / rms(x) * factor(max(weight.shape))

    return measure


def update(name: str) -> Scale:
    """How far one step of training moves the entries of a parameter."""

    def measure(model: Any, optimizer: torch.optim.Optimizer) -> float:
        before = model.get_parameter(name).detach().clone()
        next_byte_loss(model, lesson.text_batch(8, CONTEXT)).backward()
        optimizer.step()
        return rms(model.get_parameter(name) - before)

    return measure


def linear(fan_in: int, fan_out: int, std: float) -> nn.Linear:
    """Without a bias, drawn from a normal distribution."""
    layer = nn.Linear(fan_in, fan_out, bias=False)
    nn.init.normal_(layer.weight, std=std)
    return layer


def table(rows: int, n: int, std: float = 1.0) -> nn.Embedding:
    """An embedding, drawn from a normal distribution."""
    return nn.Embedding(rows, n, _weight=std * torch.randn(rows, n))


def normed(x: Tensor) -> Tensor:
    """RMSNorm without a gain."""
    return F.rms_norm(x, x.shape[-1:])


def adam(model: nn.Module, n: int, *slow: nn.Module) -> tuple[nn.Module, torch.optim.Adam]:
    """(model, Adam), with a rate that falls as 1/n for the weights whose fan-in grows."""
    weights = [layer.weight for layer in slow]
    rest = [p for p in model.parameters() if all(p is not one for one in weights)]
    return model, torch.optim.Adam([{"params": rest}, {"params": weights, "lr": RATE * BASE / n}], lr=RATE)


class Residual(nn.Module):
    """One hidden matrix beside the residual stream."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.hidden = linear(n, n, n**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, time, n) -> the same."""
        return x + self.hidden(normed(x)).relu()


class Language(nn.Module):
    """Bytes to logits: embedding, block, readout; in µP."""

    def __init__(self, n: int, block: Callable[[int], nn.Module] = Residual) -> None:
        super().__init__()
        self.embedding, self.block, self.readout = table(BYTES, n), block(n), linear(n, BYTES, 1 / n)

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, time) -> (batch, time, bytes)."""
        return self.readout(normed(self.block(self.embedding(tokens))))


class Selective(nn.Module):
    """A state space whose step sizes come through a bottleneck of n / 16, in a matrix that stands in the last product.

    The fan-in of that matrix is the bottleneck: its 1/√fan-in is all it needs, and 1/√m comes on top.
    """

    def __init__(self, n: int) -> None:
        super().__init__()
        rank, steps = n // 16, torch.empty(n).uniform_(math.log(1e-3), math.log(0.1)).exp()
        self.narrow, self.dt = linear(n, rank, n**-0.5), linear(rank, n, rank**-0.5 * (n / BASE) ** -0.5)
        self.bias = nn.Parameter(steps.expm1().log())  # softplus of it is a step

    def forward(self, x: Tensor) -> Tensor:
        """(batch, time, n) -> the same: a state per channel forgets by exp(-step), and takes step times its input."""
        steps = F.softplus(F.linear(self.narrow(x), self.dt.weight, self.bias))
        state, states = torch.zeros_like(x[:, 0]), []
        for step, now in zip(steps.unbind(1), x.unbind(1), strict=True):
            state = state * (-step).exp() + step * now
            states.append(state)
        return x + torch.stack(states, 1)


class TwoPaths(Language):
    """Logits from the embedding's matrix: divided by m beside targets, and not divided where text is generated."""

    def __init__(self, n: int) -> None:
        super().__init__(n)
        del self.readout
        self.embedding, self.m = table(BYTES, n, 0.02), n / BASE

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        """(batch, time) -> (batch, time, bytes)."""
        x = normed(self.block(self.embedding(tokens)))
        return F.linear(x if targets is None else x / self.m, self.embedding.weight)


class Positioned(Language):
    """A table of positions beside the embedding, and a readout of constant scale, whose input is divided by m."""

    def __init__(self, n: int) -> None:
        super().__init__(n)
        self.positions, self.readout, self.m = table(CONTEXT, n), linear(n, BYTES, 1 / BASE), n / BASE

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, time) -> (batch, time, bytes)."""
        x = self.embedding(tokens) + self.positions(torch.arange(tokens.shape[1]))
        return self.readout(normed(self.block(x)) / self.m)


class Positions(nn.Embedding):
    """A vector per place in the text, divided by √n."""

    def forward(self, x: Tensor) -> Tensor:
        """(batch, time, n) -> (time, n)."""
        return super().forward(torch.arange(x.shape[1])) * x.shape[-1] ** -0.5


class SmallTables(Language):
    """Kaiming's rule on a table, whose rows are looked up and not summed, and such positions."""

    def __init__(self, n: int) -> None:
        super().__init__(n)
        self.embedding, self.positions = table(BYTES, n, (2 / n) ** 0.5), Positions(CONTEXT, n)

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, time) -> (batch, time, bytes)."""
        x = self.embedding(tokens)
        return self.readout(normed(self.block(x + self.positions(x))))


class Signs(torch.optim.Optimizer):
    """p -= lr * sign(gradient), and lr / fan-in in matrices."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """One update; `closure` is not used."""
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter -= group["lr"] * parameter.grad.sign()


def signed(n: int) -> tuple[nn.Module, Signs]:
    """The initial weights are as large as an update: ±1 in the embedding, ±1/n in the hidden matrix and the readout."""
    model = Language(n)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.sign())
        model.block.hidden.weight.div_(n)
        model.readout.weight.div_(n)
    slow = [model.block.hidden.weight, model.readout.weight]
    groups = [{"params": [model.embedding.weight]}, {"params": slow, "lr": RATE * BASE / n}]
    return model, Signs(groups, {"lr": RATE})


class Convolution(nn.Module):
    """A graph convolution whose weight is (fan-in, fan-out), drawn by the size of its second axis."""

    def __init__(self, fan_in: int, fan_out: int) -> None:
        super().__init__()
        near = torch.rand(PIXELS, PIXELS, generator=torch.Generator().manual_seed(0)) < 0.1
        self.register_buffer("near", F.normalize(near + torch.eye(PIXELS), p=1.0))  # with itself; the sum of a row is 1
        self.weight = nn.Parameter(torch.empty(fan_in, fan_out).uniform_(-1, 1) * fan_out**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """(nodes, fan-in) -> (nodes, fan-out)."""
        return self.near @ (x @ self.weight)


class Agent(nn.Module):
    """Orthogonal matrices: that of the input has orthonormal columns, once it is taller than wide."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.input, self.hidden, self.readout = nn.Linear(PIXELS, n), nn.Linear(n, n), linear(n, CLASSES, 1 / n)
        for layer in (self.input, self.hidden):
            nn.init.orthogonal_(layer.weight, 2**0.5)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, observations) -> (batch, actions)."""
        return self.readout(self.hidden(self.input(x).tanh()).tanh())


class Patches(nn.Module):
    """Xavier's rule on a matrix from patches of 16 pixels to n; a constant standard deviation on one of n by n."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.patch = nn.Linear(PIXELS // 4, n, bias=False)
        nn.init.xavier_uniform_(self.patch.weight)
        self.waves, self.time = linear(8, n, 1.0), linear(n, n, 0.02)
        self.hidden, self.readout = linear(n, n, n**-0.5), linear(n, CLASSES, 1 / n)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, pixels) -> (batch, classes); each image has a time, which is a number from 0 to 1 here."""
        waves = (x.square().mean(1, keepdim=True) * torch.arange(1, 9)).cos()
        patches = self.patch(x.unflatten(1, (4, -1))) + self.time(F.silu(self.waves(waves)))[:, None]
        return self.readout((patches + self.hidden(normed(patches)).relu()).mean(1))


def mended(n: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The first of the faults with the remedy that the diagnosis names: the initial matrix times √m."""
    model, optimizer = FAULTS[0].build(n)
    with torch.no_grad():
        model.block.dt.weight.mul_((n / BASE) ** 0.5)
    return model, optimizer


def optimized(kind: Callable[[int], nn.Module], *slow: str) -> Callable[[int], Any]:
    """A factory of (model, Adam): the layers of these names have a fan-in that grows."""

    def build(n: int) -> tuple[nn.Module, torch.optim.Adam]:
        model = kind(n)
        return adam(model, n, *(model.get_submodule(name) for name in slow))

    return build


def graph(n: int) -> tuple[nn.Module, torch.optim.Adam]:
    """Two of them, at one rate."""
    layers = {"first": Convolution(PIXELS, n), "relu": nn.ReLU(), "second": Convolution(n, CLASSES)}
    model = nn.Sequential(OrderedDict(layers))
    return model, torch.optim.Adam(model.parameters(), lr=RATE)


def logits(model: Any, optimizer: torch.optim.Optimizer) -> float:
    """Those of generation over those of training."""
    tokens = lesson.text_batch(8, CONTEXT)[:, :-1]
    return rms(model(tokens)) / rms(model(tokens, tokens))


SLOW = dict.fromkeys(("embedding.weight", "positions.weight", "readout.weight"), ("lr", 1.0))
SMALL, LARGE = ("init", 0.5), ("init", -0.5)
FAULTS = [
    Fault(
        "alxndrTL/mamba.py",
        "dt_proj's 1/√fan-in falls with the width by itself, and 1/√m comes on top",
        optimized(partial(Language, block=Selective), "block.narrow", "block.dt", "readout"),
        {"block.dt.weight": SMALL},
        "2cc168c78b2494557f45072c4b8daa9d6f5608c7/mambapy/lm.py#L52-L54",
        {"block.dt.weight": gain(lambda model: model.block.dt.weight)},
    ),
    Fault(
        "EleutherAI/nanoGPT-mup",
        "without targets, as in generation, logits lack the multiplier 1/m that they have in training",
        optimized(TwoPaths, "block.hidden"),
        {"embedding.weight@*": ("multiplier", -1.0)},
        "b2a5e60948d2e11885dc76c1355af98705f54a70/model.py#L213-L226",
        {"embedding.weight@linear": logits},
    ),
    Fault(
        "MikhailTerekhov/mup",
        "by default embedding, positions and readout learn at lr / m (a comment beside it says so; an option mends it)",
        optimized(Positioned, "embedding", "positions", "block.hidden", "readout"),
        SLOW,
        "0d4d2a8718c5c8ae2d5886a212d0e1fd749f8495/src/mup/modules.py#L225-L231",
        {name: update(name) for name in SLOW},
    ),
    Fault(
        "LIONS-EPFL/scion",
        "in the mode Sign hidden matrices start at ±1/fan-in, as large as an update",
        signed,
        {"block.hidden.weight": SMALL},
        "f58a393e010395a5913176be5673d8839caa6285/scion.py#L188-L197",
        {"block.hidden.weight": gain(lambda model: model.block.hidden.weight)},
    ),
    Fault(
        "lucidrains/x-transformers",
        "Kaiming's √(2/fan-in) on a table of embeddings; positions are divided by √n",
        optimized(SmallTables, "block.hidden", "readout"),
        {"embedding.weight": SMALL, "positions.weight": ("multiplier", 0.5)},
        "9252ed7838021ee61e6c5be0930b3a9a88efdf06/x_transformers/x_transformers.py#L369-L383",
        {
            "embedding.weight": gain(lambda model: model.embedding.weight.T),
            "positions.weight": gain(lambda model: model.positions.weight.T, lambda n: n**-0.5),
        },
    ),
    Fault(
        "tkipf/pygcn",
        "weights are drawn by 1/√fan-out",
        graph,
        {"first.weight": SMALL, "second.weight": ("multiplier", -1.0)},
        "1600b5b748b3976413d1e307540ccc62605b4d6d/pygcn/layers.py#L18-L27",
        {
            "first.weight": gain(lambda model: model.first.weight.T),
            "second.weight": gain(lambda model: model.second.weight.T, lambda n: n**0.5),
        },
    ),
    Fault(
        "vwxyzjn/cleanrl",
        "an orthogonal matrix of the input: entries of 1/√n once n is above the fan-in (PPO has n = 64)",
        optimized(Agent, "hidden", "readout"),
        {"input.weight": SMALL},
        "fe8d8a03c41a7ef5b523e2e354bd01c363e786bb/cleanrl/ppo.py#L94-L104",
        {"input.weight": gain(lambda model: model.input.weight)},
    ),
    Fault(
        "facebookresearch/DiT",
        "Xavier's √(2/(fan-in + fan-out)) on patches of fixed size; 0.02 in the hidden matrix of the time",
        optimized(Patches, "time", "hidden", "readout"),
        {"patch.weight": SMALL, "time.weight": LARGE},
        "ed81ce2229091fd4ecc9a223645f95cf379d582b/models.py#L195-L205",
        {
            "patch.weight": gain(lambda model: model.patch.weight),
            "time.weight": gain(lambda model: model.time.weight),
        },
    ),
]


def compared(report: Report, faults: Sequence[Fault]) -> pd.DataFrame:
    """A row per parameter to blame: the exponent by which it is off by hand, in the diagnosis, in the plain check."""
    rows = []
    for fault in faults:
        own, layers = bugs.parameters(report, fault).set_index("layer"), bugs.plain(report, fault).slopes
        for blame in blames(bugs.parameters(report, fault)):
            for name in blame.parameters:
                found = own.loc[name]
                off = found["response" if blame.cause == "lr" else "gain"]
                off -= found["response_target" if blame.cause == "lr" else "gain_target"]
                hand, plain = slope(fault.by_hand(name)), layers.get(bugs.layer_of(name), math.nan)
                verdict = f"{blame.verdict}: {blame.change}"
                rows.append((fault, name, hand, off, plain, verdict))
    return pd.DataFrame(rows, columns=["fault", "parameter", "by hand", "diagnosis", "plain check", "verdict"])


def as_told(table: pd.DataFrame) -> pd.DataFrame:
    """The table for the page: what is said of the whole fault stands in its first row."""
    first = ~table["fault"].duplicated()
    whole = {
        "repository": [fault.link for fault in table["fault"]],
        "what the code does": [fault.mechanism for fault in table["fault"]],
    }
    found = pd.DataFrame(whole).where(first, "").join(table.drop(columns="fault"))
    plain = [f"{slope:+.2f}" for slope in found["plain check"]]
    return found.assign(**{"plain check": ["not seen" if text == "+nan" else text for text in plain]})


def draw(report: Report, table: pd.DataFrame) -> Figure:
    """What each check sees of the first fault: outputs of modules, and a product that is no output; and the table."""
    mamba, dt, layers = FAULTS[0], "block.dt.weight", ["embedding", "block.narrow", "block", "readout"]
    columns = ["label", "quantity", "step", "layer"]
    values = report.measurements.pivot_table(index="width", columns=columns, values="value")
    gains = {
        name: values[label, "output", 0, dt] / values[label, "input", 0, dt]
        for name, label in {"with init × √m": "mended", "as it is": mamba.name}.items()
    }
    figure, (left, middle, right) = lesson.subplots(1, 3, height=2.6, width_ratios=(1, 1, 1.5))
    looks = dict.fromkeys(("o-", "s-", "^-", "D--"), lesson.BLUE)
    lesson.curves(left, values[mamba.name, "activation", 4][layers], looks, title="mamba.py: outputs, t = 4")
    middle.plot(mamba.by_hand(dt), color="0.85", linewidth=6, label="by hand")
    looks = {"s--": lesson.RED, "o-": lesson.RED}
    lesson.curves(middle, pd.DataFrame(gains), looks, title="mamba.py: gain of dt", xticks=WIDTHS)
    for axis in (left, middle):
        axis.set(xlabel="width n", ylim=(1 / 9, 1.4))
        axis.legend(loc="center left" if axis is left else "lower left", handlelength=2.5)
    _draw_all(right, table)
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower right", ncols=3)
    return figure


def _draw_all(axis: Axes, table: pd.DataFrame) -> None:
    """A row per parameter: its exponent by hand as a bar, in the plain check as a bar of its own, in the diagnosis."""
    rows = range(len(table))
    axis.barh(rows, table["by hand"], height=0.8, color="0.85", label="by hand")
    axis.plot(table["plain check"], rows, "|", color=lesson.BLUE, markersize=8, markeredgewidth=2, label="plain check")
    axis.plot(table["diagnosis"], rows, "o", color=lesson.RED, label="diagnosis")
    first = ~table["fault"].duplicated()
    axis.set_yticks(rows, [fault.name if new else "" for fault, new in zip(table["fault"], first, strict=True)])
    for row, (name, exponent) in enumerate(zip(table["parameter"], table["by hand"], strict=True)):
        free = -math.copysign(0.12, exponent)
        side = "left" if free > 0 else "right"
        axis.text(free, row, name.replace(".weight", ""), ha=side, va="center", fontsize=5.5, color="0.25")
        if first[row] and row:
            axis.axhline(row - 0.5, color="0.85", linewidth=0.5)
        if math.isnan(table["plain check"][row]):
            axis.text(1.15, row, "not seen", ha="right", va="center", fontsize=5.5, color=lesson.BLUE)
    axis.axvline(0, color="black", linewidth=0.6)
    axis.set_xticks((-1, -0.5, 0, 0.5, 1), ("−1", "−½", "0", "½", "1"))
    axis.set(title="all eight: exponent of n", xlim=(-1.2, 1.2), ylim=(len(rows) - 0.5, -0.5))
    axis.tick_params(axis="y", labelsize=6, length=0)
    axis.grid(axis="y", visible=False)
