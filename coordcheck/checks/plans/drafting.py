"""`draw`: call `build(width)` without its memory and arithmetic, and read off what it made.

The meta device gives every tensor a shape and no values. Code that asks for a value (`.item()`, numpy) cannot run
there: then everything is real but the parameters, which are moved to the meta device as their modules take them; and
where that fails, too, the model is built for real.
"""

from __future__ import annotations

import math
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode

from coordcheck.analysis.slopes import exponent_of
from coordcheck.checks.plans.blueprints import Blueprint, Drawn, Fan, Place
from coordcheck.common.errors import CoordCheckError
from coordcheck.common.isolation import user_code
from coordcheck.recording.hooks.optimizers import NOT_HELD, optimizer_settings
from coordcheck.recording.layers.activations import ActivationRecorder
from coordcheck.runs.records import RunKey
from coordcheck.training.surroundings import preserved_state
from coordcheck.training.trials import Build, Trial, built, seed_everything

LARGEST_REAL = 2**30  # bytes of parameters up to which a model is built for real to be looked at
LEAST_GROWTH = 2.0  # the power of the width that a model's size is taken to grow with, at least
REASON_LENGTH = 300  # characters of an error that are kept

_PLACES = (Place.META, Place.PARAMETERS, Place.REAL)
_MOVES = (Tensor.to, Tensor.cuda, Tensor.cpu)
_MAKERS = (
    *(torch.empty, torch.zeros, torch.ones, torch.full, torch.eye, torch.tensor, torch.asarray, torch.empty_strided),
    *(torch.rand, torch.randn, torch.randint, torch.randperm, torch.arange, torch.linspace, torch.logspace),
    *(torch.tril_indices, torch.triu_indices),
)


def draw(build: Build, key: RunKey, *, first: Place = Place.META, why: str = "", real_bytes: float = 0.0) -> Blueprint:
    """What `build` makes at one width: on the meta device where it can, for real where it must.

    Args:
        build: `build(width) -> (model, optimizer)` or a `Trial`.
        key: label, width, and the seed that is set before every attempt.
        first: the place to try first: where the next narrower width could be built.
        why: why that one could not be built on the meta device.
        real_bytes: what its parameters may hold for real; above `LARGEST_REAL` that is not tried.

    Returns:
        A `Blueprint`; nothing that `build` raises is raised here, it stands in `reason`.

    >>> from coordcheck.models import mlp
    >>> draw(mlp("µP"), RunKey("µP", 8192, 0)).place.value
    'meta'
    """
    reasons: list[str] = []
    for place in _PLACES[_PLACES.index(first) :]:
        if place is Place.REAL and real_bytes > LARGEST_REAL:
            if reasons:  # the narrower ones could be built on the meta device, so this error is the width's own
                break
            size = f"its parameters may hold {real_bytes / 1e9:.2g} GB"
            return Blueprint(key.label, key.width, Place.NOT_BUILT, f"{size}, and not on the meta device: {why}")
        with preserved_state():
            try:
                with user_code(f"build({key.width}) of {key.label!r}"):
                    return _drawn(build, key, place, reasons[0] if reasons else why)
            except Exception as error:  # of the user's build, or of ours on the meta device
                reasons.append(brief(error).removeprefix(f"build({key.width}) of {key.label!r}").lstrip(": "))
    return Blueprint(key.label, key.width, Place.FAILED, reasons[-1])


def draw_next(build: Build, key: RunKey, before: Sequence[Blueprint]) -> Blueprint:
    """`draw` one width, where and how large the narrower ones (`before`) were built being known."""
    done = [blueprint for blueprint in before if blueprint.place.built]
    if not done:
        return draw(build, key)
    last = done[-1]
    growth = exponent_of({blueprint.width: blueprint.bytes for blueprint in done[-2:]})
    power = max(LEAST_GROWTH, 0.0 if math.isnan(growth) else growth)
    real_bytes = last.bytes * (key.width / last.width) ** power
    return draw(build, key, first=last.place, why=last.reason, real_bytes=real_bytes)


def draw_all(builds: Mapping[str, Build], widths: Sequence[int], seed: int) -> list[Blueprint]:
    """What every factory makes at every width, by label and ascending width."""
    found: list[Blueprint] = []
    for label, build in builds.items():
        own: list[Blueprint] = []
        for width in widths:
            own.append(draw_next(build, RunKey(label, width, seed), own))
        found += own
    return found


def brief(error: BaseException) -> str:
    """An error's kind and the last line of its text; of our own errors the text alone.

    >>> brief(ValueError("width 100 is not a multiple of 8"))
    'ValueError: width 100 is not a multiple of 8'
    """
    lines = str(error).strip().splitlines() or [""]
    kind = "" if isinstance(error, CoordCheckError) else f"{type(error).__name__}: "
    return (kind + lines[-1].strip())[:REASON_LENGTH].rstrip(": ")


def _drawn(build: Build, key: RunKey, place: Place, reason: str) -> Blueprint:
    seed_everything(key.seed)
    started = time.perf_counter()
    with _building(place):
        trial, optimizers = built(build, key)
    seconds = time.perf_counter() - started
    ActivationRecorder(trial.model)  # refuses models that cannot be hooked
    parameters = _parameters(trial, optimizers)
    own = {id(p) for p in trial.model.parameters()}
    held = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    real = {str(p.device) for p in trial.model.parameters() if not is_lazy(p) and not p.is_meta}
    if real and place is not Place.REAL:
        place, reason = Place.REAL, f"build puts parameters on {', '.join(sorted(real))} by itself"
    return Blueprint(
        *(key.label, key.width, place, reason, parameters),
        foreign=tuple(() if is_lazy(p) else tuple(p.shape) for p in held if id(p) not in own),
        optimizer=", ".join(type(optimizer).__name__ for optimizer in optimizers),
        state_bytes=None if real else _state_bytes(optimizers),
        seconds=seconds,
    )


