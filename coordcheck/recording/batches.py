"""The user's data: one batch or several, the same for every width, on the device of the model."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from coordcheck.common.errors import CoordCheckError
from coordcheck.recording.layers.calls import leaves, version


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


class OfSeed:
    """A function of the seed, which is asked once: every width of a seed sees what it gave, in one process.

    A function whose data are another each time (of a stream, say) would else give every width its own.
    """

    def __init__(self, function: Callable[..., Any], steps: int) -> None:
        self.function, self._steps = function, steps
        self._given: dict[int, Batches | None] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_given": {}}

    def __call__(self, seed: int) -> Batches | None:
        """The batches of a seed; None where the function gives none."""
        if seed not in self._given:
            found = cached_batches(_called(self.function, seed), self._steps)
            self._given = {seed: found if isinstance(found, Batches) else None}  # of one seed: the next one's follow
        return self._given[seed]


def cached_batches(batch: Any, steps: int) -> Batches | OfSeed | None:
    """The user's `batch` argument as batches, or as the function of the seed that it is.

    A tensor, a mapping, or a list or tuple that starts with a tensor is one batch, used at every step.
    Any other iterable, such as a data loader, is a sequence of batches: step t uses the t-th, and only the
    first `steps` + 1 are taken, once, so every width sees the same data.

    Raises:
        CoordCheckError: an empty sequence, or one too short for the steps.
    """
    if batch is None or isinstance(batch, (Batches, OfSeed)):
        return batch
    if callable(batch):
        return OfSeed(batch, steps)
    if isinstance(batch, (str, bytes)):
        raise CoordCheckError(f"a batch must be a tensor, a mapping or a tuple of tensors, got {batch!r:.40}.")
    first = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    if isinstance(first, np.ndarray):
        raise CoordCheckError(f"{arrays_in(batch)} Make tensors of them: torch.as_tensor(array).")
    if isinstance(batch, (Tensor, Mapping)) or not isinstance(batch, Iterable):
        return Batches([batch])
    if isinstance(first, Tensor):
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
    return function(seed) if isinstance(function, OfSeed) else _called(function, seed)


def _called(function: Callable[..., Any], seed: int) -> Any:
    try:
        takes_none = not inspect.signature(function).parameters
    except (TypeError, ValueError):  # written in C
        takes_none = False
    return function() if takes_none else function(seed)


def arrays_in(batch: Any) -> str:
    """Where a batch holds numpy arrays, in a sentence; nothing where it holds none.

    >>> arrays_in({"x": torch.zeros(2), "y": np.zeros(2)})
    "The batch holds numpy arrays: ['y']."
    """
    places = [path for path, leaf in leaves(batch) if isinstance(leaf, np.ndarray)]
    return f"The batch holds numpy arrays{': ' + ', '.join(places) if any(places) else ''}." if places else ""


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
    the whole batch comes last, for models that accept nothing else. They are the first examples that there are, except
    where these have nothing to learn: targets of `IGNORED` everywhere, or tokens that an attention mask hides.

    Source: the update of a layer and its input are fully aligned only on few examples; alignment is measured by
    Everett et al. 2024, "Scaling Exponents Across Parameterizations and Optimizers", arXiv:2407.05872.

    >>> [describe(probe) for probe in probes(torch.zeros(16, 100, dtype=torch.int64))]
    ['Tensor[2, 9]', 'Tensor[4, 100]', 'Tensor[16, 100]']
    """
    tensors = [leaf for _, leaf in leaves(batch) if isinstance(leaf, Tensor) and leaf.dim()]
    if not tensors:
        return [batch]
    examples = len(tensors[0])
    smaller = []
    try:
        if _are_tokens(tensors) and tensors[0].shape[1] > PROBE_TOKENS:
            smaller.append(_pieces_to_learn(_learnable(batch, examples), tensors[0].shape[:2]))
        if examples > PROBE_EXAMPLES:
            smaller.append(_examples_to_learn(_learnable(batch, examples), examples))
        return [*(_cut(batch, kept) for kept in smaller), batch]
    except (NotImplementedError, RuntimeError):  # a layout that cannot be cut: sparse, nested
        return [batch]


