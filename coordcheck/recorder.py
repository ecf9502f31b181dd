"""`Recorder`: one run recorded inside a training loop of the user's own."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from os import PathLike
from typing import Any

from torch import nn
from torch.optim import Optimizer

from coordcheck.arguments import labelled, whole_number
from coordcheck.errors import CoordCheckError
from coordcheck.records import Outcome, ParameterInfo, RunKey, RunRecord
from coordcheck.runfiles import RunFolder, versions
from coordcheck.sites import ROOT, SiteRecorder, in_backward


def parameter_infos(model: nn.Module, optimizers: Sequence[Optimizer], never_called: set[str]) -> list[ParameterInfo]:
    """Every trainable parameter with its learning rate and weight decay, read after the first backward pass.

    `never_called` names the modules no call of which was seen: a parameter that only such modules own, and that has
    a gradient all the same, did its work where hooks cannot see it.
    """
    settings = optimizer_settings(optimizers)
    seen = {
        id(parameter)
        for name, module in model.named_modules()
        if _user(model, name, module) not in never_called
        for parameter in module._parameters.values()
    }
    infos = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            rate, decay = settings.get(id(parameter), (None, None))
            visible = parameter.grad is None or id(parameter) in seen
            infos.append(ParameterInfo(name, tuple(parameter.shape), rate, decay, visible))
    return infos


def optimizer_settings(optimizers: Sequence[Optimizer]) -> dict[int, tuple[float | None, float | None]]:
    """Learning rate and weight decay of every parameter that an optimizer holds, by the parameter's id."""
    return {
        id(parameter): (_optional_float(group.get("lr")), _optional_float(group.get("weight_decay")))
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def _user(model: nn.Module, path: str, module: nn.Module) -> str:
    """The path of the module whose call uses a module's parameters: its own, or a container's owner."""
    while path and isinstance(module, (nn.ParameterList, nn.ParameterDict, nn.ModuleList, nn.ModuleDict)):
        path = path.rpartition(".")[0]
        module = model.get_submodule(path)
    return path or ROOT


def _optional_float(value: Any) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


class Recorder:
    """Records one run inside a training loop of the user's own, and writes its run file.

    It counts t by itself, through the optimizer's step hooks, and needs no change to the loop:

        with coordcheck.Recorder(model, optimizer, width=512, label="µP", save_to="runs/"):
            for batch in batches:
                ...

    Only the first call of the model after an optimizer step is recorded, so gradient accumulation
    works as it is. `change` needs one fixed batch: when the model's input differs from its input at
    t=0 the rows say "moved input". Recording stops by itself after step `steps`.

    Args:
        optimizer: the optimizer, or several that step together (the last one's step counts t).
        width: the scale that is compared across runs.
        save_to: a folder for the run file; several jobs may share it, `coordcheck.load` merges them.

    Attributes:
        record: the `RunRecord`, complete when the block is left.

    Raises:
        CoordCheckError: when the width is not a positive integer, there is no optimizer, the model cannot be
            hooked or the folder cannot be written. Nothing is raised into the loop itself.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        *,
        width: int,
        seed: int = 0,
        label: str = "model",
        steps: int = 4,
        save_to: str | PathLike[str] | None = None,
    ) -> None:
        width, seed = whole_number("width", width, 1), whole_number("seed", seed, 0)
        steps = whole_number("steps", steps, 0)
        labelled({label: Recorder})
        optimizers = list(optimizer) if isinstance(optimizer, Sequence) else [optimizer]
        if not optimizers or not all(isinstance(one, Optimizer) for one in optimizers):
            raise CoordCheckError(f"optimizer must be a torch.optim.Optimizer or several, got {optimizer!r}.")
        names = ", ".join(type(one).__name__ for one in optimizers)
        settings = {"steps": str(steps), "optimizer": names, "torch": versions()["torch"]}
        self.record = RunRecord(RunKey(label, width, seed), settings=settings)
        self._model = model
        self._optimizers = optimizers
        self._steps = steps
        self._folder = None if save_to is None else RunFolder(save_to)
        self._sites = SiteRecorder(model)
        self._handles = ExitStack()
        self._t = 0
        self._started = 0.0

    def __enter__(self) -> Recorder:
        if self._folder is not None:
            self._folder.probe()
        with ExitStack() as handles:
            handles.enter_context(self._sites)
            register: Callable[..., Any]
            for register, hook in (
                (self._model.register_forward_hook, self._after_forward),
                (self._optimizers[0].register_step_pre_hook, self._before_update),
                (self._optimizers[-1].register_step_post_hook, self._after_update),
            ):
                handles.callback(register(hook).remove)
            self._handles = handles.pop_all()
        self._started = time.perf_counter()
        self._sites.open(0)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._guarded(self._sites.close)
        self._guarded(self._handles.close)
        self._guarded(self._finish)
        record = self.record
        record.seconds = time.perf_counter() - self._started
        if kind is not None and self._t < self._steps:
            record.outcome, record.reason = Outcome.FAILED, f"{kind.__name__}: {error}"
        elif self._t < self._steps:
            record.notes.append(
                f"width {record.key.width}, seed {record.key.seed}: stopped at t={self._t} of {self._steps}"
            )
        if self._folder is not None:
            self._guarded(self._save)

    def _guarded(self, action: Callable[[], None]) -> None:
        """Do something of ours; what it raises becomes a note and a line in the log, never the user's exception."""
        try:
            action()
        except Exception as error:
            self.record.notes.append(f"recording failed: {type(error).__name__}: {error}")
            logging.getLogger("coordcheck").warning(self.record.notes[-1])

    def _finish(self) -> None:
        self.record.sites, self.record.rows = list(self._sites.sites.values()), self._sites.rows
        self.record.notes.extend(self._sites.notes())

    def _save(self) -> None:
        if self._folder is not None:
            if self._folder.run_path(self.record.key).exists():
                logging.getLogger("coordcheck").warning("the run file of %s is replaced", self.record.key)
            self._folder.save(self.record)

    def _after_forward(self, module: nn.Module, args: Any, output: Any) -> None:
        # whatever follows before the next update is another micro-batch, or no training at all
        if not in_backward():
            self._guarded(self._sites.close)

    def _before_update(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._guarded(self._sites.close)
        if self._t == 0:
            self._guarded(self._read_parameters)

    def _read_parameters(self) -> None:
        self.record.parameters = parameter_infos(self._model, self._optimizers, self._sites.never_called())

    def _after_update(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._t += 1
        if self._t <= self._steps:
            self._sites.open(self._t)