@contextmanager
def _building(place: Place) -> Iterator[None]:
    """Where new tensors go."""
    with ExitStack() as stack:
        if place is not Place.REAL:
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")  # of loading values into tensors that have none
            stack.callback(register_module_parameter_registration_hook(_to_meta).remove)
            stack.enter_context(_OnMeta(all_tensors=place is Place.META))
        yield


class _OnMeta(TorchFunctionMode):
    """What is on the meta device stays there, whatever device the code names: `model.to("cuda")` moves nothing.

    It also makes new tensors there, in the place of `with torch.device("meta")`: that context would be left on torch's
    stack by a build that sets the default device.
    """

    def __init__(self, *, all_tensors: bool) -> None:
        super().__init__()
        self._made = _MAKERS if all_tensors else ()

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        on_meta = bool(args) and isinstance(args[0], Tensor) and args[0].is_meta
        if on_meta and func in _MOVES:
            named = [getattr(value, "dtype", value) for value in (*args[1:], *kwargs.values())]
            dtype = next((value for value in named if isinstance(value, torch.dtype)), None)
            return args[0] if dtype is None else args[0].to(dtype)
        device = kwargs.get("device")
        if device is None:
            moved = func in self._made
        else:
            moved = on_meta or isinstance(device, int) or torch.device(device).type != "cpu"
        if moved:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def _to_meta(module: nn.Module, name: str, parameter: Any) -> None:
    """Take a parameter's values away as its module takes it; whoever else holds it holds the same object still."""
    if type(parameter) is not nn.Parameter or parameter.is_meta:
        return
    empty = nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)
    empty.__dict__.update(parameter.__dict__)
    try:
        torch.utils.swap_tensors(parameter, empty)
    except RuntimeError:  # someone holds a weak reference to it; then it stays real
        return


def _parameters(trial: Trial, optimizers: Sequence[Optimizer]) -> tuple[Drawn, ...]:
    names: dict[int, list[str]] = {}
    for name, parameter in trial.model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    owners: dict[int, tuple[nn.Module, str]] = {}
    for module in trial.model.modules():
        for attribute, own in module._parameters.items():
            owners.setdefault(id(own), (module, attribute))
    settings = optimizer_settings(optimizers)
    held = Counter(id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"])
    found = []
    for parameter in trial.model.parameters():
        key = id(parameter)
        shape = None if is_lazy(parameter) else tuple(parameter.shape)
        found.append(
            Drawn(
                names[key][0],
                shape,
                0 if shape is None else parameter.numel() * parameter.element_size(),
                None if shape is None else _fan(*owners[key], shape),
                *settings.get(key, NOT_HELD)[:2],
                trainable=parameter.requires_grad,
                holders=held[key],
                tied=tuple(names[key][1:]),
                pulled=settings.get(key, NOT_HELD).pulled,
            )
        )
    return tuple(found)


_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
# modules whose weights are (out, in, ...)
_OUTPUTS_FIRST = (
    *(nn.Linear, nn.Bilinear, nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase),
    nn.modules.conv._ConvNd,
)


def _fan(module: nn.Module, attribute: str, shape: tuple[int, ...]) -> Fan | None:
    """What a parameter sums over, by the kind of its module; None where that is not known."""
    if len(shape) < 2 or isinstance(module, _NORMS):
        return Fan(1, math.prod(shape), elementwise=True)
    if isinstance(module, _EMBEDDINGS):
        return Fan(1, shape[-1])
    if "weight" not in attribute:
        return None
    if isinstance(module, nn.modules.conv._ConvTransposeNd):  # (in, out / groups, *kernel)
        return Fan(shape[0] // module.groups * math.prod(shape[2:]), shape[1] * module.groups)
    if isinstance(module, _OUTPUTS_FIRST):
        return Fan(math.prod(shape[1:]), shape[0])
    if type(module).__name__ == "Conv1D" and len(shape) == 2:  # of transformers: a linear layer, (in, out)
        return Fan(*shape)
    return None


def _state_bytes(optimizers: Sequence[Optimizer]) -> int | None:
    """Bytes of the optimizers' state after one update on the meta device; None for those that cannot run there."""
    try:
        with ExitStack() as stack:
            if "torch._dynamo" in sys.modules and hasattr(torch.compiler, "set_stance"):
                stack.enter_context(torch.compiler.set_stance("force_eager"))  # nothing is worth compiling for shapes
            stack.enter_context(user_code("the optimizer"))
            for optimizer in optimizers:
                for parameter in (p for group in optimizer.param_groups for p in group["params"]):
                    if parameter.requires_grad:
                        parameter.grad = torch.empty_like(parameter)
                optimizer.step()
        states = [value for o in optimizers for state in o.state.values() for value in state.values()]
    except Exception:  # one that needs a closure, values, or lazy parameters' shapes
        return None
    return sum(value.numel() * value.element_size() for value in states if isinstance(value, Tensor))
