"""Small models that are correct in µP, with one optimizer group per parameter, so that a fault can change one thing.

Every parameter carries its role, and its role decides its initialisation and learning rate, n being the width:

    role        standard deviation  lr, degree 0 (Adam, Lion)  lr, degree 1 (SGD)  examples
    input       const               const                      n                   embedding, first layer, LoRA B
    vector      const               const                      n                   bias, norm gain, positions
    hidden      n ** -1/2           1 / n                      const
    narrow      n ** -1/2           1 / n                      const               key and value of MQA, router, LoRA A
    readout     1 / n               1 / n                      1 / n
    constant    const               const                      const               bias of the readout

A multiplier n ** -theta outside of the module goes with a standard deviation n ** theta larger, and a learning rate
n ** theta (degree 0) or n ** (2 theta) (degree 1) larger. The logits of attention are divided by the head size where
that grows.

Source: Yang et al. 2022, arXiv:2203.03466, table 3; the theta-shift: Yang & Hu 2021, arXiv:2011.14522; µP of Muon:
Bernstein & Newhouse 2024, arXiv:2409.20325 (an update of spectral norm sqrt(fan_out / fan_in)).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

BASE = 64
"""The width at which every exponent is without effect."""
INPUTS, CLASSES, VOCABULARY, CONTEXT = 32, 10, 32, 8

ADAM = {"input": 0.0, "vector": 0.0, "hidden": -1.0, "narrow": -1.0, "readout": -1.0, "constant": 0.0}
SGD = {"input": 1.0, "vector": 1.0, "hidden": 0.0, "narrow": 0.0, "readout": -1.0, "constant": 0.0}
MUON = {"input": 0.0, "hidden": 0.0, "readout": -0.5}  # torch's factor sqrt(max(1, rows / columns)) does the input
SPECTRAL = {"input": 0.0, "hidden": 0.0, "readout": 0.0}
RATES = {"sgd": 0.1, "momentum": 0.1, "muon": 0.02, "spectral": 0.02}
RATE = 1e-3


@dataclass
class Setup:
    """A model with its optimizers, one group per parameter."""

    model: nn.Module
    optimizers: list[Optimizer]
    width: int

    @property
    def growth(self) -> float:
        return self.width / BASE

    @property
    def groups(self) -> dict[str, dict[str, Any]]:
        return {group["name"]: group for optimizer in self.optimizers for group in optimizer.param_groups}

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        return dict(self.model.named_parameters())

    def trial(self) -> tuple[nn.Module, Any]:
        """What `coordcheck` accepts."""
        return self.model, self.optimizers[0] if len(self.optimizers) == 1 else self.optimizers


class Family(NamedTuple):
    """A correct model at every width, and what it is trained on."""

    name: str
    build: Callable[[int], Setup]
    batch: Any
    loss: Callable[..., Tensor]


# --- parameters and their roles -----------------------------------------------------------------------------------


def tag(parameter: nn.Parameter, role: str, theta: float = 0.0) -> nn.Parameter:
    """A parameter with its role, and the power of 1 / n that multiplies it outside."""
    parameter.role, parameter.theta = role, theta  # type: ignore[attr-defined]
    return parameter


def draw(parameter: Tensor, role: str, fan_in: int, theta: float = 0.0, growth: float = 1.0) -> nn.Parameter:
    """A normal draw with the standard deviation of a role: fan_in ** -1/2, and for a readout 1 / fan_in."""
    deviation = fan_in**-0.5 * growth**theta * (growth**-0.5 if role == "readout" else 1.0)
    with torch.no_grad():
        parameter.normal_(0.0, deviation)
    return tag(parameter if isinstance(parameter, nn.Parameter) else nn.Parameter(parameter), role, theta)


def linear(fan_in: int, fan_out: int, role: str, *, bias: bool = False, theta: float = 0.0) -> nn.Linear:
    """A linear layer drawn for its role, with a bias of zeros; a theta is for layers whose fan-in is the width."""
    layer = nn.Linear(fan_in, fan_out, bias=bias)
    draw(layer.weight, role, fan_in, theta, max(fan_in, fan_out if role == "input" else 0) / BASE)
    if bias:
        nn.init.zeros_(tag(layer.bias, "constant" if role == "readout" else "vector"))
    return layer


def conv(fan_in: int, fan_out: int, role: str, *, groups: int = 1, bias: bool = False) -> nn.Conv2d:
    """A 3 x 3 convolution, whose fan-in counts the kernel."""
    layer = nn.Conv2d(fan_in, fan_out, 3, padding=1, groups=groups, bias=bias)
    draw(layer.weight, role, 9 * fan_in // groups)
    if bias:
        nn.init.zeros_(tag(layer.bias, "vector"))
    return layer


def vectors(module: nn.Module) -> nn.Module:
    """A norm, whose gain and bias are vectors."""
    for parameter in module.parameters():
        tag(parameter, "vector")
    return module


# --- optimizers -----------------------------------------------------------------------------------------------------


class SignDescent(Optimizer):
    """p -= lr * sign(gradient): Lion without its momenta."""

    def __init__(self, groups: Any, lr: float = RATE) -> None:
        super().__init__(groups, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in (p for p in group["params"] if p.grad is not None):
                parameter.sub_(group["lr"] * parameter.grad.sign())


def spectral_scale(shape: torch.Size) -> float:
    """sqrt(fan_out / fan_in), a convolution's fan-in counting its kernel."""
    return math.sqrt(shape[0] / math.prod(shape[1:]))


