"""Which calls in a loop are recorded: those of the training, or a pass on a probe beside them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from coordcheck.common.isolation import user_code
from coordcheck.recording.hooks.hooks import OUTSIDE, Hook, graph_task, in_backward
from coordcheck.recording.layers.activations import ActivationRecorder
from coordcheck.recording.layers.calls import leaves
from coordcheck.recording.layers.probing import ProbePass
from coordcheck.recording.step_counter import Inside, StepCounter
from coordcheck.recording.updates.in_loop import OwnUpdatesInLoop


class TrainingCalls:
    """The calls of the model in its training are recorded; where it is not called itself, those of its layers.

    Args:
        model: the model.
        sites: what records.
        steps: tells which call is of which step.
        own: what follows the first updates, if anything does.
        hook: makes a hook of what is called when a backward pass reaches a layer.
    """

    def __init__(
        self,
        model: nn.Module,
        sites: ActivationRecorder,
        steps: StepCounter,
        own: OwnUpdatesInLoop | None,
        *,
        hook: Callable[[Callable[..., object]], Hook],
    ) -> None:
        self._model, self._sites, self._steps, self._own, self._hook = model, sites, steps, own, hook

    def before(self, model: nn.Module, args: Any, kwargs: Any) -> None:
        """A call of the model begins."""
        recorded = self._steps.begin_call(trains=self._trains())
        # a whole model that is checkpointed is called without gradients, and once more in the backward pass
        self._sites.task = graph_task()
        if recorded:
            self._follow(args, kwargs)

    def after(self, model: nn.Module, args: Any, output: Any) -> None:
        """A call of the model is over."""
        self._sites.task = OUTSIDE
        self._steps.end_call()

    def listens(self, output: Any) -> bool:
        """Whether a layer's call is part of the step, also where the model itself is not called."""
        if self._steps.inside is not Inside.NOTHING:
            return self._steps.inside is Inside.TRAINING
        if not self._trains():
            # a checkpoint calls its layers without gradients, in training mode
            checkpointing = self._model.training and not torch.is_grad_enabled()
            self._steps.doubtful |= checkpointing
            return checkpointing
        if not self._steps.awaits_backward:
            for _, leaf in leaves(output):
                if isinstance(leaf, Tensor) and leaf.requires_grad:
                    leaf.register_hook(self._hook(lambda gradient: self._steps.close()))
                    self._steps.awaits_backward = True
                    break
        return True

    def _trains(self) -> bool:
        first = not self._steps.seen_training
        trains = self._steps.trains(training=self._model.training, gradients=torch.is_grad_enabled())
        if first and self._steps.seen_training and self._steps.t == 0:
            self._sites.discard()  # calls in evaluation mode before it were no training
        return trains

    def _follow(self, args: Any, kwargs: Any) -> None:
        if self._own is not None and self._sites.is_open and not in_backward():
            self._own.begin(self._steps.t, args, kwargs)


class ProbedCalls(TrainingCalls):
    """A pass on a probe is recorded before each update that follows a call of the training, and no such call itself."""

    def __init__(self, probe: ProbePass, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._probe = probe

    def before(self, model: nn.Module, args: Any, kwargs: Any) -> None:
        """A call of the model begins, of the training or of the pass."""
        if self._probe.running:
            return
        first = self._steps.inside is Inside.TRAINING or not self._probe.awaited  # after one that raised, or an update
        if self._steps.begin_call(trains=self._trains()):
            self._probe.note_call()
            if first:
                self._follow(args, kwargs)

    def after(self, model: nn.Module, args: Any, output: Any) -> None:
        """A call of the model is over."""
        if not self._probe.running:
            super().after(model, args, output)

    def listens(self, output: Any) -> bool:
        """Whether a layer's call is one of the pass."""
        if not self._probe.running and self._steps.inside is Inside.NOTHING and self._trains():
            self._probe.note_call()
        return self._probe.running

    def _trains(self) -> bool:
        return self._steps.trains(training=self._model.training, gradients=torch.is_grad_enabled())

    def look(self, *, as_before: bool = False) -> None:
        """Record a pass on the probe, while the parameters still are those of step t.

        Raises:
            Exception: whatever the model raises, after which the step is as if nothing had been called.
        """
        if not self._probe.awaited or self._steps.ended or not self._sites.is_open:
            return
        try:
            with user_code("the pass on the probe"):
                self._probe.run(as_before=as_before)
        except Exception:
            self._sites.discard()
            raise
        self._steps.close()

    def look_at_end(self) -> None:
        """Record a pass of the last step, which no update follows, where it needs no other rank."""
        if self._steps.t > 0 and self._probe.alone:
            self._probe.awaited = True
            self.look(as_before=True)
