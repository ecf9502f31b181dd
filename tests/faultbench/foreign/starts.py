"""First calls on a zero state, parameters that the loss does not depend on, branches and low-rank factors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faultbench.families import CLASSES, INPUTS, draw, linear, tag, vectors
from faultbench.faults import init, lr
from faultbench.foreign.kit import Kind

# --- m: the first call on a zero state ------------------------------------------------------------------------------


class Recurrence(nn.Module):
    """(batch, time, n) -> (batch, 1, n): tanh(W h + U x) from h = 0, by hand."""

    def __init__(self, width: int, *, gated: bool = False) -> None:
        super().__init__()
        self.state, self.taken = linear(width, width, "hidden", bias=True), linear(width, width, "hidden")
        self.gate = linear(width, width, "hidden") if gated else None

    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros_like(x[:, 0])
        for time in range(x.shape[1]):
            new = torch.tanh(self.state(state) + self.taken(x[:, time]))
            state = new if self.gate is None else torch.lerp(state, new, torch.sigmoid(self.gate(state)))
        return state.unsqueeze(1)


class Equilibrium(nn.Module):
    """z = norm(tanh(W z / 2 + U x)), six times from z = 0, the last one alone with a gradient, or all of them."""

    def __init__(self, width: int, *, last: bool = True) -> None:
        super().__init__()
        self.inner, self.taken = linear(width, width, "hidden"), linear(width, width, "hidden")
        self.norm, self.last = vectors(nn.LayerNorm(width)), last

    def turn(self, state: Tensor, given: Tensor) -> Tensor:
        return self.norm(torch.tanh(self.inner(state) * 0.5 + given))

    def forward(self, x: Tensor) -> Tensor:
        given, state = self.taken(x), torch.zeros_like(x)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.last):
            for _ in range(5):
                state = self.turn(state, given)
        return self.turn(state, given)


class Memory(nn.Module):
    """(batch, time, n) -> (batch, 1, n): a memory matrix of zeros, written by v k^T and read before it is written."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.key, self.value, self.read = (
            linear(width, 8, "narrow"),
            linear(width, width, "hidden"),
            linear(width, width, "hidden"),
        )

    def forward(self, x: Tensor) -> Tensor:
        memory, found = x.new_zeros(len(x), x.shape[-1], 8), torch.zeros_like(x[:, 0])
        for time in range(x.shape[1]):
            key = F.rms_norm(self.key(x[:, time]), (8,))
            found = self.read(torch.einsum("bnk,bk->bn", memory, key) / 8)
            memory = memory + torch.einsum("bn,bk->bnk", torch.tanh(self.value(x[:, time])), key)
        return found.unsqueeze(1)


def _zero_states() -> None:
    kind = Kind("m", "the first call on a zero state")
    plain, plain_sgd = kind.net("recurrence", Recurrence, times=4), kind.net("recurrence", Recurrence, "sgd", times=4)
    gated = kind.net("gated recurrence", lambda n: Recurrence(n, gated=True), "adamw", times=4)
    once, whole = (
        kind.net("equilibrium", Equilibrium),
        kind.net("equilibrium, all steps", lambda n: Equilibrium(n, last=False), "sgd"),
    )
    memory = kind.net("memory", Memory, times=4)
    for family in (plain, plain_sgd, gated, once, whole, memory):
        kind.healthy(family)
    kind.planted(plain, "state lr", "base rate of the recurrent matrix", lr(1, "middle.state.weight"))
    kind.planted(plain, "taken init", "what is taken in too small", init(-0.5, "middle.taken.weight"))
    kind.planted(plain_sgd, "state lr 1/n", "Adam's rule under SGD", lr(-1, "middle.state.weight"))
    kind.planted(plain_sgd, "state init", "a recurrent matrix too small", init(-0.5, "middle.state.weight"))
    kind.planted(gated, "gate init", "a gate of constant size", init(0.5, "middle.gate.weight"))
    kind.planted(gated, "state lr sqrt", "a rate of n ** -1/2", lr(0.5, "middle.state.weight"))
    kind.planted(once, "inner lr", "base rate of the equilibrium's matrix", lr(1, "middle.inner.weight"))
    kind.planted(once, "inner init", "the equilibrium's matrix too small", init(-0.5, "middle.inner.weight"))
    kind.planted(whole, "taken lr 1/n", "Adam's rule under SGD", lr(-1, "middle.taken.weight"))
    kind.planted(memory, "read init", "a memory read with constant size", init(0.5, "middle.read.weight"))


# --- n: parameters that the loss does not depend on -----------------------------------------------------------------


