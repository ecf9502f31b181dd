"""`Recorder`: one run recorded inside a training loop of the user's own."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from coordcheck.common.errors import CoordCheckError
from coordcheck.common.escaping import printable
from coordcheck.common.isolation import user_code
from coordcheck.recording.distributed.ranks import PATIENCE, sharing_ranks
from coordcheck.recording.distributed.reduction import SharedRun
from coordcheck.recording.distributed.shards import spread_over
from coordcheck.recording.hooks.frames import Room
from coordcheck.recording.hooks.hooks import OUTSIDE, Eager, Hook, graph_task, in_backward, refuse_unhookable
from coordcheck.recording.hooks.optimizers import parameter_infos
from coordcheck.recording.hooks.wrappers import name_plainly, skipped, unwrapped_model, unwrapped_optimizers
from coordcheck.recording.layers.activations import SiteRecorder
from coordcheck.recording.layers.calls import leaves
from coordcheck.recording.layers.probing import BeforeUpdate, ProbePass
from coordcheck.recording.updates.in_loop import OwnUpdatesInLoop
from coordcheck.runs.arguments import labelled
from coordcheck.runs.files import RunFolder, versions
from coordcheck.runs.numbers import whole_number
from coordcheck.runs.records import RunKey, RunRecord, kept
from coordcheck.runs.words import Outcome


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
        done: whether every step was recorded.

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
        self.done = False
        refuse_unhookable(model, eager=Eager.possible)
        self._model = unwrapped_model(model)
        self._steps = steps
        self._folder = None if save_to is None else RunFolder(save_to)
        fixed = probe is not None and (isinstance(probe, Tensor) or not callable(probe))
        given = {"fixed_batch": fixed, "same_noise": probe is not None}
        self._sites = SiteRecorder(self._model, listens=self._listens, eager=Eager.possible, **given)
        self._probe = None if probe is None else ProbePass(probe, self._model, self._sites)
        self._eager, self._room = Eager(), Room()
        ranks = sharing_ranks(model, group)
        self._shared = SharedRun(self.record, ranks) if ranks else None
        # what a parameter does by itself cannot be replayed on one rank that holds a part of it
        spread, own_updates = bool(spread_over(self._model)), own_updates and steps > 0
        self._live = OwnUpdatesInLoop(self._model, self._optimizers) if own_updates and not spread else None
        if own_updates and spread:
            self.record.notes.append("own updates were not recorded: the parameters are spread over ranks")
        self._hooks, self._step_hooks = ExitStack(), ExitStack()
        self._t = 0
        self._recorded: int | None = None  # the last step that was
        self._inside: bool | None = None  # a call of the model, which is recorded (True) or not
        self._seen_training = False
        self._doubtful = self._awaits_backward = False
        self._started: float | None = None
        self._settled = False

    def __enter__(self) -> Recorder:
        if self._started is not None:
            raise CoordCheckError("a Recorder records one run, and this one was used before. Make one per run.")
        if self._folder is not None:
            self._folder.probe()
        with ExitStack() as hooks, ExitStack() as step_hooks:
            # before and after the hooks of the sites, so that what a call is was decided when they see it
            before = self._hook(self._before_call)
            hooks.callback(self._model.register_forward_pre_hook(before, with_kwargs=True).remove)
            hooks.enter_context(self._sites)
            hooks.callback(self._model.register_forward_hook(self._hook(self._after_call)).remove)
            if self._live is not None:
                hooks.callback(self._hook(self._live.end))
            for optimizer in self._optimizers:
                step_hooks.callback(optimizer.register_step_pre_hook(self._hook(self._before_update)).remove)
                if self._probe is not None:
                    look = BeforeUpdate(self._look, self._failed)
                    step_hooks.callback(optimizer.register_step_pre_hook(look).remove)
                step_hooks.callback(optimizer.register_step_post_hook(self._hook(self._after_update)).remove)
            self._sites.open(0)
            self._hooks, self._step_hooks = hooks.pop_all(), step_hooks.pop_all()
        self._hook(self._eager.begin)()
        self._hook(self._room.begin)()
        if self._shared is not None:
            self._hook(self._shared.begin)()
        self._started = time.perf_counter()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._hook(self._step_hooks.close)()
        if error is None:
            Hook(self._look_at_end, self._failed, seen=True)()
        self._hook(self._close)()
        if not self._settled:
            self._hook(self._tell_ending)(error)
            self._hook(self._settle)()
        self._hook(self._hooks.close)()
        self._hook(self._eager.end_now)()
        self._hook(self._room.end)()
        self._hook(self._finish)(PATIENCE if error is None else 0.0)

    def _hook(self, action: Callable[..., object]) -> Hook:
        """An action of ours; what it raises becomes a note and a line in the log, never the user's exception."""
        return Hook(action, self._failed)

    def _failed(self, error: Exception) -> None:
        note = kept(f"recording failed: {type(error).__name__}: {error}")
        if note not in self.record.notes:
            self.record.notes.append(note)
            logging.getLogger("coordcheck").warning("%s", printable(note))

    def _tell_ending(self, error: BaseException | None) -> None:
        """Why the loop ended before everything was recorded."""
        record = self.record
        if self.done:
            return
        if error is not None:
            record.outcome, record.reason = Outcome.FAILED, type(error).__name__
            record.reason = f"{type(error).__name__}: {error}"  # the text of an error may itself be one
        else:
            seen = "nothing" if self._recorded is None else f"t=0..{self._recorded}"
            why = ": the pass on the probe failed" if self._probe and self._probe.failed else ""
            if self._recorded is None and not why:
                why = ": no training call of the model was seen; was it compiled?"
            record.notes.append(f"width {record.key.width}: recorded {seen} of t=0..{self._steps}{why}")

    def _settle(self) -> None:
        """End the recording: the hooks on the model go, and the run file is written, or this rank's part handed in."""
        self._settled = True
        self._hook(self._hooks.close)()
        self._hook(self._eager.end)()
        self._hook(self._collect)()
        self.record.seconds = time.perf_counter() - (self._started or 0.0)
        if self._shared is None:
            self._save()
        else:
            self._shared.hand_in(self._sites.sizes)

    def _finish(self, patience: float | None = None) -> None:
        """Write the run file of several ranks, on the one that does, once their parts are there."""
        if self._shared is not None and self._shared.gathered(patience):
            self._save()

    def _save(self) -> None:
        self.record.tidy()  # the other ranks' notes too
        if self._folder is not None:
            if self._folder.run_path(self.record.key).exists():
                logging.getLogger("coordcheck").warning(
                    "the run file of %s is replaced", printable(str(self.record.key))
                )
            self._folder.save(self.record)

    def _collect(self) -> None:
        self.record.sites, self.record.rows = list(self._sites.sites.values()), self._sites.rows
        self.record.notes.extend(self._sites.notes())
        if self._live is not None and self.record.rows:
            self._live.write(self.record)
        name_plainly(self.record)
        self.record.tidy()

    def _trains(self) -> bool:
        """Whether a call now is one of the training."""
        if not torch.is_grad_enabled():
            return False
        if self._model.training and not self._seen_training:
            self._seen_training = True
            if self._t == 0 and self._probe is None:  # calls in evaluation mode before it were no training
                self._sites.discard()
        return self._model.training or not self._seen_training

    def _before_call(self, model: nn.Module, args: Any, kwargs: Any) -> None:
        if self._probe is not None:
            self._before_call_beside(self._probe, args, kwargs)
            return
        # a call that raised is no step, and calls of layers without gradients were no checkpoint's
        if (self._inside or self._doubtful) and self._sites.is_open:
            self._sites.discard()
        self._doubtful = False
        self._inside = self._trains()
        # a whole model that is checkpointed is called without gradients, and once more in the backward pass
        self._sites.task = graph_task()
        if self._inside and self._sites.is_open and self._live is not None and not in_backward():
            self._live.begin(self._t, args, kwargs)

    def _after_call(self, model: nn.Module, args: Any, output: Any) -> None:
        # whatever follows before the next update is another micro-batch, or no training at all
        if self._probe is not None and self._probe.running:
            return
        inside, self._inside = self._inside, None
        self._sites.task = OUTSIDE
        if inside:
            self._close()

    def _before_call_beside(self, probe: ProbePass, args: Any, kwargs: Any) -> None:
        """A call of the model begins that is not recorded itself: a pass on the probe will be."""
        if probe.running:
            return
        raised, self._inside = self._inside, self._trains()
        if not self._inside:
            return
        first = raised or not probe.awaited  # of the calls before one update
        probe.note_call()
        if first and self._sites.is_open and self._live is not None and not in_backward():
            self._live.begin(self._t, args, kwargs)

    def _look_at_end(self) -> None:
        if self._probe is not None and self._t > 0 and self._probe.alone:
            self._probe.awaited = True
            self._look(as_before=True)

    def _look(self, *, as_before: bool = False) -> None:
        """Record a pass on the probe, while the parameters still are those of step t; one that fails is the last."""
        probe = self._probe
        if probe is None or not probe.awaited or self._settled or not self._sites.is_open:
            return
        try:
            with user_code("the pass on the probe"):
                probe.run(as_before=as_before)
        except Exception as error:
            self._sites.discard()
            self._failed(error)
            self._tell_ending(None)
            self._hook(self._settle)()
        self._hook(self._close)()

    def _listens(self, output: Any) -> bool:
        """Whether a layer's call is part of the step, also where the model itself is not called."""
        if self._probe is not None:
            if not self._probe.running and self._inside is None and self._trains():
                self._probe.note_call()
            return self._probe.running
        if self._inside is not None:
            return self._inside
        if not self._trains():
            # a checkpoint calls its layers without gradients, in training mode
            checkpointing = self._model.training and not torch.is_grad_enabled()
            self._doubtful |= checkpointing
            return checkpointing
        if not self._awaits_backward:
            for _, leaf in leaves(output):
                if isinstance(leaf, Tensor) and leaf.requires_grad:
                    leaf.register_hook(self._hook(lambda gradient: self._close()))
                    self._awaits_backward = True
                    break
        return True

    def _close(self) -> None:
        """Close the window if it has seen a call."""
        if not (self._sites.is_open and self._sites.has_calls):
            return
        self._sites.close()
        self._awaits_backward = False
        self._recorded = self._t
        self.done = self._t == self._steps
        if self.done and self._t > 0:  # at t=0 the learning rates are not known yet
            self._settle()

    def _before_update(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._live is not None and not self._settled and not skipped(optimizer):
            self._live.updates(optimizer)

    def _after_update(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._settled:
            self._eager.end()
            self._finish()
        if self._settled or skipped(optimizer):
            return
        if self._live is not None:  # what was called inside the update, by a closure
            self._live.updates(optimizer, made=True)
        self._close()
        if self._sites.is_open:  # not called since the last update: another optimizer of the same one
            return
        if self._t == 0:
            self._hook(self._read_parameters)()
        self._t += 1
        if self._t <= self._steps:
            self._sites.open(self._t)
        else:
            self._settle()

    def _read_parameters(self) -> None:
        self.record.parameters = parameter_infos(self._model, self._optimizers, self._sites.never_called())
