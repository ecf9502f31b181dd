"""A callback for the Trainer of Hugging Face transformers.

from coordcheck.integrations.transformers import CoordCheckCallback

Trainer(model, args, train_dataset=[example] * 40, callbacks=[CoordCheckCallback(width=256, save_to="runs")]).train()
"""

from __future__ import annotations

from os import PathLike
from typing import Any

from coordcheck.common.docstrings import as_for
from coordcheck.common.errors import CoordCheckError
from coordcheck.common.extras import import_extra
from coordcheck.integrations.callback import Recording
from coordcheck.recording.recorder import Recorder
from coordcheck.runs.records import RunRecord

_Callback: Any = import_extra("transformers", extra="hf", purpose="this callback", attribute="TrainerCallback")


@as_for(Recorder)
class CoordCheckCallback(_Callback):  # type: ignore[misc]  # transformers need not be installed where types are checked
    """Records the first steps of a `transformers.Trainer`, and writes the run file of this width.

    A change is only an effect of training on the same input: give `probe` one batch, such as a few examples in a
    dictionary of tensors, or the Trainer a data set that repeats one example. Recording stops by itself after step
    `steps`, which takes `steps + 1` training steps.
    A Trainer does not tell its callbacks that it failed: the run file then is written when the callback, or the
    process, ends, or when the block of `with callback:` around `trainer.train()` does.

    Args:
        width: as for `Recorder`.
        seed: tells runs of one width apart.
        label: the name of the parametrization.
        steps: as for `Recorder`.
        own_updates: whether to diagnose the first updates, as `coordcheck.Recorder` does.
        probe: as for `Recorder`.
        save_to: as for `Recorder`.
        stop: end the training as soon as everything is recorded.

    Raises:
        CoordCheckError: an argument that cannot be used, or, when the training begins, a model that cannot be
            recorded (a ScriptModule). Nothing is raised into the training itself.
    """

    def __init__(
        self,
        *,
        width: int,
        seed: int = 0,
        label: str = "model",
        steps: int = 4,
        own_updates: bool = True,
        probe: Any = None,
        save_to: str | PathLike[str] | None = None,
        stop: bool = False,
    ) -> None:
        self._recording = Recording(
            width=width, seed=seed, label=label, steps=steps, own_updates=own_updates, probe=probe, save_to=save_to
        )
        self._stop = stop

    @property
    def record(self) -> RunRecord | None:
        """What was recorded, once the training has started."""
        return self._recording.record

    def __enter__(self) -> CoordCheckCallback:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._recording.end(error)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.torch_compile:
            raise CoordCheckError("the Trainer compiles its model, which hides its layers. Pass torch_compile=False.")
        self._recording.start(
            self, kwargs["model"], kwargs["optimizer"], step=state.global_step, writes=state.is_world_process_zero
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._recording.done:
            self._recording.end()
            control.should_training_stop |= self._stop

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._recording.end()