class BeforeBatchNorm(nn.Module):
    """A layer with a bias, and the batch normalisation that takes it away; (batch, n) or as 3 x 3 convolution."""

    def __init__(self, width: int, *, conv: bool = False) -> None:
        super().__init__()
        if conv:
            self.layer: nn.Module = nn.Conv2d(width, width, 3, padding=1)
            draw(self.layer.weight, "hidden", 9 * width)
            self.norm: nn.Module = vectors(nn.BatchNorm2d(width))
        else:
            self.layer, self.norm = linear(width, width, "hidden", bias=True), vectors(nn.BatchNorm1d(width))
        nn.init.zeros_(tag(self.layer.bias, "vector"))
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        if not self.conv:
            return self.norm(self.layer(x))
        x = x[:, :, None, None] * torch.linspace(0.5, 1.5, 16, device=x.device).view(4, 4)
        return F.relu(self.norm(self.layer(x))).mean((-2, -1))


class KeyBias(nn.Module):
    """Self-attention with biases, of which the softmax takes the key's away."""

    def __init__(self, width: int) -> None:
        super().__init__()
        names = ("query", "key", "value", "output")
        self.layers = nn.ModuleDict({name: linear(width, width, "hidden", bias=True) for name in names})

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x, x.shape[-1:])
        heads = [self.layers[n](x).unflatten(-1, (4, -1)).transpose(1, 2) for n in ("query", "key", "value")]
        mixed = F.scaled_dot_product_attention(*heads, scale=4 / heads[0].shape[-1])
        return self.layers["output"](mixed.transpose(1, 2).flatten(2))


class Ignored(nn.Module):
    """A matrix, a number that a norm takes away, one times zero, and one that is never used."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.matrix = linear(width, width, "hidden")
        self.shift, self.lost, self.unused = (tag(nn.Parameter(torch.zeros(1)), "constant") for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.matrix(x) + self.shift
        return F.layer_norm(x, x.shape[-1:]) + 0.0 * self.lost


class Shifted(nn.Module):
    """(batch, INPUTS) -> (batch, CLASSES): one number is added to all logits, and one to all coordinates of a layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.input, self.hidden = linear(INPUTS, width, "input"), linear(width, width, "hidden")
        self.shift, self.common = (tag(nn.Parameter(torch.zeros(1)), "constant") for _ in range(2))
        self.readout = linear(width, CLASSES, "readout")

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(torch.tanh(self.input(x)) + self.shift, self.hidden.weight.shape[:1])
        return self.readout(torch.tanh(self.hidden(x))) + self.common


