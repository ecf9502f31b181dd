"""The reference decoder-only Transformer (pre-norm), in every parametrization."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coordcheck.common.errors import CoordCheckError
from coordcheck.models.builders import ACTIVATIONS, Builder, Linear, builder, check_choice
from coordcheck.models.parametrizations import Parametrization

GROWS = ("head size", "heads")
NORMS = ("rmsnorm", "layernorm")


@dataclass(frozen=True)
class TransformerConfig:
    """Everything but the width.

    The width M is heads x head size: `grows` says which of the two grows with it, the other one stays at
    `heads` or `head_size`. `kv_heads` below the number of heads is grouped-query attention, 1 multi-query.
    """

    vocabulary: int = 256
    context: int = 64
    depth: int = 2
    grows: str = "head size"
    heads: int = 4
    head_size: int = 16
    kv_heads: int | None = None
    mlp_ratio: int = 4
    norm: str = "rmsnorm"
    gains: bool = True
    activation: str = "gelu"
    biases: bool = False
    tied: bool = False
    attention_scale: str | None = None
    """"1/D" or "1/sqrt(D)"; None takes the parametrization's."""

    def __post_init__(self) -> None:
        check_choice("grows", self.grows, GROWS)
        check_choice("norm", self.norm, NORMS)
        check_choice("activation", self.activation, [*ACTIVATIONS, "swiglu"])
        check_choice("attention_scale", self.attention_scale, ["1/D", "1/sqrt(D)", None])

    def heads_at(self, width: int) -> tuple[int, int]:
        """(heads, head size) at a width.

        Returns:
            Two numbers whose product is the width.

        Raises:
            CoordCheckError: the width is not a multiple of the part that stays fixed.
        """
        fixed = self.heads if self.grows == "head size" else self.head_size
        if width % fixed:
            raise CoordCheckError(f"width {width} is not a multiple of {fixed}, the part that does not grow.")
        return (fixed, width // fixed) if self.grows == "head size" else (width // fixed, fixed)


class Attention(nn.Module):
    """Causal self-attention through `scaled_dot_product_attention`: (batch, time, M) -> (batch, time, M)."""

    def __init__(self, width: int, config: TransformerConfig, table: Parametrization) -> None:
        super().__init__()
        self.heads, self.head_size = config.heads_at(width)
        self.kv_heads = config.kv_heads or self.heads
        if self.heads % self.kv_heads:
            raise CoordCheckError(f"{self.heads} heads cannot share {self.kv_heads} key and value heads.")
        exponent = {"1/D": -1.0, "1/sqrt(D)": -0.5, None: table.attention}[config.attention_scale]
        self.scale = self.head_size**exponent
        kv_width = self.kv_heads * self.head_size
        self.query = _linear(width, width, "query", table, config)
        self.key = _linear(width, kv_width, "key", table, config)
        self.value = _linear(width, kv_width, "value", table, config)
        self.output = _linear(width, width, "attention output", table, config)

    def forward(self, x: Tensor) -> Tensor:
        batch, time, width = x.shape
        query = self.query(x).view(batch, time, self.heads, self.head_size).transpose(1, 2)
        key, value = (
            layer(x)
            .view(batch, time, self.kv_heads, self.head_size)
            .transpose(1, 2)
            # (batch, kv_heads, time, D) -> (batch, heads, time, D)
            .repeat_interleave(self.heads // self.kv_heads, dim=1)
            for layer in (self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=self.scale)
        return self.output(mixed.transpose(1, 2).reshape(batch, time, width))


class FeedForward(nn.Module):
    """The MLP of a block: (batch, time, M) -> (batch, time, M)."""

    def __init__(self, width: int, config: TransformerConfig, table: Parametrization) -> None:
        super().__init__()
        inner = config.mlp_ratio * width
        self.up = _linear(width, inner, "mlp in", table, config)
        self.gate = _linear(width, inner, "mlp in", table, config) if config.activation == "swiglu" else None
        self.down = _linear(inner, width, "mlp out", table, config)
        self.activation = ACTIVATIONS.get(config.activation, F.silu)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.up(x)
        hidden = self.activation(hidden) if self.gate is None else self.activation(self.gate(x)) * hidden
        return self.down(hidden)


class Block(nn.Module):
    """Attention and MLP, each on its normalised input, added to the residual stream."""

    def __init__(self, width: int, config: TransformerConfig, table: Parametrization) -> None:
        super().__init__()
        self.attention_norm = _norm(width, config)
        self.attention = Attention(width, config, table)
        self.mlp_norm = _norm(width, config)
        self.mlp = FeedForward(width, config, table)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class Transformer(nn.Module):
    """Decoder-only language model with learned positions: (batch, time) token ids -> (batch, time, vocabulary)."""

    def __init__(self, width: int, config: TransformerConfig, table: Parametrization) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.vocabulary, width)
        self.positions = nn.Embedding(config.context, width)
        self.blocks = nn.ModuleList(Block(width, config, table) for _ in range(config.depth))
        self.final_norm = _norm(width, config)
        if config.tied:
            self.unembedding = None
            self.readout_multiplier = width ** table.rules["tied unembedding"].multiplier
        else:
            self.unembedding = _linear(width, config.vocabulary, "unembedding", table, config)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        x = self.final_norm(x)
        if self.unembedding is None:
            return F.linear(x * self.readout_multiplier, self.embedding.weight)
        return self.unembedding(x)

    def roles(self) -> Iterator[tuple[Tensor, str]]:
        """Every parameter with its role in the parametrization's table."""
        for module in self.modules():
            if isinstance(module, Linear):
                yield module.weight, module.role
                if module.bias is not None:
                    yield module.bias, "unembedding bias" if module is self.unembedding else "bias"
            elif isinstance(module, nn.Embedding):
                yield module.weight, "embedding"
            elif isinstance(module, (nn.RMSNorm, nn.LayerNorm)):
                for name, parameter in module.named_parameters():
                    yield parameter, "gain" if name == "weight" else "bias"


def _linear(inputs: int, outputs: int, role: str, table: Parametrization, config: TransformerConfig) -> Linear:
    return Linear(inputs, outputs, role=role, rule=table.rules[role], grows=True, bias=config.biases)


def _norm(width: int, config: TransformerConfig) -> nn.Module:
    if config.norm == "rmsnorm":
        return nn.RMSNorm(width, eps=1e-6, elementwise_affine=config.gains)
    return nn.LayerNorm(width, elementwise_affine=config.gains, bias=config.biases)


def transformer(
    parametrization: str = "µP",
    optimizer: str = "adam",
    *,
    lr: float = 1e-3,
    base_width: int = 64,
    zero_init: tuple[str, ...] = (),
    **config: Any,
) -> Builder:
    """A `build(width)` for the reference Transformer.

    Args:
        parametrization: "SP", "SP (PyTorch)", "NTK", "mean-field" or "µP".
        optimizer: "sgd", "adam" or "adamw".
        lr: the learning rate at `base_width`.
        base_width: the width at which every parametrization uses the same learning rates.
        zero_init: roles whose weights start at zero, such as ("unembedding", "query").
        config: the fields of `TransformerConfig`.

    Returns:
        `build(width) -> (model, optimizer)`, which takes (batch, time) integers and gives (batch, time, vocabulary)
        logits.

    Raises:
        CoordCheckError: a name or option that is not known.
    """
    options: dict[str, Any] = {"optimizer": optimizer, "lr": lr, "base_width": base_width, "zero_init": zero_init}
    return builder("transformer", Transformer, TransformerConfig, parametrization, config, **options)
