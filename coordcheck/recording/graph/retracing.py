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

from coordcheck.recording.graph import operations as ops
from coordcheck.recording.graph.keeping import copied, fused_attention, kept_leaf, kept_leaves
from coordcheck.recording.graph.steps import Marks, Step, plain_leaves
from coordcheck.recording.graph.tracer import Tracer
from coordcheck.recording.graph.uses import (
    AttentionCall,
    Mark,
    Operand,
    UseCall,
    flattened,
    fused_arguments,
    tensors_in,
)
from coordcheck.recording.hooks.hooks import Hook, in_backward
from coordcheck.recording.hooks.modes import Mode, others_see, unseen


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
        self._uses: dict[tuple[str, str], UseCall] = {}
        self._slices: dict[tuple[str, str], dict[tuple[int, tuple[int, ...]], UseCall]] = {}
        self._products: dict[AttentionCall, AttentionCall] = {}
        self._attended: list[AttentionCall] = []
        self._known: Marks[tuple[int, Mark | Operand | str]] = Marks()  # of outputs, the step and what it gave
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
        if not step.watched:
            return func(*args, **kwargs)
        try:
            with unseen():
                leaves, spec = flattened(args, kwargs)
                same = self._is_same(step, leaves)
                for use in step.uses if same else ():
                    self._keep(use, leaves)
        except Exception:  # other arguments than the first time
            same = False
        if not same:
            return self._differs(func, args, kwargs)
        output = func(*args, **kwargs)
        try:
            with unseen():
                self._see(step, leaves, spec, output)
        except Exception as error:  # it must run all the same
            self._failed(error)
        return output

    def _is_same(self, step: Step, leaves: Sequence[Any]) -> bool:
        """Whether a call takes the same parameters, made in the same way, and the same numbers as the first time."""
        if any(leaves[at].data_ptr() != address for at, address in step.addresses.items()):
            return False
        if any((self._known.get(leaves[at]) or (None,))[0] != number for at, number in step.origins.items()):
            return False
        if (step.addresses or step.origins) and plain_leaves(leaves) != step.plain:
            return False
        if step.scalar is None:
            return True
        position, factor = step.scalar
        return ops.scalar(ops.name_of(step.function), leaves, {position: leaves[position]}) == factor

    def _see(self, step: Step, leaves: Sequence[Any], spec: Any, output: Any) -> None:
        if step.product is not None:
            self._multiply(step.product, leaves, spec, output)
        if step.attends in self._products:
            again = self._products[step.attends]
            again.logits = None if again.logits is None else again.logits * step.attends.after
            self._attended.append(again)
        if step.given is not None:
            for made in tensors_in(output):
                self._known[made] = self._at - 1, step.given

    def _differs(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Trace the rest of the call as if it were new, this function first."""
        self.same = False
        try:
            with unseen():
                rest = Tracer(self._model, sampled=self._first.sampled)
                rest.begin_within((tensor, self._now(mark)) for tensor, (_, mark) in self._known.alive())
                self._rest = rest
        except Exception as error:  # it must run all the same
            self._failed(error)
            self._lost = True
            return func(*args, **kwargs)
        return rest.run(func, args, kwargs)

    def _now(self, mark: Mark | Operand | str) -> Mark | Operand | str:
        """What the first trace knew of a tensor, with the products of this pass; nothing of that one is changed."""
        if not isinstance(mark, Mark):
            return mark
        product = None if mark.product is None else self._products.get(mark.product)
        return Mark(product=product, factor=mark.factor, flow=frozenset() if product is None else frozenset({product}))

    def _keep(self, use: UseCall, leaves: Sequence[Any]) -> None:
        position, sampled = use.input_position, self._first.sampled
        operands = {**use.others, use.position: use.operand}
        again = copy.copy(use)
        if use.operation in ops.GROUPED:
            again.leaves = kept_leaves(use.operation, leaves, operands, sampled=sampled)
        else:
            again.leaves = [None] * len(leaves)
            if position is not None:  # else it takes ids
                again.leaves[position] = kept_leaf(use.operation, leaves, operands, position, sampled=sampled)
        key, place = (use.parameter, use.operation), (use.operand.offset, use.operand.size)
        self._uses[key] = again
        if place in self._first.slices.get(key, {}):
            self._slices.setdefault(key, {})[place] = again

    def _multiply(self, first: AttentionCall, leaves: Sequence[Any], spec: Any, output: Any) -> None:
        again, sampled = AttentionCall(first.layer, first.operation), self._first.sampled
        if first.places is None:
            _, query, key, again.logits = fused_attention(fused_arguments(leaves, spec), sampled=sampled)
            self._attended.append(again)
        else:
            query, key = (copied(leaves[place], sampled=sampled) for place in first.places)
            again.logits = copied(output, sampled=sampled)
        factors = [1.0 if before is None else before[1] for before in (first.query, first.key)]
        again.query, again.key = (query, factors[0]), (key, factors[1])
        self._products[first] = again

    @property
    def uses(self) -> Mapping[tuple[str, str], UseCall]:
        return self._uses if self._rest is None else {**self._uses, **self._rest.uses}

    @property
    def slices(self) -> Mapping[tuple[str, str], Mapping[tuple[int, tuple[int, ...]], UseCall]]:
        rest = {} if self._rest is None else self._rest.slices
        return {key: {**self._slices.get(key, {}), **rest.get(key, {})} for key in {**self._slices, **rest}}

    @property
    def attentions(self) -> Sequence[AttentionCall]:
        return self._attended if self._rest is None else [*self._attended, *self._rest.attentions]

    @property
    def products(self) -> Sequence[AttentionCall]:
        found = [self._products[product] for product in self._first.products if product in self._products]
        return found if self._rest is None else [*found, *self._rest.products]