class BeforeInstanceNorm(nn.Module):
    """A bias per channel that an instance normalisation takes away: (batch, n) as 8 positions of n / 8 channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.matrix, self.bias = linear(width, width, "hidden"), tag(nn.Parameter(torch.zeros(width // 8, 1)), "vector")

    def forward(self, x: Tensor) -> Tensor:
        return F.instance_norm(self.matrix(x).unflatten(-1, (-1, 8)) + self.bias).flatten(1)


def _ignored() -> None:
    kind = Kind("n", "parameters that the loss does not depend on")
    batch, batch_sgd = (
        kind.net("bias before batch norm", BeforeBatchNorm),
        kind.net("bias before batch norm", BeforeBatchNorm, "sgd"),
    )
    conv = kind.net("conv bias before batch norm", lambda n: BeforeBatchNorm(n, conv=True), "adamw")
    conv_sgd = kind.net("conv bias before batch norm", lambda n: BeforeBatchNorm(n, conv=True), "momentum")
    keys = kind.net("key bias", KeyBias, times=6, residual=True)
    ignored = kind.net("ignored numbers", Ignored, "sign")
    shifted, shifted_sgd = kind.family("common shifts", Shifted), kind.family("common shifts", Shifted, "sgd")
    instance = kind.net("bias before instance norm", BeforeInstanceNorm, "momentum")
    for family in (batch, batch_sgd, conv, conv_sgd, keys, ignored, shifted, shifted_sgd, instance):
        kind.healthy(family)
    kind.planted(batch, "weight lr", "base rate in front of batch norm", lr(1, "middle.layer.weight"))
    kind.planted(batch_sgd, "gain lr const", "a gain without SGD's factor n", lr(-1, "middle.norm.weight"))
    kind.planted(conv, "weight lr", "base rate in front of batch norm", lr(1, "middle.layer.weight"))
    kind.planted(conv, "input init", "the first layer too small", init(-0.5, "input.weight"))
    kind.planted(conv_sgd, "weight lr 1/n", "Adam's rule under SGD", lr(-1, "middle.layer.weight"))
    kind.planted(conv_sgd, "readout lr", "the readout keeps its rate", lr(1, "readout.weight"))
    kind.planted(keys, "value bias lr 1/n", "a bias scaled as a matrix", lr(-1, "middle.layers.value.bias"))
    kind.planted(keys, "output init", "constant size", init(0.5, "middle.layers.output.weight"))
    kind.planted(shifted, "hidden lr", "base rate beside shifts", lr(1, "hidden.weight"))
    kind.planted(shifted, "readout init", "the readout as a hidden layer", init(0.5, "readout.weight"))
    kind.planted(shifted_sgd, "input lr const", "without SGD's factor n", lr(-1, "input.weight"))
    kind.planted(instance, "matrix lr 1/n", "Adam's rule under SGD", lr(-1, "middle.matrix.weight"))
    kind.planted(instance, "readout lr", "the readout keeps its rate", lr(1, "readout.weight"))
    kind.planted(ignored, "matrix lr", "base rate beside ignored numbers", lr(1, "middle.matrix.weight"))


# --- p: branches and low-rank factors -------------------------------------------------------------------------------


class Branches(nn.Module):
    """Four residual branches with a number in front: 1 / sqrt(4), a trained zero (ReZero) or a vector (LayerScale)."""

    def __init__(self, width: int, front: str) -> None:
        super().__init__()
        self.up, self.down = (nn.ModuleList(linear(width, width, "hidden") for _ in range(4)) for _ in range(2))
        start = {"rezero": torch.zeros(1), "layerscale": torch.full((width,), 0.1)}.get(front)
        role = "constant" if front == "rezero" else "vector"
        made = [] if start is None else [tag(nn.Parameter(start.clone()), role) for _ in range(4)]
        self.front = nn.ParameterList(made)

    def forward(self, x: Tensor) -> Tensor:
        for number, (up, down) in enumerate(zip(self.up, self.down, strict=True)):
            branch = down(F.relu(up(F.rms_norm(x, x.shape[-1:]))))
            x = x + branch * (self.front[number] if len(self.front) else 0.5)
        return F.rms_norm(x, x.shape[-1:])


class Factors(nn.Module):
    """A frozen matrix with an adapter of rank 8 at alpha / sqrt(r); B of zeros, or both factors drawn and no base."""

    def __init__(self, width: int, *, base: bool = True) -> None:
        super().__init__()
        self.base = linear(width, width, "hidden").requires_grad_(False) if base else None
        self.down, self.up = linear(width, 8, "narrow"), linear(8, width, "input")
        if base:
            nn.init.zeros_(self.up.weight)
        self.scale = 16 / 8**0.5 if base else 1.0

    def forward(self, x: Tensor) -> Tensor:
        adapted = self.up(self.down(x)) * self.scale
        return adapted if self.base is None else self.base(x) + adapted


def _branches() -> None:
    kind = Kind("p", "branches and low-rank factors")
    root = kind.net("1/sqrt(L)", lambda n: Branches(n, "root"))
    root_sgd = kind.net("1/sqrt(L)", lambda n: Branches(n, "root"), "sgd")
    rezero = kind.net("ReZero", lambda n: Branches(n, "rezero"))
    scaled = kind.net("LayerScale", lambda n: Branches(n, "layerscale"), "adamw")
    adapter = kind.net("adapter", Factors, activation=torch.tanh)
    adapter_sign = kind.net("adapter", Factors, "sign", activation=torch.tanh)
    factors = kind.net("two factors", lambda n: Factors(n, base=False), "sign", activation=torch.tanh)
    for family in (root, root_sgd, rezero, scaled, adapter, adapter_sign, factors):
        kind.healthy(family)
    kind.planted(root, "one down init", "one branch of constant size", init(0.5, "middle.down.2.weight"))
    kind.planted(root, "one up lr", "base rate in one branch", lr(1, "middle.up.1.weight"))
    kind.planted(root_sgd, "one down lr 1/n", "Adam's rule under SGD", lr(-1, "middle.down.0.weight"))
    kind.planted(rezero, "numbers lr 1/n", "branches opened too slowly", lr(-1, "middle.front.*"))
    kind.planted(rezero, "one up init", "one closed branch too small", init(-0.5, "middle.up.1.weight"))
    kind.planted(scaled, "vectors lr 1/n", "vectors scaled as matrices", lr(-1, "middle.front.*"))
    kind.planted(scaled, "vectors init", "vectors too small", init(-0.5, "middle.front.1"))
    kind.planted(adapter, "A init const", "A of constant size", init(0.5, "middle.down.weight"))
    kind.planted(adapter, "B lr 1/n", "B scaled as a hidden matrix", lr(-1, "middle.up.weight"))
    kind.planted(adapter_sign, "A lr", "base rate of A", lr(1, "middle.down.weight"))
    kind.planted(factors, "A lr", "base rate of A", lr(1, "middle.down.weight"))
    kind.planted(factors, "B init", "B too small", init(-0.5, "middle.up.weight"))


_zero_states()
_ignored()
_branches()
