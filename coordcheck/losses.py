"""The user's loss as a function of (model, batch)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from coordcheck.batches import describe
from coordcheck.errors import CoordCheckError

Loss = Callable[[nn.Module, Any], Tensor]


def output_loss(criterion: Callable[[Any, Any], Tensor]) -> Loss:
    """A loss for pair batches: `criterion(model(x), y)`, such as `torch.nn.functional.cross_entropy`."""

    def loss(model: nn.Module, batch: Any) -> Tensor:
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise CoordCheckError(f"a loss of (output, target) needs a batch (x, y), got {describe(batch)}.")
        x, y = batch
        return criterion(model(x), y)

    return loss


def model_loss(model: nn.Module, batch: Any) -> Tensor:
    """The default loss: `model(**batch)` for a mapping batch, whose output holds its loss.

    The loss is the output's `.loss`, its `["loss"]`, or its first element, as Hugging Face models return it.
    """
    if not isinstance(batch, Mapping):
        raise CoordCheckError(
            f"no loss= was given and the batch is {describe(batch)}. For a pair (x, y) pass "
            "loss=torch.nn.functional.cross_entropy (or any function of (output, target) through "
            "coordcheck.output_loss), or a function of (model, batch)."
        )
    output = model(**batch)
    if isinstance(output, Mapping):
        return output["loss"]
    found = getattr(output, "loss", None)
    return output[0] if found is None else found


def as_loss(loss: Callable[..., Tensor] | None) -> Loss:
    """The loss as a function of (model, batch).

    A function of `torch.nn.functional` or a loss module of `torch.nn` is one of (output, target), which is
    certain from where it comes from; anything else is called as `loss(model, batch)`.
    """
    if loss is None:
        return model_loss
    if isinstance(loss, nn.Module) or getattr(loss, "__module__", "") == "torch.nn.functional":
        return output_loss(loss)
    return loss
