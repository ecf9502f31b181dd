"""The calls of a forward pass: by what each is known again in a later pass, and what is known of their tensors."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from typing import Any, Generic, TypeVar

from torch import Tensor

from coordcheck.recording.graph.uses import AttentionCall, Mark, Operand, UseCall


class Step:
    """One function call, as far as the same call in a later pass is known by it."""

    __slots__ = ("addresses", "attends", "function", "given", "origins", "plain", "product", "scalar", "uses")

    def __init__(self, function: Any) -> None:
        self.function = function
        self.addresses: dict[int, int] = {}
        """Where the parameters lie that it takes, by position."""
        self.origins: dict[int, int | None] = {}
        """Of what is made of a parameter, by position, the number of the step that made it."""
        self.plain: list[Any] = []
        """What else it takes beside a parameter that is no tensor."""
        self.scalar: tuple[int, float] | None = None
        """The position of the tensor that it multiplies by a number, and the number."""
        self.uses: list[UseCall] = []
        self.product: AttentionCall | None = None
        self.attends: AttentionCall | None = None
        """The product whose softmax it is."""
        self.given: Mark | Operand | str | None = None
        """What is known of its output, where that is a parameter's or a product's."""

    @property
    def watched(self) -> bool:
        """Whether a later pass has to look at it."""
        takes = self.addresses or self.origins or self.uses or self.scalar
        return bool(takes or self.product or self.attends) or self.given is not None


def plain_leaves(leaves: Sequence[Any]) -> list[Any]:
    """Those that are no tensors, such as a number or a place."""
    return [leaf for leaf in leaves if not isinstance(leaf, Tensor)]


Known = TypeVar("Known")


class Marks(Generic[Known]):
    """What is known of tensors, without keeping them; torch's own dictionary for this takes twenty times as long."""

    def __init__(self) -> None:
        self._by_id: dict[int, tuple[weakref.ref[Tensor], Known]] = {}

    def get(self, tensor: Tensor) -> Known | None:
        found = self._by_id.get(id(tensor))
        # the number of a tensor that is gone is given to another one
        return found[1] if found is not None and found[0]() is tensor else None

    def __setitem__(self, tensor: Tensor, mark: Known) -> None:
        self._by_id[id(tensor)] = weakref.ref(tensor), mark

    def alive(self) -> Iterator[tuple[Tensor, Known]]:
        """Those that are still there."""
        for reference, mark in self._by_id.values():
            tensor = reference()
            if tensor is not None:
                yield tensor, mark