class Spectral(Optimizer):
    """p -= lr * scale(shape) * (the orthogonalised gradient): Muon without momentum, exact, also for convolutions.

    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers"; Bernstein & Newhouse 2024, arXiv:2409.20325.
    """

    def __init__(self, groups: Any, lr: float = 0.02, scale: Callable[[torch.Size], float] = spectral_scale) -> None:
        super().__init__(groups, {"lr": lr})
        self.scale = scale

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in (p for p in group["params"] if p.grad is not None):
                update = orthogonalised(parameter.grad.flatten(1)).view_as(parameter)
                parameter.sub_(group["lr"] * self.scale(parameter.shape) * update)


def orthogonalised(matrix: Tensor) -> Tensor:
    """U V^T of the singular value decomposition U S V^T, without the directions in which the matrix is zero."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return left * (values > 1e-4 * values[0]) @ right


def optimizers(model: nn.Module, kind: str, width: int, everything: bool = False) -> list[Optimizer]:
    """The optimizers of a model in µP, with one group per parameter that is trained.

    Args:
        model: whose parameters are tagged.
        kind: "sgd", "momentum", "adam", "adamw", "sign", "muon" or "spectral".
        width: the n of the exponents.
        everything: whether Muon takes every matrix, and not the hidden ones alone; AdamW takes the others.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if kind not in ("muon", "spectral"):
        return [_optimizer(named, kind, width)]
    matrices = {n: p for n, p in named.items() if p.dim() > 1 and (p.role == "hidden" or everything)}
    others = {n: p for n, p in named.items() if n not in matrices}
    return [_optimizer(matrices, kind, width)] + ([_optimizer(others, "adamw", width)] if others else [])


def _optimizer(named: Mapping[str, nn.Parameter], kind: str, width: int) -> Optimizer:
    degree = kind in ("sgd", "momentum")
    exponents = SGD if degree else {"muon": MUON, "spectral": SPECTRAL}.get(kind, ADAM)
    rate, growth = RATES.get(kind, RATE), width / BASE
    groups = [
        {"params": [p], "name": name, "lr": rate * growth ** (exponents[p.role] + (1 + degree) * p.theta)}
        for name, p in named.items()
    ]
    make: dict[str, Callable[..., Optimizer]] = {
        "sgd": torch.optim.SGD,
        "momentum": lambda groups, lr: torch.optim.SGD(groups, lr=lr, momentum=0.9),
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
        "sign": SignDescent,
        "muon": lambda groups, lr: torch.optim.Muon(groups, lr=lr, weight_decay=0.0),
        "spectral": Spectral,
    }
    return make[kind](groups, lr=rate)


# --- multilayer perceptrons -----------------------------------------------------------------------------------------


