"""The user's loss as a function of (model, batch)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from coordcheck.common.errors import CoordCheckError
from coordcheck.recording.batches import arrays_in, describe

Loss = Callable[[nn.Module, Any], Tensor]


def output_loss(criterion: Callable[[Any, Any], Tensor]) -> Loss:
    """A loss for pair batches: `criterion(model(x), y)`, such as `torch.nn.functional.cross_entropy`."""

    def loss(model: nn.Module, batch: Any) -> Tensor:
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise CoordCheckError(f"a loss of (output, target) needs a batch (x, y), got {describe(batch)}.")
        x, y = batch
        with _arrays_explained(batch):
            output = model(x)
        if isinstance(output, (Mapping, tuple, list)):
            raise CoordCheckError(
                f"the model returned {describe(output)}, and a loss of (output, target) takes a tensor. Pass a "
                "function of (model, batch) that picks what it needs."
            )
        with _arrays_explained(batch):
            return criterion(output, y)

    return loss


@contextmanager
def _arrays_explained(batch: Any) -> Iterator[None]:
    """What torch says of an argument that is no tensor, in words about the batch."""
    try:
        yield
    except (TypeError, AttributeError) as error:
        found = arrays_in(batch)
        if not found:
            raise
        raise CoordCheckError(
            f"{found} Make tensors of them: torch.as_tensor(array). They led to {type(error).__name__}: {error}"
        ) from error


def model_loss(model: nn.Module, batch: Any) -> Tensor:
    """The default loss: `model(**batch)` for a mapping batch, whose output holds its loss.

    The loss is the output's `.loss`, its `["loss"]`, or its first element, as Hugging Face models return it.

    Returns:
        A tensor with one element.

    Raises:
        CoordCheckError: the batch is no mapping, or the output holds no loss.
    """
    if not isinstance(batch, Mapping):
        raise CoordCheckError(
            f"no loss= was given and the batch is {describe(batch)}. For a pair (x, y) pass "
            "loss=torch.nn.functional.cross_entropy (or any function of (output, target) through "
            "coordcheck.output_loss), or a function of (model, batch)."
        )
    with _arrays_explained(batch):
        output = model(**batch)
    if isinstance(output, Mapping):
        if output.get("loss") is None:
            raise CoordCheckError(
                f"no loss= was given, and the model returned {', '.join(map(repr, output))} without a 'loss'. Give the "
                "batch its targets, or pass loss= as a function of (model, batch)."
            )
        return output["loss"]
    found = getattr(output, "loss", None)
    return output[0] if found is None else found


def as_loss(loss: Callable[..., Tensor] | None) -> Loss:
    """The loss as a function of (model, batch).

    A function of `torch.nn.functional` or a loss module of `torch.nn` is one of (output, target), which is
    certain from where it comes from; anything else is called as `loss(model, batch)`.

    Returns:
        A function of (model, batch).

    Raises:
        CoordCheckError: a class, where an instance of it is meant.
    """
    if loss is None:
        return model_loss
    if isinstance(loss, type):
        raise CoordCheckError(f"loss is the class {loss.__name__}; pass an instance of it: {loss.__name__}().")
    if isinstance(loss, nn.Module) or getattr(loss, "__module__", "") == "torch.nn.functional":
        return output_loss(loss)
    return _Explained(loss)


class _Explained:
    """A user's loss(model, batch), with a word on how it was called when it cannot be called so at all."""

    def __init__(self, loss: Loss) -> None:
        self._loss = loss

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        calls: list[None] = []
        seen = model.register_forward_pre_hook(lambda *_: calls.append(None))
        try:
            return self._loss(model, batch)
        except (TypeError, AttributeError) as error:
            if calls or not isinstance(batch, (tuple, list)):  # the model's own error, or nothing to take for targets
                raise
            raise CoordCheckError(
                f"loss= was called as loss(model, batch), and raised {type(error).__name__} before it called the "
                f"model: {error}. If it takes (output, target), pass coordcheck.output_loss(loss)."
            ) from error
        finally:
            seen.remove()
