"""`Recorder`: one run recorded inside a training loop of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from coordcheck.common.errors import CoordCheckError
from coordcheck.recording.distributed.ranks import PATIENCE, sharing_ranks
from coordcheck.recording.distributed.shards import spread_over
from coordcheck.recording.hooks.frames import Room
from coordcheck.recording.hooks.hooks import Eager, Hook, refuse_unhookable
from coordcheck.recording.hooks.optimizers import parameter_infos
from coordcheck.recording.hooks.wrappers import name_plainly, skipped, unwrapped_model, unwrapped_optimizers
from coordcheck.recording.layers.activations import ActivationRecorder
from coordcheck.recording.layers.probing import BeforeUpdate, ProbePass
from coordcheck.recording.recorded_run import RecordedRun
from coordcheck.recording.step_counter import StepCounter
from coordcheck.recording.training_calls import ProbedCalls, TrainingCalls
from coordcheck.recording.updates.in_loop import OwnUpdatesInLoop
from coordcheck.runs.arguments import labelled
from coordcheck.runs.files import versions
from coordcheck.runs.numbers import whole_number
from coordcheck.runs.records import RunKey, RunRecord


class Recorder:
    """Records one run inside a training loop of the user's own, and writes its run file.

    It counts t by itself, through the optimizer's step hooks, and needs no change to the loop:

        with coordcheck.Recorder(model, optimizer, width=512, label="µP", save_to="runs/"):
            for batch in batches:
                ...

    t is how often the parameters were updated after a call of the model: several optimizers that step one after the
    other are one update, a step that a gradient scaler skips is none. The first call in training after each update is
    recorded, so gradient accumulation works as it is, and calls under `torch.no_grad()`, or in evaluation mode where
    the model was trained in training mode, are left out. Where the model itself is never called, the calls of its
    layers up to the backward pass are recorded.

    `change` needs one fixed batch: when the model's input differs from its input at t=0 the rows say "moved input",
    and changes are not judged. In a training on a stream of batches, `probe` is such a batch: at every t, right before
    the next update (or when the block is left), the model is called on it once, without gradients, in the mode and
    under the autocast of the training, and that call is what is recorded. It leaves nothing behind: random states,
    buffers, gradients, and whatever else the model's modules hold are as they were. Its noise (dropout) is the same at
    every t. Hooks of your own fire in it. What a forward pass writes elsewhere (a file, an object that it does not
    name) stays written. Under `torch.distributed` every rank gives a probe.

    Once step `steps` is recorded (in the call after update number `steps`) the file is written and the hooks go.

    Where the model itself is called, its first updates are diagnosed as well: the calls of steps 0 and 1 are traced,
    and a copy of the initial parameters is held until every parameter has moved. Updates from a large batch are less
    aligned with their input than those of the tiny batch that `coordcheck.diagnose` takes, which is sharper.

    What `torch.compile` made runs eagerly, because no hook fires in it, until everything is recorded, and a training
    step that is compiled as a whole until the block is left (torch 2.6 or later; a compiled model is refused before).

    Under `torch.distributed`, use it on every rank, with the same label, width and seed. The ranks over which the model
    is spread, by DistributedDataParallel, `fully_shard` or `parallelize_module`, are one run: scales are those of the
    whole batch and of whole tensors, and the lowest rank writes the file. Ranks hand in their parts without waiting;
    the lowest one looks for them after each update, and for up to a minute when the block is left. A plain model is a
    run of its own rank, such as one width per rank; where ranks share one all the same (tensors split by hand, the
    stages of a pipeline), `group` says so. A plain tensor that holds a summand, and not a part, of its value cannot be
    told from one: its scale is that of the summands. Own updates are those that the lowest rank's examples tell, and
    left out where parameters are DTensors.

    Args:
        optimizer: the optimizer, or several.
        width: the scale that is compared across runs.
        steps: the last t to record; the loop makes one update more than that.
        own_updates: whether to diagnose, which costs the copy and two traced calls.
        probe: a batch as `check` takes it (a tensor calls `model(tensor)`, a mapping `model(**mapping)`, and a pair
            (x, y) `model(x)`), or a function of the model that calls it. None records the calls of the training.
        save_to: a folder for the run file; several jobs may share it, `coordcheck.load` merges them.
        group: the process group of the ranks that train this one model, where it cannot be read off the model.

    Attributes:
        record: the `RunRecord`, complete when everything is recorded or the block is left. Where several ranks train
            the model, it is that of all of them on the lowest rank once the block is left, and its own part elsewhere.

    Raises:
        CoordCheckError: when the width is not a positive integer, there is no optimizer, the model cannot be
            hooked, the probe is no batch, the folder cannot be written or the recorder was used before. Nothing is
            raised into the loop.
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
        own_updates: bool = True,
        probe: Any = None,
        save_to: str | PathLike[str] | None = None,
        group: torch.distributed.ProcessGroup | None = None,
    ) -> None:
        width, seed = whole_number("width", width, 1), whole_number("seed", seed, 0)
        steps = whole_number("steps", steps, 0)
        labelled({label: Recorder})
        self._optimizers = unwrapped_optimizers(optimizer)
        names = ", ".join(type(one).__name__ for one in self._optimizers)
        settings = {"steps": str(steps), "optimizer": names, "torch": versions()["torch"]}
        self.record = RunRecord(RunKey(label, width, seed), settings=settings)
        refuse_unhookable(model, eager=Eager.possible)
        self._model = unwrapped_model(model)
        self._run = RecordedRun(self.record, save_to, sharing_ranks(model, group))
        fixed = probe is not None and (isinstance(probe, Tensor) or not callable(probe))
        given = {"fixed_batch": fixed, "same_noise": probe is not None}
        self._sites = ActivationRecorder(self._model, listens=self._listens, eager=Eager.possible, **given)
        self._steps = StepCounter(steps, self._sites, at_end=self._hook(self._settle))
        self._probe = None if probe is None else ProbePass(probe, self._model, self._sites)
        # what a parameter does by itself cannot be replayed on one rank that holds a part of it
        spread, own_updates = bool(spread_over(self._model)), own_updates and steps > 0
        self._live = OwnUpdatesInLoop(self._model, self._optimizers) if own_updates and not spread else None
        if own_updates and spread:
            self.record.notes.append("own updates were not recorded: the parameters are spread over ranks")
        seen = self._model, self._sites, self._steps, self._live
        self._calls = (
            TrainingCalls(*seen, hook=self._hook)
            if self._probe is None
            else ProbedCalls(self._probe, *seen, hook=self._hook)
        )
        self._eager, self._room = Eager(), Room()
        self._hooks, self._step_hooks = ExitStack(), ExitStack()

    @property
    def done(self) -> bool:
        """Whether every step was recorded."""
        return self._steps.done

    def __enter__(self) -> Recorder:
        if self._run.begun:
            raise CoordCheckError("a Recorder records one run, and this one was used before. Make one per run.")
        self._run.probe()
        with ExitStack() as hooks, ExitStack() as step_hooks:
            # before and after the hooks of the sites, so that what a call is was decided when they see it
            before = self._hook(self._calls.before)
            hooks.callback(self._model.register_forward_pre_hook(before, with_kwargs=True).remove)
            hooks.enter_context(self._sites)
            hooks.callback(self._model.register_forward_hook(self._hook(self._calls.after)).remove)
            if self._live is not None:
                hooks.callback(self._hook(self._live.end))
            for optimizer in self._optimizers:
                step_hooks.callback(optimizer.register_step_pre_hook(self._hook(self._before_update)).remove)
                if isinstance(self._calls, ProbedCalls):
                    look = BeforeUpdate(self._calls.look, self._end_early)
                    step_hooks.callback(optimizer.register_step_pre_hook(look).remove)
                step_hooks.callback(optimizer.register_step_post_hook(self._hook(self._after_update)).remove)
            self._sites.open(0)
            self._hooks, self._step_hooks = hooks.pop_all(), step_hooks.pop_all()
        for begin in (self._eager.begin, self._room.begin, self._run.begin):
            self._hook(begin)()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._hook(self._step_hooks.close)()
        if error is None and isinstance(self._calls, ProbedCalls):
            Hook(self._calls.look_at_end, self._end_early, seen=True)()
        self._hook(self._steps.close)()
        if not self._steps.ended:
            self._hook(self._note_ending)(error)
            self._hook(self._steps.end)()
        self._hook(self._hooks.close)()
        self._hook(self._eager.end_now)()
        self._hook(self._room.end)()
        self._hook(self._run.gather)(PATIENCE if error is None else 0.0)

    def _hook(self, action: Callable[..., object]) -> Hook:
        """An action of ours; what it raises becomes a note and a line in the log, never the user's exception."""
        return Hook(action, self._run.note_failure)

    def _listens(self, output: Any) -> bool:
        return self._calls.listens(output)

    def _end_early(self, error: Exception) -> None:
        """A pass on the probe failed, and is the last."""
        self._run.note_failure(error)
        self._note_ending(None)
        self._steps.end()

    def _note_ending(self, error: BaseException | None) -> None:
        self._run.note_ending(error, self._steps, probe_failed=self._probe is not None and self._probe.failed)

    def _before_update(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._live is not None and not self._steps.ended and not skipped(optimizer):
            self._live.updates(optimizer)

    def _after_update(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._steps.ended:
            self._eager.end()
            self._run.gather()
        elif not skipped(optimizer):
            if self._live is not None:  # what was called inside the update, by a closure
                self._live.updates(optimizer, made=True)
            self._steps.close()
            if self._steps.t == 0 and not self._sites.is_open:
                self._hook(self._read_parameters)()
            self._steps.update()

    def _read_parameters(self) -> None:
        self.record.parameters = parameter_infos(self._model, self._optimizers, self._sites.never_called())

    def _settle(self) -> None:
        """End the recording: the hooks on the model go, and the run file is written, or this rank's share handed in."""
        for action in (self._hooks.close, self._eager.end, self._collect):
            self._hook(action)()
        self._run.end(self._sites.sizes)

    def _collect(self) -> None:
        self.record.sites, self.record.rows = list(self._sites.sites.values()), self._sites.rows
        self.record.notes.extend(self._sites.notes())
        if self._live is not None and self.record.rows:
            self._live.write(self.record)
        name_plainly(self.record)
        self.record.tidy()