class PlainNorm(nn.Module):
    """Layer normalisation without parameters, whatever the width."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:])


class MLP(nn.Module):
    """(batch, INPUTS) -> (batch, CLASSES); multipliers n ** -theta stand outside of the layers."""

    def __init__(
        self,
        width: int,
        *,
        depth: int = 2,
        activation: Callable[[Tensor], Tensor] = F.relu,
        bias: bool = True,
        thetas: Mapping[str, float] | None = None,
        residual: bool = False,
        between: Callable[[], nn.Module] = nn.Identity,
    ) -> None:
        super().__init__()
        theta = {"input": 0.0, "hidden": 0.0, "readout": 0.0, **(thetas or {})}
        self.input = linear(INPUTS, width, "input", bias=bias, theta=theta["input"])
        hidden = (linear(width, width, "hidden", bias=bias, theta=theta["hidden"]) for _ in range(depth - 1))
        self.hidden = nn.ModuleList(hidden)
        self.readout = linear(width, CLASSES, "readout", bias=bias, theta=theta["readout"])
        self.norms = nn.ModuleList(nn.RMSNorm(width, elementwise_affine=False) for _ in range(depth * residual))
        self.between, self.activation, self.residual = between(), activation, residual
        self.multipliers = {part: (width / BASE) ** -power for part, power in theta.items()}

    def forward(self, x: Tensor) -> Tensor:
        x = self.between(self.activation(self.input(x) * self.multipliers["input"]))
        for index, layer in enumerate(self.hidden):
            normal = self.norms[index](x) if self.residual else x
            update = self.activation(layer(normal) * self.multipliers["hidden"])
            x = x + update if self.residual else update
        return self.readout(self.norms[-1](x) if self.residual else x) * self.multipliers["readout"]


class LoRA(nn.Module):
    """A frozen linear layer with a trained update of rank 4: A from the width to the rank, B, of zeros, back."""

    def __init__(self, width: int, rank: int = 4) -> None:
        super().__init__()
        self.base = linear(width, width, "hidden").requires_grad_(False)
        self.down = linear(width, rank, "narrow")
        self.up = linear(rank, width, "input")
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 2.0 * self.up(self.down(x))


class LoRANet(nn.Module):
    """(batch, INPUTS) -> (batch, CLASSES) with LoRA in its hidden layers; input and readout are trained too."""

    def __init__(self, width: int, *, depth: int = 3) -> None:
        super().__init__()
        self.input = linear(INPUTS, width, "input")
        self.adapted = nn.ModuleList(LoRA(width) for _ in range(depth - 1))
        self.readout = linear(width, CLASSES, "readout")

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.input(x))
        for layer in self.adapted:
            x = F.gelu(layer(x))
        return self.readout(x)


class Experts(nn.Module):
    """A mixture of four experts with a soft router, each expert a module of its own."""

    def __init__(self, width: int, count: int = 4) -> None:
        super().__init__()
        self.router = linear(width, count, "narrow")
        self.up = nn.ModuleList(linear(width, width, "hidden") for _ in range(count))
        self.down = nn.ModuleList(linear(width, width, "hidden") for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        gates = self.router(x).softmax(-1)
        outputs = [down(F.relu(up(x))) for up, down in zip(self.up, self.down, strict=True)]
        return (torch.stack(outputs, -1) * gates.unsqueeze(-2)).sum(-1)


class StackedExperts(nn.Module):
    """The same with the experts' matrices in one tensor (experts, fan-in, fan-out), by einsum or bmm."""

    def __init__(self, width: int, count: int = 4, *, bmm: bool = False) -> None:
        super().__init__()
        self.router = linear(width, count, "narrow")
        self.up = draw(torch.empty(count, width, 2 * width), "hidden", width)
        self.down = draw(torch.empty(count, 2 * width, width), "hidden", 2 * width)
        self.bmm = bmm

    def forward(self, x: Tensor) -> Tensor:
        gates = self.router(x).softmax(-1)
        if self.bmm:
            tiled = x.expand(len(self.up), *x.shape)  # (batch, width) -> (experts, batch, width)
            outputs = torch.bmm(F.relu(torch.bmm(tiled, self.up)), self.down)
            return torch.einsum("ebd,be->bd", outputs, gates)
        hidden = F.relu(torch.einsum("bd,edf->bef", x, self.up))
        return torch.einsum("bef,efd,be->bd", hidden, self.down, gates)


