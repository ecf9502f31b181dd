"""The reference MLP, in every parametrization."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from torch import Tensor, nn
from torch.optim import Optimizer

from coordcheck.models.builders import ACTIVATIONS, Linear, check_choice, initialise, make_optimizer, rule_kind
from coordcheck.models.parametrizations import Parametrization, parametrization


class MLP(nn.Module):
    """`depth` hidden layers of `width` units: (batch, inputs) -> (batch, outputs)."""

    def __init__(
        self, width: int, table: Parametrization, *, depth: int, inputs: int, outputs: int, activation: str, bias: bool
    ) -> None:
        super().__init__()
        check_choice("activation", activation, ACTIVATIONS)
        rules = table.rules
        self.input = Linear(inputs, width, role="input", rule=rules["input"], grows=False, bias=bias)
        self.hidden = nn.ModuleList(
            Linear(width, width, role="hidden", rule=rules["hidden"], grows=True, bias=bias) for _ in range(depth - 1)
        )
        self.readout = Linear(width, outputs, role="readout", rule=rules["readout"], grows=True, bias=bias)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.input(x))
        for layer in self.hidden:
            x = self.activation(layer(x))
        output: Tensor = self.readout(x)
        return output

    def roles(self) -> Iterator[tuple[nn.Parameter, str]]:
        """Every parameter with its role in the parametrization's table."""
        for layer in (self.input, *self.hidden, self.readout):
            assert isinstance(layer, Linear)
            yield layer.weight, layer.role
            if layer.bias is not None:
                yield layer.bias, "readout bias" if layer is self.readout else "bias"


def mlp(
    parametrization: str = "µP",
    optimizer: str = "adam",
    *,
    lr: float = 1e-3,
    base_width: int = 64,
    depth: int = 3,
    inputs: int = 64,
    outputs: int = 10,
    activation: str = "relu",
    bias: bool = True,
    zero_init: Sequence[str] = (),
) -> Callable[[int], tuple[nn.Module, Optimizer]]:
    """A `build(width)` for an MLP of `depth` hidden layers.

    Args:
        parametrization: "SP", "SP (PyTorch)", "NTK", "mean-field" or "µP".
        optimizer: "sgd", "adam" or "adamw".
        lr: the learning rate at `base_width`, where all parametrizations use the same one.
        zero_init: roles whose weights start at zero, such as ("readout",).

    Raises:
        CoordCheckError: a name or option that is not known.
    """
    table = _table(parametrization, optimizer)
    options = {"depth": depth, "inputs": inputs, "outputs": outputs, "activation": activation, "bias": bias}
    return partial(
        _build, table=table, optimizer=optimizer, lr=lr, base_width=base_width, zero_init=tuple(zero_init), **options
    )


def _table(name: str, optimizer: str) -> Parametrization:
    return parametrization("mlp", name, rule_kind(optimizer))


def _build(
    width: int,
    *,
    table: Parametrization,
    optimizer: str,
    lr: float,
    base_width: int,
    zero_init: tuple[str, ...],
    depth: int,
    inputs: int,
    outputs: int,
    activation: str,
    bias: bool,
) -> tuple[nn.Module, Optimizer]:
    model = MLP(width, table, depth=depth, inputs=inputs, outputs=outputs, activation=activation, bias=bias)
    initialise(model, table, zero_init)
    return model, make_optimizer(model.roles(), table, optimizer=optimizer, lr=lr, scale=width / base_width)
