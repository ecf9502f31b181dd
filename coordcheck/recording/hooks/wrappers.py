"""What training frameworks put around a model, its layers and its optimizers, taken off."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.parametrize import ParametrizationList
from torch.optim import Optimizer

from coordcheck.common.errors import CoordCheckError
from coordcheck.runs.names import distinct
from coordcheck.runs.records import RunRecord

# a compiled module, a checkpointed one: modules that call the one inside of them, and nothing else
INSIDE = ("_orig_mod", "_checkpoint_wrapped_module")


def wrapped(module: nn.Module) -> str | None:
    """The name of the module inside of a wrapper; None for a module that is none.

    >>> wrapped(nn.DataParallel(nn.Linear(2, 2), device_ids=[]))
    'module'
    >>> wrapped(nn.Sequential(nn.Linear(2, 2)))
    """
    if isinstance(module, (nn.DataParallel, DistributedDataParallel)):
        return "module"
    for name in INSIDE:
        if name in module._modules:
            return name
    return None


def layers_of(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Every module but wrappers, once, with the path that it has in the plain model; "" for the model itself.

    >>> [path for path, _ in layers_of(nn.Sequential(nn.DataParallel(nn.Linear(2, 2), device_ids=[])))]
    ['', '0']
    """
    found: dict[nn.Module, str | None] = {}
    _find_layers(model, "", found)
    return [(path, module) for module, path in found.items() if path is not None]


def _find_layers(module: nn.Module, path: str, found: dict[nn.Module, str | None]) -> None:
    inside = wrapped(module)
    found[module] = path if inside is None else None
    for name, child in module._modules.items():
        if child is not None and child not in found:
            below = f"{path}.{name}" if path else name
            _find_layers(child, path if name == inside else below, found)


def makers_of_weights(model: nn.Module) -> Iterator[str]:
    """The paths of the modules of `torch.nn.utils.parametrize`: what they give is a weight, and no activation."""
    layers = dict(layers_of(model))
    makers = [path for path, module in layers.items() if isinstance(module, ParametrizationList)]
    for path in layers if makers else ():
        if any(path == maker or path.startswith(f"{maker}.") for maker in makers):
            yield path


def submodule(model: nn.Module, path: str) -> nn.Module:
    """The module of a path, also where a name in it holds a dot, as `setattr` allows; "" for the model itself.

    Raises:
        KeyError: there is none.
    """
    try:
        return model.get_submodule(path)
    except AttributeError:
        return dict(model.named_modules())[path]


def name_plainly(record: RunRecord) -> None:
    """Take wrappers of single layers out of every name in a record; no two sites have one name.

    >>> from coordcheck.runs.records import RunKey
    >>> record = RunRecord(RunKey("SP", 64, 0), outside={"2._orig_mod.0": 2.0})
    >>> name_plainly(record)
    >>> record.outside
    {'2.0': 2.0}
    """
    taken: set[str] = set()
    for place, site in enumerate(record.sites):
        layer = distinct(without_wrappers(site.layer), taken)
        taken.add(layer)
        record.sites[place] = site._replace(layer=layer)
    record.uses = [
        use._replace(
            parameter=without_wrappers(use.parameter),
            layer=without_wrappers(use.layer),
            module=without_wrappers(use.module),
        )
        for use in record.uses
    ]
    record.outside = {without_wrappers(path): scalar for path, scalar in record.outside.items()}


def without_wrappers(name: str) -> str:
    """A path or the name of a parameter, as in the plain model.

    >>> without_wrappers("branch._orig_mod.weight")
    'branch.weight'
    """
    return ".".join(part for part in name.split(".") if part not in INSIDE) if "_" in name else name


def undistributed(model: nn.Module) -> nn.Module:
    """The model inside of a data-parallel wrapper.

    Raises:
        CoordCheckError: it is or holds a DataParallel on several devices, or a FullyShardedDataParallel.
    """
    for module in model.modules():
        if isinstance(module, nn.DataParallel) and len(module.device_ids) > 1:
            raise CoordCheckError(
                "the model is a DataParallel on several devices, which calls copies of it. Use one device, or "
                "DistributedDataParallel."
            )
        if "_fsdp_wrapped_module" in module._modules:
            raise CoordCheckError(
                "the model is a FullyShardedDataParallel, whose parameters have lost their shapes. Use fully_shard "
                "of torch.distributed.fsdp, or DistributedDataParallel."
            )
    while isinstance(model, (nn.DataParallel, DistributedDataParallel)):
        model = model.module
    return model


def unwrapped_model(model: nn.Module) -> nn.Module:
    """The model inside of all its wrappers, a compiler's among them.

    Raises:
        CoordCheckError: as `undistributed`.
    """
    model = undistributed(model)
    while (inside := wrapped(model)) is not None:
        model = undistributed(getattr(model, inside))
    return model


def unwrapped_optimizers(given: Any) -> list[Optimizer]:
    """One optimizer or several, without the wrappers that training frameworks put around them.

    Raises:
        CoordCheckError: none, or something else.
    """
    found = []
    for one in given if isinstance(given, Sequence) else [given]:
        while isinstance(one, Optimizer) and isinstance(inner := getattr(one, "optimizer", None), Optimizer):
            one = inner
        found.append(one)
    if not found or not all(isinstance(one, Optimizer) for one in found):
        raise CoordCheckError(f"optimizer must be a torch.optim.Optimizer or several, got {given!r}.")
    return found


def skipped(optimizer: Optimizer) -> bool:
    """Whether a gradient scaler told a fused optimizer to leave the parameters as they are."""
    return bool(getattr(optimizer, "found_inf", False))


def loss_scale(optimizer: Optimizer) -> float:
    """What a gradient scaler multiplied the loss by whose gradients the optimizer is given now; 1 without a scaler.

    A scaler halves its scale where gradients overflow, which they may do at some widths alone.
    """
    fused = getattr(optimizer, "grad_scale", None)
    if fused is not None:
        return float(fused)
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code is torch.amp.GradScaler.step.__code__:
            return float(frame.f_locals["self"].get_scale())
        frame = frame.f_back  # type: ignore[assignment]  # None above the outermost
    return 1.0