PROBE_EXAMPLES = 4
PROBE_SEQUENCES = 2
PROBE_TOKENS = 9
IGNORED = -100  # the target that torch's cross entropy and the models of transformers leave out by default


def _are_tokens(tensors: Sequence[Tensor]) -> bool:
    """Whether these are token ids and what belongs to them: all of (example, position, ...), some of integers."""
    alike = all(t.dim() >= 2 and t.shape[:2] == tensors[0].shape[:2] for t in tensors)
    return alike and any(t.dim() == 2 and not t.is_floating_point() for t in tensors)


class _Kept(NamedTuple):
    """What is kept of a batch: these examples, and of each, where it is cut, the tokens from its start on."""

    examples: int
    """How many the batch has: what has another length is no list of examples, and is kept whole."""
    rows: list[int]
    starts: list[int] | None = None

    def of(self, tensor: Tensor) -> Tensor:
        if not tensor.dim() or len(tensor) != self.examples:
            return tensor
        if self.starts is None:
            return tensor[self.rows]
        pairs = zip(self.rows, self.starts, strict=True)
        return torch.stack([tensor[row, start : start + PROBE_TOKENS] for row, start in pairs])


def _learnable(batch: Any, examples: int) -> list[Tensor]:
    """Per target that is ignored somewhere, and per attention mask: where it is not, (example, ...), of booleans."""
    found = []
    for path, leaf in leaves(batch):
        if not isinstance(leaf, Tensor) or not leaf.dim() or len(leaf) != examples or leaf.is_floating_point():
            continue
        if "attention_mask" in path:
            found.append(leaf != 0)
        elif leaf.dtype.is_signed and bool((leaf == IGNORED).any()):
            found.append(leaf != IGNORED)
    return [mask.cpu() for mask in found if bool(mask.any())]  # a task without any target here says nothing


def _pieces_to_learn(learnable: Sequence[Tensor], shape: Sequence[int]) -> _Kept:
    """The first of the pieces of the batch's sequences with the most to learn, of each sequence one."""
    both = torch.ones(shape[0], shape[1], dtype=torch.bool)
    for mask in learnable:
        both &= mask.flatten(2).any(-1) if mask.dim() > 2 else mask
    # a model that predicts the next token never uses the target of the first one
    counts = both.int().unfold(1, PROBE_TOKENS, 1)[..., 1:].sum(-1)  # (example, start)
    most, starts = counts.amax(1), counts.argmax(1)
    rows = sorted(torch.argsort(most, descending=True, stable=True)[:PROBE_SEQUENCES].tolist())
    return _Kept(shape[0], rows, starts[rows].tolist())


def _examples_to_learn(learnable: Sequence[Tensor], examples: int) -> _Kept:
    """The first examples of which something is to be learned, and more of the others if they are too few."""
    some = torch.ones(examples, dtype=torch.bool)
    for mask in learnable:
        flat = mask.reshape(examples, -1)
        some &= flat[:, 1:].any(1) if flat.shape[1] > 1 else flat[:, 0]
    return _Kept(examples, sorted(torch.argsort(some, descending=True, stable=True)[:PROBE_EXAMPLES].tolist()))


def _cut(value: Any, kept: _Kept) -> Any:
    """The part of everything in a batch that has as many entries as there are examples."""
    if isinstance(value, Tensor):
        return kept.of(value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: _cut(getattr(value, f.name), kept) for f in fields(value) if f.init})
    if isinstance(value, Mapping):
        return {key: _cut(item, kept) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_cut(item, kept) for item in value))
    if isinstance(value, (tuple, list)):
        nested = any(isinstance(item, (Tensor, Mapping, tuple, list)) for item in value)
        if len(value) == kept.examples and not nested:
            return type(value)(value[row] for row in kept.rows)
        return type(value)(_cut(item, kept) for item in value)
    return value