class MoE(nn.Module):
    """(batch, INPUTS) -> (batch, CLASSES) through one residual mixture of experts."""

    def __init__(self, width: int, *, experts: Callable[[int], nn.Module] = Experts) -> None:
        super().__init__()
        self.input = linear(INPUTS, width, "input", bias=True)
        self.norm = vectors(nn.RMSNorm(width))
        self.moe = experts(width)
        self.final_norm = vectors(nn.RMSNorm(width))
        self.readout = linear(width, CLASSES, "readout")

    def forward(self, x: Tensor) -> Tensor:
        x = self.input(x)
        x = x + self.moe(self.norm(x))
        return self.readout(self.final_norm(x))


class LSTM(nn.Module):
    """(batch, time, INPUTS) -> (batch, CLASSES), read out from the last state."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(INPUTS, width, batch_first=True)
        draw(self.lstm.weight_ih_l0, "input", INPUTS)
        draw(self.lstm.weight_hh_l0, "hidden", width)
        for bias in (self.lstm.bias_ih_l0, self.lstm.bias_hh_l0):
            nn.init.zeros_(tag(bias, "vector"))
        self.readout = linear(width, CLASSES, "readout")

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.lstm(x)[0][:, -1])


# --- convolutional nets ---------------------------------------------------------------------------------------------


class ConvNet(nn.Module):
    """(batch, 3, 6, 6) -> (batch, CLASSES): half as many channels as the width, pooled before the readout."""

    def __init__(self, width: int, *, norm: str = "batch", middle: str = "plain", bias: bool = False) -> None:
        super().__init__()
        channels = width // 2
        groups = {"plain": 1, "depthwise": channels, "grouped": 4, "narrow groups": channels // 8}[middle]
        self.stem = conv(3, channels, "input", bias=bias)
        role = "input" if middle in ("depthwise", "narrow groups") else "hidden"
        self.middle = conv(channels, channels, role, groups=groups, bias=bias)
        self.last = conv(channels, channels, "hidden", bias=bias)
        made = (nn.BatchNorm2d(channels) if norm == "batch" else nn.GroupNorm(4, channels) for _ in range(3))
        self.norms = nn.ModuleList(vectors(module) for module in made)
        self.readout = linear(channels, CLASSES, "readout", bias=True)
        with torch.no_grad():  # 1 / n from the base width's number of channels
            self.readout.weight.mul_(math.sqrt(channels / width))

    def forward(self, x: Tensor) -> Tensor:
        for layer, norm in zip((self.stem, self.middle, self.last), self.norms, strict=True):
            x = F.relu(norm(layer(x)))
        return self.readout(x.mean((-2, -1)))


# --- Transformers ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Config:
    """The choices of a Transformer."""

    depth: int = 1
    norm: str = "layer"
    """ "layer" with biases, or "rms"."""
    biases: bool = False
    qkv: str = "split"
    """ "split", or fused in one matrix: "chunk" or "unbind"."""
    grows: str = "head size"
    """ "head size" with 4 heads, or "heads" of size 16."""
    kv_heads: int | None = None
    """How many key and value heads, or a divisor of the heads when negative; None: as many as query heads."""
    attention: str = "fused"
    """ "fused", "fused, query scaled", "eager", or "eager, query scaled"."""
    mlp: str = "gelu"
    tied: bool = False
    embedding_theta: float = 0.0
    hidden_theta: float = 0.0


class Attention(nn.Module):
    """Causal self-attention: (batch, time, n) -> (batch, time, n)."""

    def __init__(self, width: int, config: Config) -> None:
        super().__init__()
        self.heads, self.size = (4, width // 4) if config.grows == "head size" else (width // 16, 16)
        asked = config.kv_heads or self.heads
        self.kv_heads = asked if asked > 0 else self.heads // -asked
        self.form, self.layout = config.attention, config.qkv
        self.scale: float | None = 4.0 / self.size if config.grows == "head size" else self.size**-0.5
        narrow = "narrow" if (config.kv_heads or 0) > 0 and config.grows == "heads" else "hidden"
        if config.qkv == "split":
            self.query = linear(width, width, "hidden", bias=config.biases)
            self.key = linear(width, self.kv_heads * self.size, narrow, bias=config.biases)
            self.value = linear(width, self.kv_heads * self.size, narrow, bias=config.biases)
            if narrow == "narrow" and config.biases:
                raise ValueError("the biases of narrow keys and values do not grow")
        else:
            self.qkv = linear(width, 3 * width, "hidden", bias=config.biases)
        self.output = linear(width, width, "hidden", bias=config.biases)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self._projected(x)
        if "query scaled" in self.form:
            query, scale = query * self.scale, 1.0
        else:
            scale = self.scale
        if "fused" in self.form:
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)
        else:
            mixed = self._eager(query, key, value, scale)
        return self.output(mixed.transpose(1, 2).reshape(x.shape))

    def _projected(self, x: Tensor) -> tuple[Tensor, ...]:
        """(batch, time, n) -> query, key and value (batch, heads, time, head size)."""
        batch, time, _ = x.shape
        if self.layout == "unbind":
            found = self.qkv(x).reshape(batch, time, 3, self.heads, self.size).unbind(2)
        elif self.layout == "chunk":
            found = [part.view(batch, time, self.heads, self.size) for part in self.qkv(x).chunk(3, dim=-1)]
        else:
            found = [part(x).view(batch, time, -1, self.size) for part in (self.query, self.key, self.value)]
        return tuple(
            part.transpose(1, 2).repeat_interleave(self.heads // part.shape[2], dim=1)
            if part.shape[2] != self.heads
            else part.transpose(1, 2)
            for part in found
        )

    def _eager(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        scores = query @ key.transpose(-2, -1)
        if scale != 1.0:
            scores = scores * scale
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        return scores.masked_fill(mask, float("-inf")).softmax(-1) @ value


class FeedForward(nn.Module):
    """(batch, time, n) -> (batch, time, n) through 2 n; a multiplier n ** -theta stands outside of its layers."""

    def __init__(self, width: int, config: Config) -> None:
        super().__init__()
        theta = config.hidden_theta
        self.up = linear(width, 2 * width, "hidden", bias=config.biases, theta=theta)
        self.gate = linear(width, 2 * width, "hidden", theta=theta) if config.mlp == "swiglu" else None
        self.down = linear(2 * width, width, "hidden", bias=config.biases, theta=theta)
        self.multiplier = (width / BASE) ** -theta

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.up(x) * self.multiplier) if self.gate is None else self._gated(x)
        return self.down(x) * self.multiplier

    def _gated(self, x: Tensor) -> Tensor:
        return F.silu(self.gate(x) * self.multiplier) * (self.up(x) * self.multiplier)


class Block(nn.Module):
    """Attention and MLP, each on its normalised input, added to the residual stream."""

    def __init__(self, width: int, config: Config) -> None:
        super().__init__()
        self.norm_1, self.attention = normalised(width, config), Attention(width, config)
        self.norm_2, self.mlp = normalised(width, config), FeedForward(width, config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm_1(x))
        return x + self.mlp(self.norm_2(x))


def normalised(width: int, config: Config) -> nn.Module:
    return vectors(nn.RMSNorm(width) if config.norm == "rms" else nn.LayerNorm(width))


class Transformer(nn.Module):
    """A decoder: (batch, time) tokens -> (batch, time, VOCABULARY)."""

    def __init__(self, width: int, config: Config) -> None:
        super().__init__()
        growth = width / BASE
        self.embedding = nn.Embedding(VOCABULARY, width)
        draw(self.embedding.weight, "input", 1, config.embedding_theta, growth)
        self.positions = draw(torch.empty(CONTEXT, width), "vector", 4)
        self.blocks = nn.ModuleList(Block(width, config) for _ in range(config.depth))
        self.final_norm = normalised(width, config)
        self.readout = None if config.tied else linear(width, VOCABULARY, "readout")
        self.multipliers = {"embedding": growth**-config.embedding_theta, "readout": 1.0}
        if config.tied:
            self.multipliers["readout"] = math.sqrt(BASE) / width

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        if self.multipliers["embedding"] != 1.0:
            x = x * self.multipliers["embedding"]
        x = x + self.positions[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        x = self.final_norm(x)
        logits = F.linear(x, self.embedding.weight) if self.readout is None else self.readout(x)
        return logits if self.readout is not None else logits * self.multipliers["readout"]


class MultiheadNet(nn.Module):
    """A residual `nn.MultiheadAttention` between embedding and readout; its logits are divided by sqrt(head size)."""

    def __init__(self, width: int, *, weights: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        draw(self.embedding.weight, "input", 1)
        self.norm = vectors(nn.LayerNorm(width))
        self.attention = nn.MultiheadAttention(width, width // 16, batch_first=True)
        draw(self.attention.in_proj_weight, "hidden", width)
        draw(self.attention.out_proj.weight, "hidden", width)
        for bias in (self.attention.in_proj_bias, self.attention.out_proj.bias):
            nn.init.zeros_(tag(bias, "vector"))
        self.final_norm = vectors(nn.LayerNorm(width))
        self.readout = linear(width, VOCABULARY, "readout")
        self.weights = weights

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        normal = self.norm(x)
        x = x + self.attention(normal, normal, normal, need_weights=self.weights)[0]
        return self.readout(self.final_norm(x))


# --- families -------------------------------------------------------------------------------------------------------


def next_token_loss(model: nn.Module, tokens: Tensor) -> Tensor:
    """Mean cross-entropy of every token but the first, given those before it."""
    logits = model(tokens[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def labelled_batch(*shape: int) -> tuple[Tensor, Tensor]:
    """Standard normal inputs with random labels."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*shape, generator=generator), torch.randint(CLASSES, shape[:1], generator=generator)


