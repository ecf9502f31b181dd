"""The planted faults with their truths, and the healthy controls.

A fault is a family with changes; a change breaks one thing by a power e of width / base width, and the truth follows:
the remedy is the power -e of what was changed. Where changes meet in one parameter the truth is written out, by the
rule of abc-parametrizations: gain and response off by e and (1 + k) e, for an optimizer of degree k, is its multiplier.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from faultbench.families import (
    Experts,
    Family,
    PlainNorm,
    Setup,
    StackedExperts,
    convnet,
    lora,
    lstm,
    mlp,
    moe,
    multihead,
    spectral_scale,
    transformer,
)

Truth = dict[str, tuple[str, float]]


@dataclass(frozen=True)
class Build:
    """What is handed to `coordcheck`: width -> (model, optimizer), with the changes made."""

    family: Family
    changes: tuple[Change, ...] = ()

    def setup(self, width: int) -> Setup:
        setup = self.family.build(width)
        for change in self.changes:
            change.apply(setup)
        return setup

    def __call__(self, width: int) -> tuple[nn.Module, Any]:
        return self.setup(width).trial()


@dataclass(frozen=True)
class Change:
    """One thing done to a correct model, and what mends it."""

    apply: Callable[[Setup], Any]
    truth: Callable[[Family], Truth] = field(default=lambda family: {})


@dataclass(frozen=True)
class Fault:
    """A broken model with its truth; a control when nothing is broken."""

    name: str
    build: Build
    batch: Any
    loss: Callable[..., Tensor]
    truth: Mapping[str, tuple[str, float]]
    """Culprit -> (cause, the power of width / base width that mends it). A culprit is the name of a parameter, a block
    `name[i]` of its rows, or for "attention scale" and "forward scale" the path of the module."""
    mechanism: str
    source: str = ""
    correct: Build | None = None
    """The model without the fault."""
    kind: str = ""
    """The letter of its kind, of those in `foreign`; none for the cases of the bench itself."""

    @property
    def healthy(self) -> bool:
        return not self.truth


def split(name: str) -> Literal["dev", "held-out"]:
    """The half of a case: "dev" when the first byte of the sha256 of its name is even, "held-out" when it is odd."""
    return "held-out" if hashlib.sha256(name.encode()).digest()[0] % 2 else "dev"


# --- changes --------------------------------------------------------------------------------------------------------


@cache
def parameter_names(build: Callable[[int], Setup]) -> tuple[str, ...]:
    with torch.random.fork_rng([]):
        return tuple(build(64).parameters)


def _matching(family: Family, globs: tuple[str, ...]) -> list[str]:
    """The parameters meant by globs, of which each must mean one at least."""
    names = parameter_names(family.build)
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in names):
            raise LookupError(f"{family.name} has no parameter {glob!r}, only {names}")
    return [name for name in names if any(fnmatchcase(name, glob) for glob in globs)]


def _on_parameters(
    globs: tuple[str, ...], cause: str, exponent: float, act: Callable[[Setup, str], Any], block: str = ""
) -> Change:
    def apply(setup: Setup) -> None:
        for name in setup.parameters:
            if any(fnmatchcase(name, glob) for glob in globs):
                act(setup, name)

    return Change(apply, lambda family: {name + block: (cause, float(exponent)) for name in _matching(family, globs)})


def init(power: float, *globs: str) -> Change:
    """The initial values of some parameters, times growth ** power."""

    def act(setup: Setup, name: str) -> None:
        with torch.no_grad():
            setup.parameters[name].mul_(setup.growth**power)

    return _on_parameters(globs, "init", -power, act)


def init_block(power: float, name: str, index: int, blocks: int) -> Change:
    """The initial values of one of the equal blocks that a fused parameter consists of along its first axis."""

    def act(setup: Setup, name: str) -> None:
        with torch.no_grad():
            setup.parameters[name].chunk(blocks)[index].mul_(setup.growth**power)

    return _on_parameters((name,), "init", -power, act, f"[{index}]")


def lr(power: float, *globs: str) -> Change:
    """The learning rates of some parameters, times growth ** power."""

    def act(setup: Setup, name: str) -> None:
        setup.groups[name]["lr"] *= setup.growth**power

    return _on_parameters(globs, "lr", -power, act)


def gradient_block(power: float, name: str, index: int, blocks: int) -> Change:
    """The gradient of one block, times growth ** power: under an optimizer of degree 1 that block's learning rate."""

    def act(setup: Setup, name: str) -> None:
        def scaled(gradient: Tensor) -> Tensor:
            gradient = gradient.clone()
            gradient.chunk(blocks)[index].mul_(setup.growth**power)
            return gradient

        setup.parameters[name].register_hook(scaled)

    return _on_parameters((name,), "lr", -power, act, f"[{index}]")


def stopped(*globs: str) -> Change:
    """A learning rate of 0."""
    return _on_parameters(globs, "frozen", math.nan, lambda setup, name: setup.groups[name].update(lr=0.0))


def left_out(*globs: str) -> Change:
    """Not given to any optimizer."""

    def act(setup: Setup, name: str) -> None:
        for optimizer in setup.optimizers:
            optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["name"] != name]

    return _on_parameters(globs, "frozen", math.nan, act)


def multiplier(power: float, key: str, *globs: str, module: str = "") -> Change:
    """A multiplier that stands outside of the modules, times growth ** power."""

    def apply(setup: Setup) -> None:
        owner = setup.model.get_submodule(module)
        if isinstance(getattr(owner, key, None), float):
            setattr(owner, key, getattr(owner, key) * setup.growth**power)
        else:
            owner.multipliers[key] *= setup.growth**power

    return Change(apply, lambda family: dict.fromkeys(_matching(family, globs), ("multiplier", float(-power))))


def attention_scale(power: float, *paths: str) -> Change:
    """The scale of attention logits, times growth ** power."""

    def apply(setup: Setup) -> None:
        for path in paths:
            setup.model.get_submodule(path).scale *= setup.growth**power

    return Change(apply, lambda family: dict.fromkeys(paths, ("attention scale", float(-power))))


