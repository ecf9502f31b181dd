"""Tensors that are spread over ranks: what this rank holds of them, and which ranks hold the rest."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn

from coordcheck.recording.scales import NotMeasurable
from coordcheck.runs.words import Status


def is_spread(tensor: object) -> bool:
    """Whether a tensor is a DTensor."""
    # there is none as long as its module was not imported, which takes a second
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def is_sum(tensor: object) -> bool:
    """Whether a tensor is a DTensor of which every rank holds a summand."""
    return is_spread(tensor) and any(placement.is_partial() for placement in getattr(tensor, "placements", ()))


def local_part(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor: its shard or its copy, once it has arrived; nothing is sent.

    Raises:
        NotMeasurable: the ranks hold summands, whose scale is not that of their sum.
    """
    if type(tensor) is Tensor:
        return tensor
    if is_spread(tensor):
        if is_sum(tensor):
            raise NotMeasurable(Status.UNSUPPORTED)
        with torch.no_grad():
            spread: Any = tensor
            tensor = spread.to_local()
    # the result of a collective that may be under way, and whose values only torch's own functions wait for
    wait = getattr(tensor, "trigger_wait", None)
    return tensor if wait is None else wait()


def hands_on(output: object, produced: object) -> bool:
    """Whether a module's output is this rank's summand of the DTensor that its forward produced, as it is."""
    if type(output) is not Tensor or not is_sum(produced):
        return False
    summed: Any = produced
    with torch.no_grad():
        return bool(output.data_ptr() == summed.to_local().data_ptr())


def spread_over(model: nn.Module) -> set[int]:
    """The ranks over which the parameters of a model are spread as DTensors; empty when none is."""
    spread: list[Any] = [parameter for parameter in model.parameters() if is_spread(parameter)]
    meshes = {id(parameter.device_mesh): parameter.device_mesh for parameter in spread}.values()
    return {int(rank) for mesh in meshes for rank in mesh.mesh.flatten().tolist()}


def owns_shards(module: nn.Module) -> bool:
    """Whether a parameter of the module's own is a DTensor."""
    return any(is_spread(parameter) for parameter in module._parameters.values())


def reshard(model: nn.Module) -> None:
    """Let go of the whole parameters that a call of `fully_shard`'s modules gathered, where no backward pass follows.

    What they hold after an update would be the parameters before it.
    """
    for module in model.modules():
        # by its name: it has moved from one module of torch to another
        if any(base.__name__ == "FSDPModule" for base in type(module).__mro__):
            sharded: Any = module
            sharded.reshard()
