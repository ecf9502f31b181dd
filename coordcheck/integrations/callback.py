"""One run recorded inside the loop of a training framework, from its first step to its end, however it ends."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Sequence
from os import PathLike
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from coordcheck.common.errors import CoordCheckError
from coordcheck.recording.recorder import Recorder
from coordcheck.runs.arguments import labelled
from coordcheck.runs.files import RunFolder
from coordcheck.runs.numbers import whole_number
from coordcheck.runs.records import RunRecord


class Recording:
    """A `Recorder` that starts when a framework shows its model, and ends with the framework's training.

    Args:
        width: the scale that is compared across runs.
        save_to: a folder for the run file.

    Raises:
        CoordCheckError: an argument that `Recorder` refuses, or a folder that cannot be written.
    """

    def __init__(
        self,
        *,
        width: int,
        seed: int,
        label: str,
        steps: int,
        own_updates: bool = True,
        probe: Any = None,
        save_to: str | PathLike[str] | None,
    ) -> None:
        self._settings: dict[str, Any] = {
            "width": whole_number("width", width, 1),
            "seed": whole_number("seed", seed, 0),
            "steps": whole_number("steps", steps, 0),
            "label": label,
            "own_updates": own_updates,
            "probe": probe,
        }
        labelled({label: Recording})
        if save_to is not None:
            RunFolder(save_to).probe()
        self._save_to = save_to
        self._recorder: Recorder | None = None
        self._ended = False
        self._abandoned: weakref.finalize[..., Any] | None = None

    @property
    def record(self) -> RunRecord | None:
        """What was recorded, once the training has started."""
        return None if self._recorder is None else self._recorder.record

    @property
    def done(self) -> bool:
        """Whether every step was recorded."""
        return self._recorder is not None and self._recorder.done

    def start(
        self, owner: object, model: nn.Module, optimizers: Sequence[Optimizer] | Optimizer, *, step: int, writes: bool
    ) -> None:
        """Record from the next step on; a training that starts anew before everything was recorded replaces it.

        Args:
            model: the model, also where the framework wraps it.
            optimizers: all that update it.
            owner: whose end, or that of the process, is the end of a training that was left without a word.
            step: how many updates the training has made already.
            writes: whether this process writes the run file.

        Raises:
            CoordCheckError: a model or optimizer that `Recorder` refuses.
        """
        if self.done:
            return
        self.end()
        save_to = self._save_to if writes else None
        distributed = torch.distributed
        # a framework trains one model on all of its processes, and may show it without what says so
        group = distributed.group.WORLD if distributed.is_available() and distributed.is_initialized() else None
        recorder = Recorder(model, optimizers, save_to=save_to, group=group, **self._settings)
        if step:
            recorder.record.notes.append(f"the training was resumed: t=0 is step {step}, not the initialisation")
        recorder.__enter__()
        self._recorder, self._ended = recorder, False
        self._abandoned = weakref.finalize(owner, _end_abandoned, self)

    def end(self, error: BaseException | None = None) -> None:
        """End the recording; one that has ended, or never began, stays as it is."""
        if self._recorder is None or self._ended:
            return
        self._ended = True
        if self._abandoned is not None:
            self._abandoned.detach()
        self._recorder.__exit__(None if error is None else type(error), error, None)


def _end_abandoned(recording: Recording) -> None:
    # what ended the process, where python itself has told it; the frameworks do not always tell
    last = getattr(sys, "last_value", None)
    recording.end(last or CoordCheckError("the training ended without telling its callbacks"))