def token_batch() -> Tensor:
    return torch.randint(VOCABULARY, (8, CONTEXT + 1), generator=torch.Generator().manual_seed(0))


def _family(name: str, make: Callable[[int], nn.Module], kind: str, batch: Any, loss: Any, everything: bool) -> Family:
    def build(width: int) -> Setup:
        model = make(width)
        return Setup(model, optimizers(model, kind, width, everything), width)

    return Family(f"{name}, {kind}", build, batch, loss)


def mlp(kind: str, name: str = "mlp", *, everything: bool = False, **options: Any) -> Family:
    made = lambda width: MLP(width, **options)  # noqa: E731
    return _family(name, made, kind, labelled_batch(16, INPUTS), F.cross_entropy, everything)


def lora(kind: str, name: str = "lora", **options: Any) -> Family:
    made = lambda width: LoRANet(width, **options)  # noqa: E731
    return _family(name, made, kind, labelled_batch(16, INPUTS), F.cross_entropy, False)


def moe(kind: str, name: str = "moe", **options: Any) -> Family:
    made = lambda width: MoE(width, **options)  # noqa: E731
    return _family(name, made, kind, labelled_batch(16, INPUTS), F.cross_entropy, False)


def lstm(kind: str, name: str = "lstm") -> Family:
    return _family(name, LSTM, kind, labelled_batch(8, 5, INPUTS), F.cross_entropy, False)


def convnet(kind: str, name: str = "conv", *, everything: bool = False, **options: Any) -> Family:
    made = lambda width: ConvNet(width, **options)  # noqa: E731
    return _family(name, made, kind, labelled_batch(8, 3, 6, 6), F.cross_entropy, everything)


def transformer(kind: str, name: str = "transformer", **options: Any) -> Family:
    config = Config(**options)
    return _family(name, lambda width: Transformer(width, config), kind, token_batch(), next_token_loss, False)


def multihead(kind: str, name: str = "multihead", **options: Any) -> Family:
    made = lambda width: MultiheadNet(width, **options)  # noqa: E731
    return _family(name, made, kind, token_batch(), next_token_loss, False)