def default_attention_scale(*paths: str) -> Change:
    """No scale given to fused attention, which then divides by sqrt(head size)."""

    def apply(setup: Setup) -> None:
        for path in paths:
            setup.model.get_submodule(path).scale = None

    return Change(apply, lambda family: dict.fromkeys(paths, ("attention scale", -0.5)))


def act(function: Callable[[Setup], Any]) -> Change:
    """Anything else; its truth is written out."""
    return Change(function)


def _one_rate(setup: Setup) -> None:
    """A scheduler that gives every group the rate of the base width, whatever it was built with."""
    for optimizer in setup.optimizers:
        rate = optimizer.defaults["lr"]

        def overwrite(optimizer: Any, *_: Any, rate: float = rate) -> None:
            for group in optimizer.param_groups:
                group["lr"] = rate

        optimizer.register_step_pre_hook(overwrite)


def _warm_up(setup: Setup) -> None:
    """Every group's own rate, times 0, 1/2, 1, 1, ..."""
    for optimizer in setup.optimizers:
        scheduler = LambdaLR(optimizer, lambda step: min(1.0, step / 2))
        optimizer.register_step_post_hook(lambda *_, scheduler=scheduler: scheduler.step())


def _clip(threshold: float) -> Change:
    """Clip the norm of the gradient of all parameters that an optimizer holds, before its step."""

    def clip(optimizer: Any, *_: Any) -> None:
        nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], threshold)

    def apply(setup: Setup) -> None:
        for optimizer in setup.optimizers:
            optimizer.register_step_pre_hook(clip)

    return act(apply)


def _orthogonal(setup: Setup, *names: str) -> None:
    for name in names:
        nn.init.orthogonal_(setup.parameters[name])


def _zero(setup: Setup, *globs: str) -> None:
    for name in setup.parameters:
        if any(fnmatchcase(name, glob) for glob in globs):
            nn.init.zeros_(setup.parameters[name])


def _uniform(setup: Setup) -> None:
    """Uniform draws of the same standard deviation."""
    for parameter in setup.parameters.values():
        if parameter.dim() > 1:
            bound = math.sqrt(3) * float(parameter.detach().square().mean().sqrt())
            nn.init.uniform_(parameter, -bound, bound)


def _fan_out(setup: Setup, *names: str) -> None:
    for name in names:
        nn.init.kaiming_normal_(setup.parameters[name], mode="fan_out")


def _muon_scale(setup: Setup, scale: Callable[[torch.Size], float]) -> None:
    setup.optimizers[0].scale = scale  # type: ignore[attr-defined]


def _kernel_ratio(shape: torch.Size) -> float:
    return math.sqrt(shape[2] / shape[3]) if len(shape) > 2 else spectral_scale(shape)


def _over_area(shape: torch.Size) -> float:
    return spectral_scale(shape) / (math.sqrt(math.prod(shape)) if len(shape) > 2 else 1.0)


def _match_rms(setup: Setup) -> None:
    for group in setup.optimizers[0].param_groups:
        group["adjust_lr_fn"] = "match_rms_adamw"


def _four_heads(setup: Setup) -> None:
    setup.model.attention.num_heads, setup.model.attention.head_dim = 4, setup.width // 4


