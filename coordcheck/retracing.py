"""A later forward pass, looked at only where the first one was seen to use a parameter or to compute attention.

A model mostly makes the same calls in the same order at every step. As long as it does, most of them need no look at
all; from the first one that differs on, such as where an expert gets no tokens, the rest is traced as if it were new.
"""

from __future__ import annotations

import copy
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from torch import nn

from coordcheck import operations as ops
from coordcheck.hooks import Hook, in_backward
from coordcheck.keeping import copied, fused_attention, kept_leaf, kept_leaves
from coordcheck.modes import Mode, others_see, unseen
from coordcheck.tracing import Tracer
from coordcheck.uses import AttentionCall, UseCall, flattened, fused_arguments


class Retracer:
    """Follows one more call of a model that was traced before.

    Args:
        model: the model.
        first: its first trace.

    Attributes:
        uses, slices, attentions, products: as a `Tracer`'s; of a use the input alone is kept.
        same: whether the calls were those of the first trace.
    """

    def __init__(self, model: nn.Module, first: Tracer) -> None:
        self.skipped: Counter[str] = Counter()
        self.same = True
        self._model, self._first = model, first
        self._again: dict[UseCall, UseCall] = {}
        self._products: dict[AttentionCall, AttentionCall] = {}
        self._wanted = {*first.uses.values(), *(use for uses in first.slices.values() for use in uses.values())}
        self._at = 0
        self._rest: Tracer | None = None
        self._lost = False
        self._mode = Mode(self.run)
        self._hooks = ExitStack()
        self._thread = threading.get_ident()
        self._inside = False

    def __enter__(self) -> Retracer:
        self._mode.put_on()
        self._hooks.callback(self._mode.take_off)
        self._inside = True
        return self

    def __exit__(self, *exception: Any) -> None:
        self.end()

    def begin(self, args: Any, kwargs: Any) -> None:
        """Enter from inside a call of the model, which has begun; it ends with the call, also by an exception."""
        ended = Hook(lambda model, args, output: self.end(), self._failed)
        self._hooks.callback(self._model.register_forward_hook(ended, always_call=True).remove)
        self.__enter__()

    @property
    def elsewhere(self) -> bool:
        """Whether another thread is inside the call."""
        return self._inside and threading.get_ident() != self._thread

    def end(self) -> None:
        """Leave that call; once is enough. Another thread's call of the model is none of this one's."""
        if threading.get_ident() != self._thread:
            return
        if self._inside:
            self.same &= self._at == len(self._first.steps)
        self._inside = False
        self._hooks.close()
        if self._rest is not None:
            self._rest.end()

    def _failed(self, error: Exception) -> None:
        self.skipped[f"a call ({type(error).__name__})"] += 1

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Call a function, and keep what it takes where the first trace kept it."""
        if self._rest is not None:
            return self._rest.run(func, args, kwargs)
        if self._lost or ops.name_of(func) == "__set__" or ops.tells(func) or in_backward():
            return func(*args, **kwargs)
        if ops.inside(func) and not others_see(args, kwargs):
            with self._mode:
                return ops.steps_of(func)(*args, **kwargs)
        step = self._first.steps[self._at] if self._at < len(self._first.steps) else None
        if step is None or step.function != func:
            return self._differs(func, args, kwargs)
        self._at += 1
        if not step.addresses and not step.uses and step.product is None:
            return func(*args, **kwargs)
        try:
            with unseen():
                leaves, spec = flattened(args, kwargs)
                same = all(leaves[at].data_ptr() == address for at, address in step.addresses.items())
                for use in step.uses if same else ():
                    if use in self._wanted:
                        self._keep(use, leaves)
        except Exception:  # other arguments than the first time
            same = False
        if not same:
            return self._differs(func, args, kwargs)
        output = func(*args, **kwargs)
        if step.product is not None:
            try:
                with unseen():
                    self._attend(step.product, leaves, spec, output)
            except Exception as error:  # it must run all the same
                self._failed(error)
        return output

    def _differs(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Trace the rest of the call as if it were new, this function first."""
        self.same = False
        try:
            with unseen():
                rest = Tracer(self._model, sampled=self._first.sampled)
                rest.begin_within()
                self._rest = rest
        except Exception as error:  # it must run all the same
            self._failed(error)
            self._lost = True
            return func(*args, **kwargs)
        return rest.run(func, args, kwargs)

    def _keep(self, use: UseCall, leaves: Sequence[Any]) -> None:
        position, sampled = use.input_position, self._first.sampled
        operands = {**use.others, use.position: use.operand}
        again = self._again[use] = copy.copy(use)
        if use.operation in ops.GROUPED:
            again.leaves = kept_leaves(use.operation, leaves, operands, sampled=sampled)
            return
        again.leaves = [None] * len(leaves)
        if position is not None:  # else it takes ids
            again.leaves[position] = kept_leaf(use.operation, leaves, operands, position, sampled=sampled)

    def _attend(self, first: AttentionCall, leaves: Sequence[Any], spec: Any, output: Any) -> None:
        again, sampled = AttentionCall(first.layer, first.operation), self._first.sampled
        if first.places is None:
            _, query, key, again.logits = fused_attention(fused_arguments(leaves, spec), sampled=sampled)
        else:
            query, key = (copied(leaves[place], sampled=sampled) for place in first.places)
            again.logits = copied(output, sampled=sampled) * first.after
        factors = [1.0 if before is None else before[1] for before in (first.query, first.key)]
        again.query, again.key = (query, factors[0]), (key, factors[1])
        self._products[first] = again

    @property
    def uses(self) -> Mapping[tuple[str, str], UseCall]:
        found = {key: self._again[use] for key, use in self._first.uses.items() if use in self._again}
        return found if self._rest is None else {**found, **self._rest.uses}

    @property
    def slices(self) -> Mapping[tuple[str, str], Mapping[tuple[int, tuple[int, ...]], UseCall]]:
        found = {
            key: {place: self._again[use] for place, use in uses.items() if use in self._again}
            for key, uses in self._first.slices.items()
        }
        rest = {} if self._rest is None else self._rest.slices
        return {key: {**found.get(key, {}), **rest.get(key, {})} for key in {**found, **rest}}

    @property
    def attentions(self) -> Sequence[AttentionCall]:
        found = [self._products[product] for product in self._first.attentions if product in self._products]
        return found if self._rest is None else [*found, *self._rest.attentions]

    @property
    def products(self) -> Sequence[AttentionCall]:
        found = [self._products[product] for product in self._first.products if product in self._products]
        return found if self._rest is None else [*found, *self._rest.products]
