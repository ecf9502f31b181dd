"""The user's data: one batch or several, the same for every width, on the device of the model."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from coordcheck.calls import leaves, version
from coordcheck.errors import CoordCheckError


class Batches:
    """The batches of a check: step t sees the t-th, or the only one, always with the values the user gave.

    Runs work on copies, one per device for all runs of a process; a copy that a run has written into is made anew.
    """

    def __init__(self, values: Sequence[Any]) -> None:
        self.values = values
        self._copies: dict[tuple[int, torch.device], tuple[Any, list[int]]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"values": self.values, "_copies": {}}

    def at(self, step: int, device: torch.device) -> Any:
        """The batch of a step, on `device`."""
        place = step % len(self.values), device
        copy, versions = self._copies.get(place, (None, []))
        if place not in self._copies or versions != _versions(copy):
            copy = to_device(self.values[place[0]], device)
            self._copies[place] = copy, _versions(copy)
        return copy


def _versions(batch: Any) -> list[int]:
    """How often each tensor of a batch was written to."""
    return [version(leaf) for _, leaf in leaves(batch) if isinstance(leaf, Tensor)]


def cached_batches(batch: Any, steps: int) -> Batches | Callable[[int], Any] | None:
    """The user's `batch` argument as batches, or as the function of the seed that it is.

    A tensor, a mapping, or a list or tuple that starts with a tensor is one batch, used at every step.
    Any other iterable, such as a data loader, is a sequence of batches: step t uses the t-th, and only the
    first `steps` + 1 are taken, once, so every width sees the same data.

    Raises:
        CoordCheckError: an empty sequence, or one too short for the steps.
    """
    if batch is None or callable(batch):
        return batch
    if isinstance(batch, (str, bytes)):
        raise CoordCheckError(f"a batch must be a tensor, a mapping or a tuple of tensors, got {batch!r:.40}.")
    if _is_array(batch) or (isinstance(batch, (tuple, list)) and batch and _is_array(batch[0])):
        raise CoordCheckError("the batch holds numpy arrays; make tensors of them: torch.as_tensor(array).")
    if isinstance(batch, (Tensor, Mapping)) or not isinstance(batch, Iterable):
        return Batches([batch])
    if isinstance(batch, (tuple, list)) and batch and isinstance(batch[0], Tensor):
        return Batches([batch])
    several = list(islice(batch, steps + 1))
    if len(several) not in (1, steps + 1):
        raise CoordCheckError(
            f"{len(several)} batches are too few for {steps} steps: give {steps + 1} (t = 0 to the last step), or one "
            "fixed batch: next(iter(loader)) of a data loader; [batch] of a tuple that does not start with a tensor."
        )
    return Batches(several)


def of_seed(function: Callable[..., Any], seed: int) -> Any:
    """What a function of the seed gives; one that takes no argument gives the same for every seed."""
    try:
        takes_none = not inspect.signature(function).parameters
    except (TypeError, ValueError):  # written in C
        takes_none = False
    return function() if takes_none else function(seed)


def _is_array(value: object) -> bool:
    return isinstance(value, np.ndarray)


def to_device(value: Any, device: torch.device) -> Any:
    """A copy of a batch on `device`; tensors are cloned, so that no run sees another's in-place changes."""
    if isinstance(value, Tensor):
        return value.detach().clone().to(device)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: to_device(getattr(value, f.name), device) for f in fields(value) if f.init})
    if isinstance(value, Mapping):
        return {key: to_device(item, device) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(to_device(item, device) for item in value))
    if isinstance(value, (tuple, list)):
        return type(value)(to_device(item, device) for item in value)
    return value


def describe(value: object) -> str:
    """A batch in a few words, for messages: types and shapes.

    >>> describe((torch.zeros(2, 3), {"y": None}))
    "(Tensor[2, 3], {'y': NoneType})"
    """
    if isinstance(value, Tensor):
        return f"Tensor{list(value.shape)}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {describe(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (tuple, list)):
        return "(" + ", ".join(describe(item) for item in value) + ")"
    return type(value).__name__


def probes(batch: Any) -> list[Any]:
    """Tiny batches made of one batch, to be tried in this order: exponents are least biased on few examples.

    A batch of token ids is cut to `PROBE_SEQUENCES` pieces of `PROBE_TOKENS`, any other to `PROBE_EXAMPLES` examples;
    the whole batch comes last, for models that accept nothing else.

    Source: the update of a layer and its input are fully aligned only on few examples; alignment is measured by
    Everett et al. 2024, "Scaling Exponents Across Parameterizations and Optimizers", arXiv:2407.05872.

    >>> [describe(probe) for probe in probes(torch.zeros(16, 100, dtype=torch.int64))]
    ['Tensor[2, 9]', 'Tensor[4, 100]', 'Tensor[16, 100]']
    """
    tensors = [leaf for _, leaf in leaves(batch) if isinstance(leaf, Tensor) and leaf.dim()]
    if not tensors:
        return [batch]
    examples = len(tensors[0])
    found = []
    tokens = all(t.dim() >= 2 and t.shape[:2] == tensors[0].shape[:2] for t in tensors)
    if (
        tokens
        and tensors[0].shape[1] > PROBE_TOKENS
        and any(t.dim() == 2 and not t.is_floating_point() for t in tensors)
    ):
        found.append(_cut(batch, examples, PROBE_SEQUENCES, PROBE_TOKENS))
    if examples > PROBE_EXAMPLES:
        found.append(_cut(batch, examples, PROBE_EXAMPLES, None))
    return [*found, batch]


PROBE_EXAMPLES = 4
PROBE_SEQUENCES = 2
PROBE_TOKENS = 9


def _cut(value: Any, examples: int, keep: int, tokens: int | None) -> Any:
    """The first examples of everything in a batch that has as many entries."""
    if isinstance(value, Tensor):
        if not value.dim() or len(value) != examples:
            return value
        return value[:keep, :tokens] if tokens is not None else value[:keep]
    if is_dataclass(value) and not isinstance(value, type):
        parts = {f.name: _cut(getattr(value, f.name), examples, keep, tokens) for f in fields(value) if f.init}
        return replace(value, **parts)
    if isinstance(value, Mapping):
        return {key: _cut(item, examples, keep, tokens) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_cut(item, examples, keep, tokens) for item in value))
    if isinstance(value, (tuple, list)):
        plain = len(value) == examples and not any(isinstance(item, (Tensor, Mapping, tuple, list)) for item in value)
        return value[:keep] if plain else type(value)(_cut(item, examples, keep, tokens) for item in value)
    return value