class UnitNorm(nn.Module):
    """x / ||x||: coordinates of size n ** -1/2."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.normalize(x, dim=-1)


class AbsoluteSumNorm(nn.Module):
    """x / sum |x|: coordinates of size 1 / n."""

    def forward(self, x: Tensor) -> Tensor:
        return x / (x.abs().sum(-1, keepdim=True) + 1e-12)


# --- the registry ---------------------------------------------------------------------------------------------------

REGISTRY: dict[str, Fault] = {}


def fault(
    family: Family,
    slug: str,
    mechanism: str,
    *changes: Change,
    truth: Truth | None = None,
    source: str = "",
    correct: Family | None = None,
    kind: str = "",
) -> None:
    """Put a fault into the registry; without a truth of its own it has that of its changes.

    `correct` is the family it should have been, where that is not its own without the changes.
    """
    found = truth if truth is not None else {k: v for change in changes for k, v in change.truth(family).items()}
    if not found:
        raise ValueError(f"{family.name}: {slug} has no truth")
    name, build, right = f"{family.name}: {slug}", Build(family, changes), Build(correct or family)
    _register(Fault(name, build, family.batch, family.loss, found, mechanism, source, right, kind))


def control(
    family: Family, slug: str = "healthy", mechanism: str = "correct in µP", *changes: Change, kind: str = ""
) -> None:
    """Put a healthy model into the registry."""
    name, build = f"{family.name}: {slug}", Build(family, changes)
    _register(Fault(name, build, family.batch, family.loss, {}, mechanism, kind=kind))


def _register(case: Fault) -> None:
    if case.name in REGISTRY:
        raise ValueError(f"two cases are called {case.name!r}")
    REGISTRY[case.name] = case


def faults(half: str | None = None, kind: str = "") -> list[Fault]:
    return [case for case in _cases_of(half, kind) if not case.healthy]


def controls(half: str | None = None, kind: str = "") -> list[Fault]:
    return [case for case in _cases_of(half, kind) if case.healthy]


def _cases_of(half: str | None, kind: str) -> list[Fault]:
    return [case for case in REGISTRY.values() if case.kind == kind and half in (None, split(case.name))]


def _mlp() -> None:
    relu = nn.functional.relu
    adam, sgd, momentum = mlp("adam"), mlp("sgd"), mlp("momentum", "mlp tanh", activation=torch.tanh, depth=3)
    sign = mlp("sign", "mlp gelu", activation=nn.functional.gelu, depth=3)
    adamw = mlp("adamw", "mlp deep", activation=relu, depth=4)
    deep_sgd = mlp("sgd", "mlp gelu deep", activation=nn.functional.gelu, depth=4)
    for family in (adam, sgd, momentum, sign, adamw, deep_sgd):
        control(family)
    hidden, biases = "hidden.*.weight", ("input.bias", "hidden.*.bias")

    never = "µP never switched on: every layer as in SP"
    source = "EleutherAI/gpt-neox#1061"
    sp_init = init(0.5, "readout.weight")
    for family, depth in ((adam, 2), (sign, 3)):
        sp: Truth = {f"hidden.{i}.weight": ("lr", -1.0) for i in range(depth - 1)}
        sp |= {"readout.weight": ("init", -0.5)}
        fault(family, "SP", never, lr(1, hidden, "readout.weight"), sp_init, truth=sp, source=source)
    for family, depth in ((sgd, 2), (deep_sgd, 4)):
        sp = {f"{part}.bias": ("lr", 1.0) for part in ["input", *(f"hidden.{i}" for i in range(depth - 1))]}
        sp |= {"input.weight": ("lr", 1.0), "readout.weight": ("multiplier", -0.5)}
        fault(family, "SP", never, lr(-1, "input.*", "hidden.*.bias"), lr(1, "readout.weight"), sp_init, truth=sp)

    one = "one hidden matrix keeps the base learning rate"
    fault(adamw, "hidden.1 lr", one, lr(1, "hidden.1.weight"))
    fault(sign, "hidden.0 lr", one, lr(1, "hidden.0.weight"))
    fault(adam, "hidden lr", one, lr(1, "hidden.0.weight"))
    fault(momentum, "hidden.1 lr n", "a hidden learning rate grows under SGD", lr(1, "hidden.1.weight"))
    fault(deep_sgd, "hidden.2 lr 1/n", "Adam's rule for one hidden matrix under SGD", lr(-1, "hidden.2.weight"))
    wrong = "the learning rate is scaled the wrong way: alpha n / n0"
    fault(adam, "lr upside down", wrong, lr(2, hidden, "readout.weight"))
    fault(adamw, "hidden lr sqrt", "hidden learning rates scaled by n ** -1/2 only", lr(0.5, hidden))

    fault(
        adamw,
        "hidden init 1/m",
        "init divided by m instead of sqrt(m)",
        init(-0.5, hidden),
        source="EleutherAI/gpt-neox#1087",
    )
    fault(deep_sgd, "hidden.1 init 1/m", "init divided by m instead of sqrt(m)", init(-0.5, "hidden.1.weight"))
    fault(sign, "hidden init const", "a constant standard deviation, as GPT-2's 0.02", init(0.5, hidden))
    fault(momentum, "hidden.0 init const", "a constant standard deviation", init(0.5, "hidden.0.weight"))
    sp_readout = "the readout is initialised as a hidden layer, n ** -1/2"
    fault(adam, "readout init", sp_readout, sp_init)
    fault(sgd, "readout init", sp_readout, sp_init)
    fault(momentum, "readout init const", "a readout of constant standard deviation", init(1, "readout.weight"))
    fault(adamw, "input init", "the first layer initialised with n ** -1/2", init(-0.5, "input.weight"))
    fault(sgd, "input init", "the first layer initialised with its fan-out", init(-0.5, "input.weight"))
    orthogonal = "orthogonal initialisation everywhere: right for hidden layers alone"
    truth: Truth = {"input.weight": ("init", 0.5), "readout.weight": ("init", -0.5)}
    change = act(lambda setup: _orthogonal(setup, "input.weight", "hidden.0.weight", "readout.weight"))
    fault(adam, "orthogonal", orthogonal, change, truth=truth)
    change = act(lambda setup: _orthogonal(setup, "hidden.0.weight", "hidden.1.weight"))
    control(sign, "orthogonal hidden", "orthogonal hidden matrices have n ** -1/2", change)
    control(sgd, "uniform", "uniform draws of the same standard deviation", act(_uniform))

    fault(sign, "readout lr", "the readout is left out of the list of scaled learning rates", lr(1, "readout.weight"))
    fault(
        adam,
        "readout lr",
        "the head is left out of the scaled list",
        lr(1, "readout.weight"),
        source="mlfoundations/open_lm#25",
    )
    half = "the head's learning rate is scaled by n ** -1/2, which is right for another optimizer only"
    fault(adamw, "readout lr sqrt", half, lr(0.5, "readout.weight"), source="microsoft/dion#94")
    fault(sgd, "readout lr", "the readout keeps its learning rate under SGD", lr(1, "readout.weight"))
    fault(adamw, "readout lr 1/n²", "the readout's learning rate is scaled twice", lr(-1, "readout.weight"))
    fault(sign, "input lr 1/n", "the first layer is scaled like a hidden one", lr(-1, "input.weight"))
    fault(momentum, "input lr const", "SGD's first layer without its factor n", lr(-1, "input.weight"))
    fault(
        adam,
        "vectors lr 1/n",
        "a catch-all group scales the biases too",
        lr(-1, *biases),
        source="open-lm-engine/lm-engine#515",
    )
    fault(deep_sgd, "hidden.0 bias lr", "one bias without SGD's factor n", lr(-1, "hidden.0.bias"))
    fault(adamw, "bias lr n", "biases with a learning rate that grows", lr(1, *biases))
    fault(sign, "readout bias lr", "the bias of the readout is scaled like its weight", lr(-1, "readout.bias"))

    fault(adam, "frozen", "a learning rate of zero", stopped("hidden.0.weight"))
    fault(deep_sgd, "left out", "a matrix that no optimizer holds", left_out("hidden.1.weight"))
    fault(sign, "input left out", "the first layer is in no optimizer", left_out("input.weight"))
    fault(adamw, "bias frozen", "a bias with a learning rate of zero", stopped("hidden.2.bias"))

    fault(sgd, "Adam's rule", "Adam's learning rates under SGD", lr(-1, "input.*", "hidden.*"))
    fault(adam, "SGD's rule", "SGD's learning rates under Adam", lr(1, "input.*", "hidden.*"))

    overwritten = "a scheduler sets every group to one learning rate"
    truth = {"hidden.0.weight": ("lr", -1.0), "readout.weight": ("lr", -1.0)}
    fault(adam, "scheduler", overwritten, act(_one_rate), truth=truth, source="microsoft/mup#40")
    truth = dict.fromkeys(("input.weight", "input.bias", "hidden.0.bias", "hidden.1.bias"), ("lr", 1.0))
    truth |= {"readout.weight": ("lr", -1.0)}
    fault(momentum, "scheduler", overwritten, act(_one_rate), truth=truth, source="microsoft/mup#40")
    for family in (adam, momentum):
        control(family, "warm-up", "every learning rate warms up from 0 (gpt-neox#1379)", act(_warm_up))
    control(adam, "zero readout", "a readout of zeros, by design", act(lambda setup: _zero(setup, "readout.weight")))
    control(sgd, "zero readout", "a readout of zeros, by design", act(lambda setup: _zero(setup, "readout.weight")))


def _clipped() -> None:
    """Thresholds that every gradient is above, or none."""
    adam, sgd, momentum = mlp("adam"), mlp("sgd"), mlp("momentum", "mlp tanh", activation=torch.tanh, depth=3)
    always, never = _clip(1e-2), _clip(1e3)
    zero = act(lambda setup: _zero(setup, "readout.weight"))
    control(adam, "clipped", "clipping at every step, which Adam does not notice", always)
    control(sgd, "hardly clipped", "a threshold that no gradient reaches", never)
    control(momentum, "hardly clipped", "a threshold that no gradient reaches", never)
    fault(adam, "clipped, hidden rate", "clipping at every step, and one rate", always, lr(1, "hidden.*.weight"))
    fault(sgd, "hardly clipped, input rate", "a threshold that none reaches", never, lr(-1, "input.weight"))
    shrunk = "with a readout of zeros |g| grows as n ** 1/2, and the clipped update falls so"
    fault(sgd, "clipped", shrunk, always, zero, truth=dict.fromkeys(parameter_names(sgd.build), ("lr", 0.5)))


def _multipliers() -> None:
    options: dict[str, Any] = {"bias": False, "thetas": {"readout": 1.0}}
    adam, sgd = mlp("adam", "multiplied mlp", **options), mlp("sgd", "multiplied mlp", **options, depth=3)
    ntk_like: dict[str, Any] = {"bias": False, "thetas": {"hidden": 0.5, "readout": 0.5}}
    adam_half = mlp("adam", "half-multiplied mlp", **ntk_like, depth=3)
    sgd_half = mlp("sgd", "half-multiplied mlp", **ntk_like)
    field_like: dict[str, Any] = {"bias": False, "thetas": {"hidden": 0.5, "readout": 1.0}}
    sign = mlp("sign", "mean-field mlp", **field_like, depth=3)
    residual = mlp("adamw", "residual mlp", bias=False, thetas={"readout": 1.0}, residual=True, depth=4)
    residual_sgd = mlp("sgd", "residual mlp", bias=False, thetas={"readout": 1.0}, residual=True, depth=3)
    inputs = mlp("adam", "input-multiplied mlp", bias=False, thetas={"input": -0.5}, activation=torch.tanh)
    for family in (adam, sgd, adam_half, sgd_half, sign, residual, residual_sgd, inputs):
        control(family)

    twice = "the logits' multiplier is applied twice"
    fault(adam, "readout twice", twice, multiplier(-1, "readout", "readout.weight"), source="EleutherAI/gpt-neox#1087")
    fault(sgd, "readout twice", twice, multiplier(-1, "readout", "readout.weight"))
    every = "the logits' multiplier is applied in every hidden layer"
    fault(adam, "hidden too", every, multiplier(-1, "hidden", "hidden.*.weight"), source="EleutherAI/gpt-neox#1087")
    lost = "a fused path drops the logits' multiplier"
    fault(
        residual,
        "readout dropped",
        lost,
        multiplier(1, "readout", "readout.weight"),
        source="linkedin/Liger-Kernel#1477",
    )
    fault(residual_sgd, "readout dropped", lost, multiplier(1, "readout", "readout.weight"))
    fault(adam_half, "hidden dropped", "the hidden multiplier is lost", multiplier(0.5, "hidden", "hidden.*.weight"))
    fault(sgd_half, "hidden twice", "the hidden multiplier twice", multiplier(-0.5, "hidden", "hidden.*.weight"))
    fault(inputs, "input dropped", "the input multiplier is lost", multiplier(-0.5, "input", "input.weight"))

    rates = "learning rates as without the multiplier, Adam"
    fault(adam, "readout lr 1/n", rates, lr(-1, "readout.weight"))
    fault(adam_half, "hidden lr 1/n", rates, lr(-0.5, "hidden.*.weight"))
    fault(sgd_half, "hidden lr const", "learning rates as without the multiplier, SGD", lr(-1, "hidden.*.weight"))
    fault(residual, "hidden.0 lr", "one residual matrix keeps the base learning rate", lr(1, "hidden.0.weight"))
    fault(residual, "hidden.1 init const", "one residual matrix of constant size", init(0.5, "hidden.1.weight"))
    fault(residual_sgd, "hidden.1 init 1/m", "one residual matrix too small", init(-0.5, "hidden.1.weight"))
    fault(inputs, "input lr const", "the learning rate as without the multiplier", lr(0.5, "input.weight"))

    truth: Truth = {f"hidden.{i}.weight": ("lr", -0.5) for i in range(2)} | {"readout.weight": ("multiplier", -0.5)}
    fault(adam_half, "NTK", "NTK", lr(0.5, "hidden.*", "readout.*"), init(0.5, "readout.*"), truth=truth)
    truth = {"input.weight": ("lr", 1.0), "hidden.0.weight": ("lr", 1.0), "readout.weight": ("init", -0.5)}
    fault(sgd_half, "NTK", "NTK", lr(-1, "input.*", "hidden.*"), init(0.5, "readout.*"), truth=truth)
    fault(sign, "mean-field", "mean-field under a sign update", lr(0.5, "hidden.*.weight"))
    fault(sgd, "mean-field", "one learning rate where all should grow", lr(-1, "input.*", "hidden.*", "readout.*"))


def _muon() -> None:
    deep, whole = mlp("muon", depth=3), mlp("muon", "whole mlp", everything=True, bias=False)
    spectral = mlp("spectral", "whole mlp", everything=True, bias=False, depth=3)
    words = transformer("muon", norm="rms")
    images = convnet("spectral", norm="group", everything=True)
    for family in (deep, whole, spectral, words, images):
        control(family)
    doubled = "Adam's factor 1 / n is applied to Muon's matrices too"
    fault(deep, "hidden lr 1/n", doubled, lr(-1, "hidden.*.weight"), source="NVIDIA/Megatron-LM#3715")
    fault(words, "one lr 1/n", doubled, lr(-1, "blocks.0.mlp.down.weight"), source="NVIDIA/Megatron-LM#3715")
    change = act(_match_rms)
    rms = "Muon's factor sqrt(max(rows, columns)), meant for Adam's learning rates"
    truth: Truth = {f"hidden.{i}.weight": ("lr", -0.5) for i in range(2)}
    fault(deep, "match_rms_adamw", rms, change, truth=truth, source="NVIDIA/Megatron-LM#3715")
    control(deep, "match_rms_adamw 1/sqrt(n)", "with learning rates n ** -1/2", change, lr(-0.5, "hidden.*.weight"))
    names = ("query", "key", "value", "output")
    truth = {f"blocks.0.attention.{n}.weight": ("lr", -0.5) for n in names}
    truth |= {f"blocks.0.mlp.{n}.weight": ("lr", -0.5) for n in ("up", "down")}
    fault(words, "match_rms_adamw", rms, change, truth=truth, source="NVIDIA/Megatron-LM#3715")
    both = "both shape factors are multiplied"
    truth = dict.fromkeys(("input.weight", "hidden.0.weight", "hidden.1.weight", "readout.weight"), ("lr", -0.5))
    change = act(lambda setup: _muon_scale(setup, lambda shape: (shape[0] / shape[1]) ** 0.5 * max(shape) ** 0.5))
    fault(spectral, "both factors", both, change, truth=truth, source="kozistr/pytorch_optimizer#371")
    change = act(lambda setup: _muon_scale(setup, lambda shape: 1.0))
    truth = {"input.weight": ("lr", 0.5), "readout.weight": ("lr", -0.5)}
    fault(spectral, "no factor", "no factor of the shape", change, truth=truth, source="google-deepmind/optax#1249")
    change = act(lambda setup: _muon_scale(setup, lambda shape: max(1.0, shape[0] / shape[1]) ** 0.5))
    fault(
        spectral, "max(1, ratio)", "sqrt(max(1, ratio)) for the readout", change, truth={"readout.weight": ("lr", -0.5)}
    )
    fault(
        whole,
        "readout lr const",
        "the caller's group is discarded",
        lr(0.5, "readout.weight"),
        source="deepspeedai/DeepSpeed#8440",
    )
    sp: Truth = {"readout.weight": ("multiplier", -0.5)}
    changes = init(0.5, "readout.weight"), lr(0.5, "readout.weight")
    fault(whole, "SP", "Muon on every matrix of SP", *changes, truth=sp)
    fault(
        deep,
        "readout lr const",
        "AdamW's readout keeps its rate",
        lr(1, "readout.weight"),
        source="deepspeedai/DeepSpeed#7713",
    )
    fault(
        words,
        "readout lr const",
        "AdamW's readout keeps its rate",
        lr(1, "readout.weight"),
        source="deepspeedai/DeepSpeed#7713",
    )
    fault(deep, "hidden.1 init", "init divided by m instead of sqrt(m)", init(-0.5, "hidden.1.weight"))
    ratio = act(lambda setup: _muon_scale(setup, _kernel_ratio))
    sizes = "a convolution's factor is taken from the kernel, kh / kw"
    fault(
        images, "kernel ratio", sizes, ratio, truth={"stem.weight": ("lr", 0.5)}, source="ultralytics/ultralytics#25846"
    )
    area = act(lambda setup: _muon_scale(setup, _over_area))
    sizes = "updates of convolutions too small by sqrt(fan_out fan_in)"
    truth = {"stem.weight": ("lr", 0.5), "middle.weight": ("lr", 1.0), "last.weight": ("lr", 1.0)}
    fault(images, "divided by the area", sizes, area, truth=truth, source="huggingface/pytorch-image-models#2791")


def _convolutions() -> None:
    adam, sgd = convnet("adam"), convnet("sgd")
    group, group_sgd = (
        convnet("adamw", "group conv", norm="group", bias=True),
        convnet("momentum", "group conv", norm="group"),
    )
    depthwise = convnet("adam", "depthwise conv", norm="group", middle="depthwise")
    depthwise_sgd = convnet("sgd", "depthwise conv", middle="depthwise")
    grouped, narrow = (
        convnet("adam", "grouped conv", middle="grouped"),
        convnet("sign", "narrow-grouped conv", middle="narrow groups"),
    )
    for family in (adam, sgd, group, group_sgd, depthwise, depthwise_sgd, grouped, narrow):
        control(family)
    fault(adam, "middle lr", "one convolution keeps the base learning rate", lr(1, "middle.weight"))
    fault(group, "last lr", "one convolution keeps the base learning rate", lr(1, "last.weight"))
    fault(sgd, "last lr 1/n", "Adam's rule for a convolution under SGD", lr(-1, "last.weight"))
    fault(group_sgd, "stem lr const", "SGD's first convolution without its factor n", lr(-1, "stem.weight"))
    out = "kaiming_normal_(mode='fan_out') for the first convolution"
    change = act(lambda setup: _fan_out(setup, "stem.weight"))
    fault(adam, "stem fan-out", out, change, truth={"stem.weight": ("init", 0.5)})
    fault(group_sgd, "stem fan-out", out, change, truth={"stem.weight": ("init", 0.5)})
    out = "fan_out of a depthwise convolution counts all channels"
    change = act(lambda setup: _fan_out(setup, "middle.weight"))
    fault(depthwise, "fan-out", out, change, truth={"middle.weight": ("init", 0.5)}, source="pytorch/pytorch#23854")
    fault(depthwise, "middle lr 1/n", "a depthwise convolution is scaled like a hidden one", lr(-1, "middle.weight"))
    fault(depthwise_sgd, "middle lr const", "a depthwise convolution without SGD's factor n", lr(-1, "middle.weight"))
    fault(
        narrow, "middle init 1/m", "groups of fixed size are initialised as if they grew", init(-0.5, "middle.weight")
    )
    fault(narrow, "middle lr 1/n", "groups of fixed size are scaled as if they grew", lr(-1, "middle.weight"))
    fault(grouped, "middle init const", "growing groups of constant size", init(0.5, "middle.weight"))
    fault(group, "middle init 1/m", "init divided by m instead of sqrt(m)", init(-0.5, "middle.weight"))
    fault(group_sgd, "last init const", "a convolution of constant standard deviation", init(0.5, "last.weight"))
    fault(adam, "readout init", "the readout is initialised as a hidden layer", init(0.5, "readout.weight"))
    fault(sgd, "readout lr", "the readout keeps its learning rate", lr(1, "readout.weight"))
    fault(
        adam,
        "gains lr 1/n",
        "a catch-all group scales BatchNorm too",
        lr(-1, "norms.*"),
        source="open-lm-engine/lm-engine#515",
    )
    fault(sgd, "one gain lr const", "BatchNorm's gain without SGD's factor n", lr(-1, "norms.1.weight"))
    fault(group, "norm bias lr n", "GroupNorm's bias with a rate that grows", lr(1, "norms.0.bias"))
    fault(group, "frozen", "a convolution with a learning rate of zero", stopped("middle.weight"))
    fault(grouped, "gain left out", "a gain that no optimizer holds", left_out("norms.2.weight"))


def _transformers() -> None:
    layer = transformer("adamw", biases=True, depth=2)
    rms = transformer("adam", "rms transformer", norm="rms", mlp="swiglu")
    sgd = transformer("sgd", "rms transformer", norm="rms", grows="heads")
    chunk, unbind = (
        transformer("adam", "chunk transformer", qkv="chunk"),
        transformer("adamw", "unbind transformer", qkv="unbind", grows="heads"),
    )
    chunk_sgd = transformer("sgd", "chunk transformer", qkv="chunk", norm="rms")
    gqa = transformer("adam", "gqa transformer", kv_heads=-2, grows="heads")
    mqa = transformer("adam", "mqa transformer", kv_heads=1, grows="heads")
    tied, tied_sgd = (
        transformer("adam", "tied transformer", tied=True),
        transformer("sgd", "tied transformer", tied=True, norm="rms"),
    )
    eager = transformer("adam", "eager transformer", attention="eager")
    eager_q = transformer("sign", "query-scaled transformer", attention="eager, query scaled")
    fused_q = transformer("adamw", "fused query-scaled transformer", attention="fused, query scaled", norm="rms")
    heads = transformer("adam", "eager many-headed transformer", attention="eager", grows="heads")
    scaled = transformer("adam", "embedding-scaled transformer", embedding_theta=-0.5, norm="rms")
    half = transformer("adam", "half-multiplied transformer", hidden_theta=0.5, mlp="swiglu")
    torch_heads, torch_eager = multihead("adamw"), multihead("adam", "multihead with weights", weights=True)
    everyone = (
        layer,
        rms,
        sgd,
        chunk,
        unbind,
        chunk_sgd,
        gqa,
        mqa,
        tied,
        tied_sgd,
        eager,
        eager_q,
        fused_q,
        heads,
        scaled,
    )
    for family in (*everyone, half, torch_heads, torch_eager):
        control(family)
    zeros = "queries of zeros, by design"
    control(rms, "zero query", zeros, act(lambda setup: _zero(setup, "*.query.weight")))
    outputs = act(lambda setup: _zero(setup, "*.output.weight", "*.down.weight"))
    control(layer, "zero outputs", "blocks that start as the identity, by design", outputs)
    control(chunk, "warm-up", "every learning rate warms up from 0 (gpt-neox#1379)", act(_warm_up))

    attention, mlps = "blocks.0.attention", "blocks.0.mlp"
    never = "µP never switched on: every layer as in SP"
    matrices = (
        "blocks.*.query.weight",
        "blocks.*.key.weight",
        "blocks.*.value.weight",
        "blocks.*.output.weight",
        "blocks.*.mlp.*.weight",
    )
    changes = lr(1, *matrices, "readout.weight"), init(0.5, "readout.weight"), attention_scale(0.5, attention)
    names = [f"{attention}.{n}.weight" for n in ("query", "key", "value", "output")] + [
        f"{mlps}.{n}.weight" for n in ("up", "down")
    ]
    sp: Truth = dict.fromkeys(names, ("lr", -1.0)) | {
        "readout.weight": ("init", -0.5),
        attention: ("attention scale", -0.5),
    }
    fault(eager, "SP", never, *changes, truth=sp, source="EleutherAI/gpt-neox#1061")
    fault(
        rms, "SP", never, *changes, truth=sp | {f"{mlps}.gate.weight": ("lr", -1.0)}, source="EleutherAI/gpt-neox#1061"
    )
    fault(
        rms,
        "hidden lr",
        "every hidden matrix keeps the base learning rate",
        lr(1, *matrices),
        source="deepspeedai/DeepSpeed#8438",
    )
    fault(layer, "one output lr", "one matrix keeps the base learning rate", lr(1, "blocks.1.attention.output.weight"))
    fault(
        layer,
        "vectors lr 1/n",
        "a catch-all group scales all vectors",
        lr(-1, "*norm*.weight", "*norm*.bias"),
        source="open-lm-engine/lm-engine#515",
    )
    fault(layer, "mlp bias lr", "one bias is scaled like its matrix", lr(-1, "blocks.0.mlp.up.bias"))
    fault(layer, "hidden init const", "GPT-2's constant standard deviation", init(0.5, *matrices))
    fault(rms, "gain lr n", "a gain's learning rate grows", lr(1, "blocks.0.norm_2.weight"))
    fault(sgd, "gain lr const", "a gain without SGD's factor n", lr(-1, "final_norm.weight"))
    fault(rms, "gain init", "a gain of n ** -1/2", init(-0.5, "blocks.0.norm_1.weight"))
    fault(layer, "gain init sqrt", "a gain that grows as n ** 1/2", init(0.5, "blocks.1.norm_2.weight"))
    fault(rms, "positions lr 1/n", "positions are scaled like a hidden matrix", lr(-1, "positions"))
    fault(sgd, "embedding lr const", "an embedding without SGD's factor n", lr(-1, "embedding.weight"))
    fault(fused_q, "embedding lr 1/n", "the embedding is scaled like a hidden matrix", lr(-1, "embedding.weight"))
    fault(eager, "embedding init", "the embedding is drawn with n ** -1/2", init(-0.5, "embedding.weight"))
    fault(sgd, "key lr 1/n", "Adam's rule for the keys under SGD", lr(-1, f"{attention}.key.weight"))
    fault(sgd, "value init const", "values of constant standard deviation", init(0.5, f"{attention}.value.weight"))
    fault(heads, "down init 1/m", "init divided by m instead of sqrt(m)", init(-0.5, f"{mlps}.down.weight"))
    fault(rms, "gate lr", "a gate keeps the base learning rate", lr(1, f"{mlps}.gate.weight"))
    fault(eager_q, "query init const", "queries of constant standard deviation", init(0.5, f"{attention}.query.weight"))
    fault(eager_q, "readout lr", "the readout keeps its learning rate", lr(1, "readout.weight"))
    fault(rms, "readout init", "the readout is initialised as a hidden layer", init(0.5, "readout.weight"))
    fault(layer, "frozen", "a matrix with a learning rate of zero", stopped("blocks.0.mlp.down.weight"))
    fault(heads, "embedding left out", "the embedding is in no optimizer", left_out("embedding.weight"))
    truth: Truth = dict.fromkeys(
        (
            f"{attention}.qkv.weight",
            f"{attention}.output.weight",
            f"{mlps}.up.weight",
            f"{mlps}.down.weight",
            "readout.weight",
        ),
        ("lr", -1.0),
    )
    fault(
        chunk,
        "constant warm-up",
        "warm-up pins every group to one rate",
        act(_one_rate),
        truth=truth,
        source="huggingface/nanotron#404",
    )

    ignored = "fused attention ignores the scale and divides by sqrt(head size)"
    fault(
        rms, "attention default", ignored, default_attention_scale(attention), source="huggingface/transformers#44397"
    )
    both = default_attention_scale("blocks.0.attention", "blocks.1.attention")
    fault(layer, "attention default", ignored, both, source="huggingface/pytorch-image-models#2280")
    fault(layer, "one attention default", ignored, default_attention_scale("blocks.1.attention"))
    fault(
        gqa, "attention by width", "divided by sqrt(width), the head size being fixed", attention_scale(-0.5, attention)
    )
    never = "1 / sqrt(head size) was never switched to 1 / head size"
    fault(eager, "attention sqrt", never, attention_scale(0.5, attention), source="gmboquet/mixle#258")
    fault(chunk_sgd, "attention sqrt", never, attention_scale(0.5, attention))
    fault(eager_q, "attention sqrt", never, attention_scale(0.5, attention))
    fault(
        eager,
        "no attention scale",
        "a fallback without scale",
        attention_scale(1, attention),
        source="mlc-ai/mlc-llm#3426",
    )
    fault(
        fused_q,
        "attention twice",
        "scaled twice: 1 / size²",
        attention_scale(-1, attention),
        source="huggingface/transformers#38290",
    )
    fault(
        heads, "attention by width", "divided by the width, the head size being fixed", attention_scale(-1, attention)
    )
    four = "nn.MultiheadAttention divides by sqrt(head size), which grows"
    for family in (torch_heads, torch_eager):
        fault(family, "attention sqrt", four, act(_four_heads), truth={"attention": ("attention scale", -0.5)})

    qkv = f"{attention}.qkv.weight"
    fault(chunk, "value block init", "one block of a fused matrix of constant size", init_block(0.5, qkv, 2, 3))
    fault(unbind, "query block init", "one block of a fused matrix too small", init_block(-0.5, qkv, 0, 3))
    fault(chunk_sgd, "key block init", "one block of a fused matrix of constant size", init_block(0.5, qkv, 1, 3))
    fault(chunk_sgd, "value block gradient", "one block learns too fast", gradient_block(1, qkv, 2, 3))
    fault(unbind, "qkv init by rows", "initialised with 1 / n instead of its root", init(-0.5, qkv))
    fault(chunk, "qkv lr", "a fused matrix keeps the base learning rate", lr(1, qkv))
    fault(unbind, "qkv left out", "a fused matrix is in no optimizer", left_out(qkv))
    fault(torch_heads, "in_proj lr", "in_proj_weight is not recognised as a matrix", lr(1, "attention.in_proj_weight"))
    fault(torch_heads, "out_proj init", "init divided by m", init(-0.5, "attention.out_proj.weight"))
    fault(
        torch_eager,
        "value block init",
        "one block of in_proj_weight too large",
        init_block(0.5, "attention.in_proj_weight", 2, 3),
    )
    fault(torch_eager, "in_proj init", "in_proj_weight of constant size", init(0.5, "attention.in_proj_weight"))

    fault(gqa, "key lr", "grouped keys keep the base learning rate", lr(1, f"{attention}.key.weight"))
    fault(gqa, "value init 1/m", "grouped values too small", init(-0.5, f"{attention}.value.weight"))
    fault(mqa, "value lr", "the one value head is taken for a vector", lr(1, f"{attention}.value.weight"))
    fault(
        mqa, "key init const", "the one key head of constant standard deviation", init(0.5, f"{attention}.key.weight")
    )
    shared = transformer("sgd", "mqa transformer", kv_heads=1, grows="heads", norm="rms")
    summed: Truth = {f"{attention}.{name}.weight": ("gradient fan-in", -0.5) for name in ("key", "value")}
    fault(shared, "one learning rate", "keys and values sum gradients over the heads", truth=summed, correct=sgd)

    fault(
        tied,
        "no multiplier",
        "the tied readout has no 1 / n",
        multiplier(1, "readout", "embedding.weight"),
        source="linkedin/Liger-Kernel#1477",
    )
    fault(
        tied,
        "embedding rescaled",
        "the readout's rescaling grows the shared embedding",
        init(0.5, "embedding.weight"),
        source="microsoft/mup#55",
    )
    fault(
        tied, "multiplier twice", "the tied readout's multiplier twice", multiplier(-1, "readout", "embedding.weight")
    )
    fault(tied_sgd, "embedding lr const", "a tied embedding without SGD's factor n", lr(-1, "embedding.weight"))
    fault(tied, "embedding lr 1/n", "a tied embedding is scaled like a readout", lr(-1, "embedding.weight"))
    fault(tied_sgd, "no multiplier", "the tied readout has no 1 / n", multiplier(1, "readout", "embedding.weight"))

    fault(
        scaled,
        "multiplier dropped",
        "the embedding's multiplier is lost",
        multiplier(-0.5, "embedding", "embedding.weight"),
        source="huggingface/transformers#38320",
    )
    gemma = "sqrt(n) on an embedding of constant size"
    fault(rms, "sqrt(n) embedding", gemma, multiplier(0.5, "embedding", "embedding.weight"))
    fault(scaled, "lr const", "learning rate as without the multiplier", lr(0.5, "embedding.weight"))
    parts = ("*.gate.weight", "*.up.weight", "*.down.weight")
    missing = "the multipliers of gate, up and down are missing"
    fault(
        half,
        "mlp multipliers",
        missing,
        multiplier(0.5, "multiplier", *parts, module=mlps),
        source="unslothai/unsloth#2938",
    )


def _mixtures_and_adapters() -> None:
    each, sign = moe("adam"), moe("sign")
    einsum = moe("adamw", "einsum moe", experts=StackedExperts)
    bmm = moe("adam", "bmm moe", experts=lambda width: StackedExperts(width, bmm=True))
    muon = moe("muon", experts=lambda width: Experts(width, 2))
    adapters, adapters_w = lora("adam"), lora("adamw", "deep lora", depth=4)
    recurrent = lstm("adam")
    for family in (each, sign, einsum, bmm, muon, adapters, adapters_w, recurrent):
        control(family)
    fault(each, "router lr", "the router keeps the base learning rate", lr(1, "moe.router.weight"))
    fault(bmm, "router lr", "the router keeps the base learning rate", lr(1, "moe.router.weight"))
    fault(each, "one expert lr", "one expert keeps the base learning rate", lr(1, "moe.up.1.weight"))
    fault(sign, "one expert init", "one expert of constant standard deviation", init(0.5, "moe.down.2.weight"))
    fault(sign, "one expert frozen", "one expert is in no optimizer", left_out("moe.up.3.weight"))
    three = "stacked experts are not recognised as matrices"
    fault(einsum, "experts lr", three, lr(1, "moe.up", "moe.down"), source="open-lm-engine/lm-engine#14")
    fault(bmm, "up lr", three, lr(1, "moe.up"), source="open-lm-engine/lm-engine#14")
    fans = "the fan-in of a stacked tensor taken as fan-in times fan-out"
    fault(einsum, "down init", fans, init(-0.5, "moe.down"))
    fault(bmm, "experts init", fans, init(-0.5, "moe.up", "moe.down"))
    fault(einsum, "one expert init", "one of the stacked experts of constant size", init_block(0.5, "moe.up", 2, 4))
    fault(muon, "experts lr 1/n", "Adam's factor on Muon's experts", lr(-1, "moe.up.*", "moe.down.*"))
    fault(adapters, "A lr const", "LoRA A keeps the base learning rate", lr(1, "adapted.0.down.weight"))
    fault(adapters, "B lr 1/n", "LoRA B is scaled like a hidden matrix", lr(-1, "adapted.1.up.weight"))
    fault(adapters_w, "one rate", "one learning rate for A and B", lr(1, "adapted.*.down.weight"))
    fault(adapters_w, "A init const", "LoRA A of constant standard deviation", init(0.5, "adapted.1.down.weight"))
    fault(adapters, "base init const", "a frozen base of constant size", init(0.5, "adapted.0.base.weight"))
    fault(adapters_w, "A left out", "a LoRA A that no optimizer holds", left_out("adapted.2.down.weight"))
    fault(recurrent, "recurrent lr", "the recurrent matrix keeps the base learning rate", lr(1, "lstm.weight_hh_l0"))
    fault(recurrent, "input lr 1/n", "the input matrix is scaled like the recurrent one", lr(-1, "lstm.weight_ih_l0"))
    fault(
        recurrent,
        "bias lr 1/n",
        "a catch-all group scales the biases",
        lr(-1, "lstm.bias_*"),
        source="open-lm-engine/lm-engine#515",
    )


def _forward_scales() -> None:
    tanh: dict[str, Any] = {"bias": False, "depth": 3}
    healthy = mlp("adam", "layer-normalised mlp", between=PlainNorm, **tanh)
    healthy_sgd = mlp("sgd", "layer-normalised mlp", between=PlainNorm, **tanh)
    control(healthy)
    control(healthy_sgd)
    for family, module, power, what in (
        (healthy, UnitNorm, 0.5, "divided by the norm, not by the root mean square"),
        (healthy, AbsoluteSumNorm, 1.0, "divided by the sum, not by the mean"),
        (healthy_sgd, UnitNorm, 0.5, "divided by the norm, not by the root mean square"),
    ):
        change = act(lambda setup, module=module: setattr(setup.model, "between", module()))
        fault(family, module.__name__, what, change, truth={"between": ("forward scale", power)})


_PLAIN = (_mlp, _clipped, _multipliers, _muon)
for _cases in (*_PLAIN, _convolutions, _transformers, _mixtures_and_adapters, _forward_scales):
    _cases()
