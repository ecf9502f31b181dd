"""A callback for the Trainer of Lightning, under either of its names.

from coordcheck.integrations.lightning import CoordCheckCallback

Trainer(max_steps=5, callbacks=[CoordCheckCallback(width=256, save_to="runs")]).fit(module, loader)
"""

from __future__ import annotations

import sys
from os import PathLike
from typing import Any

from coordcheck.common.docstrings import as_for
from coordcheck.common.errors import CoordCheckError
from coordcheck.common.extras import import_extra
from coordcheck.integrations.callback import Recording
from coordcheck.recording.recorder import Recorder
from coordcheck.runs.records import RunRecord

NAMES = ("lightning.pytorch", "pytorch_lightning")


def _callback() -> Any:
    """Lightning's base class, of the package that is in use: each of the two refuses the other's callbacks."""
    used_first = sorted(NAMES, key=lambda name: name not in sys.modules)
    return import_extra(*used_first, extra="lightning", purpose="this callback", attribute="Callback")


_Callback: Any = _callback()


@as_for(Recorder)
class CoordCheckCallback(_Callback):  # type: ignore[misc]  # Lightning need not be installed where types are checked
    """Records the first steps of a Lightning `Trainer`, and writes the run file of this width.

    Automatic and manual optimization, with one optimizer or several, are recorded. A change is only an effect of
    training on the same input: give `probe` one batch, such as (x, y), which calls the network on x, or the Trainer a
    loader of one batch and as many epochs as steps. Recording stops by itself after step `steps`, which takes
    `steps + 1` training steps.

    Args:
        width: as for `Recorder`.
        seed: tells runs of one width apart.
        label: the name of the parametrization.
        steps: as for `Recorder`.
        own_updates: whether to diagnose the first updates, as `coordcheck.Recorder` does.
        probe: as for `Recorder`.
        save_to: as for `Recorder`.
        stop: end the training as soon as everything is recorded.
        module: the path of the network inside the LightningModule, where losses and metrics beside it are no layers.

    Raises:
        CoordCheckError: an argument that cannot be used, or, when the training begins, a model that cannot be
            recorded (a ScriptModule) or has no such module. Nothing is raised into the training itself.
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
        module: str = "",
    ) -> None:
        self._recording = Recording(
            width=width, seed=seed, label=label, steps=steps, own_updates=own_updates, probe=probe, save_to=save_to
        )
        self._stop = stop
        self._module = module

    @property
    def record(self) -> RunRecord | None:
        """What was recorded, once the training has started."""
        return self._recording.record

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if getattr(pl_module, "_compiler_ctx", None) is not None:
            raise CoordCheckError("the LightningModule is compiled, which hides its layers. Fit the eager one.")
        try:
            model = pl_module.get_submodule(self._module)
        except AttributeError as error:
            raise CoordCheckError(f"module={self._module!r} is no module of {type(pl_module).__name__}.") from error
        self._recording.start(self, model, trainer.optimizers, step=trainer.global_step, writes=trainer.is_global_zero)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self._recording.done:
            self._recording.end()
            trainer.should_stop = trainer.should_stop or self._stop

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._recording.end()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._recording.end(exception)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._recording.end()
