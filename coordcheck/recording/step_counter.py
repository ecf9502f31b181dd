"""How often a model was updated, and which of the calls between two updates are those of a step."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Protocol


class Windows(Protocol):
    """What records calls, one window per step."""

    @property
    def is_open(self) -> bool: ...

    @property
    def has_calls(self) -> bool: ...

    def open(self, step: int) -> None: ...

    def close(self) -> None: ...

    def discard(self) -> None: ...


class Inside(Enum):
    """Where in a loop this is."""

    NOTHING = "between the calls of the model"
    TRAINING = "in a call of the training"
    OTHER = "in a call of the model that is none of the training"


class StepCounter:
    """Counts the updates that follow a recorded call, and opens and closes the windows of the steps.

    The window of step t is open from update t on, until a call was recorded in it. So several optimizers that step one
    after the other are one update, and further calls before the next update (micro-batches) are not recorded.

    Args:
        steps: the last step to record.
        windows: what records.
        at_end: called once, when nothing more is to be recorded.

    Attributes:
        t: the updates so far.
        recorded: the last step that was; None before the first.
        inside: where this is.
        doubtful: layers were called without gradients, outside of a call of the model: by a checkpoint, or by nobody
            who trains.
        awaits_backward: layers alone were called, with gradients: their backward pass ends the step.
        seen_training: a call in training mode was seen, beside which those in evaluation mode are none of the training.
        ended: nothing more is to be recorded.
    """

    def __init__(self, steps: int, windows: Windows, at_end: Callable[[], object]) -> None:
        self.steps, self._windows, self._at_end = steps, windows, at_end
        self.t = 0
        self.recorded: int | None = None
        self.inside = Inside.NOTHING
        self.doubtful = self.awaits_backward = self.seen_training = self.ended = False

    @property
    def done(self) -> bool:
        """Whether every step was recorded."""
        return self.recorded == self.steps

    def trains(self, *, training: bool, gradients: bool) -> bool:
        """Whether a call now is one of the training.

        Args:
            training: whether the model is in training mode.
            gradients: whether gradients are computed.
        """
        self.seen_training |= training and gradients
        return gradients and (training or not self.seen_training)

    def begin_call(self, *, trains: bool) -> bool:
        """A call of the model begins; whether it is one of the training."""
        # a call that raised is no step, and calls of layers without gradients were no checkpoint's
        if (self.inside is Inside.TRAINING or self.doubtful) and self._windows.is_open:
            self._windows.discard()
        self.doubtful = False
        self.inside = Inside.TRAINING if trains else Inside.OTHER
        return trains

    def end_call(self) -> None:
        """The call of the model is over; whatever follows before the next update is no more of this step."""
        inside, self.inside = self.inside, Inside.NOTHING
        if inside is Inside.TRAINING:
            self.close()

    def close(self) -> None:
        """Close the window if it has seen a call."""
        if self._windows.is_open and self._windows.has_calls:
            self._windows.close()
            self.awaits_backward = False
            self.recorded = self.t
            if self.done and self.t > 0:  # at t=0 the learning rates are not known yet
                self.end()

    def update(self) -> None:
        """An optimizer has made its step, which is an update of its own if a call was recorded since the last one."""
        self.close()
        if self._windows.is_open or self.ended:
            return
        self.t += 1
        if self.t <= self.steps:
            self._windows.open(self.t)
        else:
            self.end()

    def end(self) -> None:
        """Nothing more is to be recorded."""
        if not self.ended:
            self.ended = True
            self._at_end()
