"""The models of the bug zoo and of the rules that are broken once: small, and in µP but for what is wrong with them.

m is width / 64. What is called with `width` is a factory, everything else returns one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LambdaLR

import coordcheck
import lesson
from bugs import BASE, CONTEXT
from coordcheck.models import Transformer, TransformerConfig, mlp, parametrization, transformer
from coordcheck.models.builders import initialise, make_optimizer
from coordcheck.models.transformer import Attention

RATE, MUON_RATE = 2e-3, 0.02
MUP = parametrization("transformer", "µP", "adam")
MATRICES = [f"blocks.*.{name}.weight" for name in ("query", "key", "value", "output", "up", "down")]
HIDDEN = [role for role, rule in MUP.rules.items() if rule.lr == -1 and role != "unembedding"]


# a rule of the table


def rule(role: str, *, init: float = 0.0, lr: float = 0.0, attention: float = 0.0) -> Callable[[int], Any]:
    """One role has a power of m more in its initialisation or its learning rate, or attention in its scale."""
    rules = {name: rule._replace(lr=rule.lr + lr * (name == role)) for name, rule in MUP.rules.items()}

    def build(width: int) -> tuple[Transformer, torch.optim.Optimizer]:
        m, model = width / BASE, Transformer(width, TransformerConfig(context=CONTEXT, depth=1), MUP)
        initialise(model, MUP, zero_init=())
        with torch.no_grad():
            for parameter in (one for one, its_role in model.roles() if its_role == role):
                parameter.mul_(m**init)
        model.blocks[0].attention.scale *= m**attention
        return model, make_optimizer(model, MUP._replace(rules=rules), optimizer="adam", lr=RATE, scale=m)

    return build


# attention


class Eager(Attention):
    """Attention by plain matrix products, with one scale for all that it is given."""

    def forward(self, x: Tensor) -> Tensor:
        """(batch, time, n) -> (batch, time, n)."""
        query, key, value = (
            part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        scores = (query @ key.transpose(-2, -1)) * self.scale
        mixed = scores.where(scores.new_ones(scores.shape[-2:]).tril() > 0, float("-inf")).softmax(-1) @ value
        return self.output(mixed.transpose(1, 2).flatten(-2))


def attention(
    name: str, power: float | None, *, kind: type[Attention] = Attention, twice: bool = False
) -> Callable[[int], Any]:
    """Four heads that grow, of size D; logits times D ** power (None: the fused call's own, 1/√D), queries `twice`."""

    def build(width: int) -> tuple[Transformer, torch.optim.Optimizer]:
        model, optimizer = transformer(name, "adam", lr=RATE, context=CONTEXT, depth=1)(width)
        layer = model.blocks[0].attention
        layer.__class__, layer.scale = kind, None if power is None else layer.head_size**power
        if twice:
            layer.query.register_forward_hook(lambda module, inputs, query: query * layer.head_size**-0.5)
        return model, optimizer

    return build


# learning rates


class Orthogonal(torch.optim.Optimizer):
    """p -= lr * scale(p) * U V^T of the gradient U S V^T: Muon without momentum, a convolution flattened to a matrix.

    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks".
    """

    def __init__(self, groups: Any, lr: float, scale: Callable[[Tensor], float]) -> None:
        super().__init__(groups, {"lr": lr})
        self.scale = scale

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """One update; `closure` is not used."""
        for group in self.param_groups:
            for parameter in (one for one in group["params"] if one.grad is not None):
                update = orthogonal(parameter.grad.flatten(1)).view_as(parameter)
                parameter.sub_(group["lr"] * self.scale(parameter) * update)


def orthogonal(matrix: Tensor) -> Tensor:
    """U V^T of U S V^T, by way of the smaller one of its two products with itself; what is zero stays zero."""
    if matrix.shape[0] > matrix.shape[1]:
        return orthogonal(matrix.T).T
    wide = matrix.double()
    squares, left = torch.linalg.eigh(wide @ wide.T)
    inverse = squares.clamp(min=1e-300).rsqrt() * (squares > 1e-8 * squares[-1])
    return (left * inverse @ left.T @ wide).to(matrix.dtype)


def under_sgd(width: int) -> coordcheck.Trial:
    """An MLP, with a batch and a loss of its own."""
    return coordcheck.Trial(*mlp("µP", "sgd", lr=0.1)(width), batch=lesson.points(64), loss=cross_entropy)


def under_adamw(width: int, **powers: float) -> tuple[Transformer, torch.optim.Optimizer]:
    """A Transformer with one AdamW group per parameter; `powers` has other powers of m for some roles."""
    model, _ = transformer("µP", "adamw", context=CONTEXT, depth=1)(width)
    groups = [
        {"params": [parameter], "lr": RATE * (width / BASE) ** powers.get(role, MUP.rules[role].lr), "role": role}
        for parameter, role in model.roles()
    ]
    return model, torch.optim.AdamW(groups, weight_decay=0.0)


def under_muon(width: int) -> tuple[Transformer, list[torch.optim.Optimizer]]:
    """The same, but for its hidden matrices: sqrt(fan_out / fan_in) makes one rate of Muon right at all widths."""
    model, adamw = under_adamw(width)
    hidden = [parameter for parameter, role in model.roles() if role in HIDDEN]
    adamw.param_groups[:] = [group for group in adamw.param_groups if group["role"] not in HIDDEN]
    return model, [Orthogonal(hidden, MUON_RATE, lambda p: (p.shape[0] / p.shape[1]) ** 0.5), adamw]


def rates(**powers: float) -> Callable[[int], Any]:
    """Lists of names that are one short, or one long: under AdamW some roles have another power of m."""
    return lambda width: under_adamw(width, **powers)


def one_rate(build: Callable[[int], Any], rate: float = RATE) -> Callable[[int], coordcheck.Trial]:
    """A scheduler that gives every group the same rate, whatever the group was made with."""

    def scheduled(width: int) -> coordcheck.Trial:
        made = build(width)
        trial = made if isinstance(made, coordcheck.Trial) else coordcheck.Trial(*made)
        optimizers = trial.optimizer if isinstance(trial.optimizer, list) else [trial.optimizer]
        for optimizer in optimizers:
            LambdaLR(optimizer, [lambda step, own=group["lr"]: rate / own for group in optimizer.param_groups])
        return trial

    return scheduled


def flattened_groups(width: int) -> tuple[Transformer, list[torch.optim.Optimizer]]:
    """A wrapper that makes groups of its own: the caller's parameters, at the two rates of a configuration file."""
    model, (muon, adamw) = under_muon(width)
    others = [parameter for group in adamw.param_groups for parameter in group["params"]]
    return model, [muon, torch.optim.AdamW(others, lr=RATE, weight_decay=0.0)]


# initialisation and multipliers


def changed(
    change: Callable[..., object] = lambda *_: None, *, name: str = "µP", tied: bool = False
) -> Callable[[int], Any]:
    """A Transformer of one block, changed once it is built by a function of (model, optimizer, m)."""

    @torch.no_grad()
    def build(width: int) -> tuple[Transformer, torch.optim.Optimizer]:
        model, optimizer = transformer(name, "adam", lr=RATE, context=CONTEXT, depth=1, tied=tied)(width)
        change(model, optimizer, width / BASE)
        return model, optimizer

    return build


def divided_by_m(model: Any, optimizer: Any, m: float) -> None:
    """An initial standard deviation that has m where √m belongs."""
    for matrix in (p for p in model.blocks.parameters() if p.dim() == 2):
        matrix.mul_(m**-0.5)


def in_every_layer(model: Any, optimizer: Any, m: float) -> None:
    """The multiplier of the logits in every linear layer."""
    for layer in (layer for layer in model.blocks.modules() if isinstance(layer, nn.Linear)):
        layer.register_forward_pre_hook(lambda module, inputs: (inputs[0] / m,))


def rescaled(model: Any, optimizer: Any, m: float) -> None:
    """A readout that rescales its matrix, which is the embedding's."""
    model.embedding.weight.mul_(m**0.5)


def dropped(model: Any, optimizer: Any, m: float) -> None:
    """A fused loss that knows of no multiplier."""
    model.readout_multiplier *= m


def from_zero(model: Any, optimizer: Any, m: float) -> None:
    """A warm-up of two updates, the first at a learning rate of zero."""
    warm_up = LambdaLR(optimizer, lambda step: min(1.0, step / 2))
    optimizer.register_step_post_hook(lambda *_: warm_up.step())


def large_keys(model: Any, optimizer: Any, m: float) -> None:
    """Keys that are too large, by a constant."""
    model.blocks[0].attention.key.register_forward_hook(lambda module, inputs, output: 32 * output)


# Muon


def muon(factor: Callable[..., float], power: float = 0.0, *, image: bool = False) -> Callable[[int], coordcheck.Trial]:
    """An MLP, or convolutions of width / 2 channels, with a batch: Muon has all matrices but the readout.

    Args:
        factor: of the shape of a matrix, by which Muon multiplies its update.
        power: that of m in Muon's learning rate for hidden matrices.
        image: whether it is the convolutional net.
    """

    def build(width: int) -> coordcheck.Trial:
        m, model = width / BASE, images(width // 2) if image else mlp("µP", biases=False)(width)[0]
        first, *others, readout = model.parameters()
        nn.init.normal_(readout, std=1 / width)
        groups = [{"params": [first]}, {"params": others, "lr": MUON_RATE * m**power}]
        x = torch.randn(16, *((3, 6, 6) if image else (64,)), generator=torch.Generator().manual_seed(0))
        optimizers = [
            Orthogonal(groups, MUON_RATE, lambda parameter: factor(*parameter.shape)),
            torch.optim.Adam([readout], RATE / m),
        ]
        return coordcheck.Trial(model, optimizers, batch=(x, torch.arange(16) % 10), loss=cross_entropy)

    return build


def images(n: int) -> nn.Module:
    """(batch, 3, 6, 6) -> (batch, 10): three convolutions, with norms that have no parameters."""
    made = [nn.Conv2d(size, n, 3, padding=1, bias=False) for size in (3, n, n)]
    layers = [nn.Sequential(layer, nn.GroupNorm(4, n, affine=False), nn.ReLU()) for layer in made]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(n, 10, bias=False))


def original(rows: int, *columns: int) -> float:
    """√max(1, fan_out / fan_in); a kernel, of (rows, columns, height, width), belongs to the columns."""
    return max(1.0, rows / math.prod(columns)) ** 0.5


def adams(rows: int, *columns: int) -> float:
    """√max(fan_out, fan_in), which makes the entries of all updates as large as Adam's."""
    return 0.2 * max(rows, math.prod(columns)) ** 0.5
