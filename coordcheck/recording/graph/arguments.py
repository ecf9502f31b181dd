"""The arguments of a call, however nested, as a list, and the tensors in what it gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten


def tensors_in(value: Any) -> list[Tensor]:
    """Every tensor in a function's or module's output."""
    if isinstance(value, Tensor):
        return [value]
    return [leaf for leaf in tree_flatten(value)[0] if isinstance(leaf, Tensor)]


def first_tensor(value: Any) -> Tensor:
    """The first floating or complex tensor in a function's or module's output.

    Raises:
        ValueError: there is none.
    """
    for tensor in tensors_in(value):
        if is_measured(tensor):
            return tensor
    raise ValueError("no floating tensor in the output")


def is_measured(tensor: Tensor) -> bool:
    """Whether a tensor holds numbers that have a scale: real ones with a point, or complex ones."""
    return tensor.is_floating_point() or tensor.is_complex()


class Flat(NamedTuple):
    """How plain arguments lie in a list: so many by place, then those with a name."""

    places: int
    names: tuple[str, ...]


_NESTED = (list, tuple, dict)
_SIMPLE = {bool, int, float, str, torch.dtype}


def flattened(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[list[Any], Any]:
    """The arguments of a call in a list, with what `unflattened` needs.

    Most calls of torch functions take no containers, and these are taken apart by hand, which is faster.
    """
    if "input" in kwargs:  # where arguments are told by their place, the input comes first
        kwargs = {"input": kwargs["input"], **kwargs}
    leaves = [*args, *kwargs.values()]
    if any(isinstance(leaf, _NESTED) and not _sizes(leaf) for leaf in leaves):
        return tree_flatten((tuple(args), dict(kwargs)))
    return leaves, Flat(len(args), tuple(kwargs))


def _sizes(nested: Any) -> bool:
    """Whether it is a plain tuple of numbers, which is one argument as it is."""
    return type(nested) in (tuple, torch.Size) and all(type(item) is int for item in nested)


def unflattened(leaves: Sequence[Any], spec: Any) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """The arguments that `flattened` put into a list."""
    if isinstance(spec, Flat):
        return leaves[: spec.places], dict(zip(spec.names, leaves[spec.places :], strict=True))
    args, kwargs = tree_unflatten(list(leaves), spec)
    return args, kwargs


def snapshot(value: Any, copy: Callable[[Tensor], Tensor] = torch.clone) -> Any:
    """A copy of every tensor in nested arguments, which later in-place operations do not change."""
    if isinstance(value, Tensor):
        return copy(value.detach())
    if value is None or type(value) in _SIMPLE:
        return value
    leaves, spec = tree_flatten(value)
    return tree_unflatten([copy(leaf.detach()) if isinstance(leaf, Tensor) else leaf for leaf in leaves], spec)


def doubled(leaf: Any) -> Any:
    """A copy in double precision, which a function may write into; of a generator, one that it may draw from."""
    if isinstance(leaf, torch.Generator):
        return leaf.clone_state()
    if not isinstance(leaf, Tensor):
        return leaf
    return leaf.detach().to(double_of(leaf), copy=True)


def double_of(tensor: Tensor) -> torch.dtype:
    """The double precision of a tensor's numbers; integers stay what they are."""
    if tensor.is_complex():
        return torch.complex128
    return torch.float64 if tensor.is_floating_point() else tensor.dtype
