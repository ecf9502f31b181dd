"""The reference MLP, in every parametrization."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from coordcheck.models.builders import ACTIVATIONS, Builder, Linear, builder, check_choice
from coordcheck.models.parametrizations import Parametrization


@dataclass(frozen=True)
class MLPConfig:
    """Everything but the width of the hidden layers, of which there are `depth`."""

    depth: int = 3
    inputs: int = 64
    outputs: int = 10
    activation: str = "relu"
    biases: bool = True

    def __post_init__(self) -> None:
        check_choice("activation", self.activation, ACTIVATIONS)


class MLP(nn.Module):
    """`depth` hidden layers of `width` units: (batch, inputs) -> (batch, outputs)."""

    def __init__(self, width: int, config: MLPConfig, table: Parametrization) -> None:
        super().__init__()
        rules, bias = table.rules, config.biases
        self.input = Linear(config.inputs, width, role="input", rule=rules["input"], grows=False, bias=bias)
        self.hidden = nn.ModuleList(
            Linear(width, width, role="hidden", rule=rules["hidden"], grows=True, bias=bias)
            for _ in range(config.depth - 1)
        )
        self.readout = Linear(width, config.outputs, role="readout", rule=rules["readout"], grows=True, bias=bias)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.input(x))
        for layer in self.hidden:
            x = self.activation(layer(x))
        return self.readout(x)

    def roles(self) -> Iterator[tuple[Tensor, str]]:
        """Every parameter with its role in the parametrization's table."""
        for layer in self.modules():
            if isinstance(layer, Linear):
                yield layer.weight, layer.role
                if layer.bias is not None:
                    yield layer.bias, "readout bias" if layer is self.readout else "bias"


def mlp(
    parametrization: str = "µP",
    optimizer: str = "adam",
    *,
    lr: float = 1e-3,
    base_width: int = 64,
    zero_init: tuple[str, ...] = (),
    **config: Any,
) -> Builder:
    """A `build(width)` for the reference MLP.

    Args:
        parametrization: "SP", "SP (PyTorch)", "NTK", "mean-field" or "µP".
        optimizer: "sgd", "adam" or "adamw".
        lr: the learning rate at `base_width`.
        base_width: the width at which every parametrization uses the same learning rates.
        zero_init: roles whose weights start at zero, such as ("readout",).
        config: the fields of `MLPConfig`.

    Returns:
        `build(width) -> (model, optimizer)`, which takes batches (x, y) with x of 64 inputs and y one of 10 classes.

    Raises:
        CoordCheckError: a name or option that is not known.
    """
    options: dict[str, Any] = {"optimizer": optimizer, "lr": lr, "base_width": base_width, "zero_init": zero_init}
    return builder("mlp", MLP, MLPConfig, parametrization, config, **options)
