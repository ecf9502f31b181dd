"""A pass of a model on one fixed batch after each update, of which nothing is left: changes in a training on a stream.

A loop that sees another batch at every step has no h_t - h_0 of its own. A pass on the same batch at every t has one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from coordcheck.common.errors import CoordCheckError
from coordcheck.recording.batches import Batches, arrays_in, describe, to_device
from coordcheck.recording.distributed.shards import local_part, reshard, spread_over
from coordcheck.recording.hooks.hooks import Hook, graph_task
from coordcheck.recording.hooks.randomness import kept_randomness, seed_everything
from coordcheck.recording.hooks.state import KeptTensor, kept
from coordcheck.recording.hooks.wrappers import skipped
from coordcheck.recording.layers.activations import ActivationRecorder

SEED = 0  # of the noise in a pass, the same in all: what dropout makes of one output is no change of another


class Onlooker:
    """Has a model called, and leaves it, its gradients and every state of random numbers as they were.

    The pass is one without gradients; with them, where the model cannot do without (forces are gradients of energies).

    Args:
        model: the model that is called, by itself or inside something else.
        sites: what records the pass, in a window that is open.
    """

    def __init__(self, model: nn.Module, sites: ActivationRecorder) -> None:
        self._model, self._sites = model, sites
        self._writes: set[str] | None = None  # parameters that a pass writes to; not known before the first
        self._gradients = False
        self._spread = bool(spread_over(model))

    def look(self, call: Callable[[], object]) -> None:
        """Have the model called.

        Raises:
            CoordCheckError: this is inside the capture of a CUDA graph.
            Exception: whatever the model raises.
        """
        if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
            raise CoordCheckError("the update is captured in a CUDA graph, in which nothing else can be called")
        try:
            self._look(call)
        except Exception:
            if self._gradients or self._spread:  # `fully_shard` waits for the backward pass of one with gradients
                raise
            self._sites.discard()
            self._gradients = True
            self._look(call)

    def _look(self, call: Callable[[], object]) -> None:
        with ExitStack() as undo:
            undo.enter_context(kept_randomness())
            undo.enter_context(self._without_gradients())
            for put_back in kept(self._model):
                undo.callback(put_back)
            undo.enter_context(self._parameters_kept())
            undo.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")  # such as of a checkpoint that nothing will be differentiated through
            seed_everything(SEED)
            undo.callback(reshard, self._model)
            call()

    @contextmanager
    def _without_gradients(self) -> Iterator[None]:
        """No gradients are computed, and those that are there are out of reach."""
        held = [(p, p.grad) for p in self._model.parameters() if p.grad is not None]
        for parameter, _ in held:
            parameter.grad = None
        try:
            with torch.set_grad_enabled(self._gradients):
                yield
        finally:
            for parameter in self._model.parameters() if self._gradients else ():
                parameter.grad = None
            for parameter, gradient in held:
                parameter.grad = gradient

    @contextmanager
    def _parameters_kept(self) -> Iterator[None]:
        """Put back the parameters that the pass writes to, as a table whose rows are cut to a largest norm."""
        # which these are the first pass tells, before which all are copied: few models write to any
        copies = {
            name: KeptTensor(local_part(p.detach()))
            for name, p in self._model.named_parameters()
            if not isinstance(p, nn.parameter.UninitializedParameter) and (self._writes is None or name in self._writes)
        }
        try:
            yield
        finally:
            if self._writes is None:
                self._writes = {name for name, copy in copies.items() if copy.moved()}
            for name in self._writes:
                copies[name].put_back()


class BeforeUpdate(Hook):
    """Has something done before an optimizer makes its update: once its closure was called, where it has one.

    A closure is put in the place of the optimizer's own, which calls that one first.
    """

    def __init__(self, action: Callable[[], object], failed: Callable[[Exception], object]) -> None:
        super().__init__(action, failed, seen=True)

    def __call__(self, *call: Any) -> tuple[Any, Any] | None:
        optimizer, args, kwargs = call
        act = super().__call__
        if skipped(optimizer):
            return None

        def after(closure: Any) -> Any:
            def both() -> Any:
                loss = closure()
                act()
                return loss

            return both if callable(closure) else closure

        closures = [*args[1:], *kwargs.values()]  # the optimizer itself comes first
        if not any(map(callable, closures)):
            act()
            return None
        return (*args[:1], *map(after, args[1:])), {name: after(value) for name, value in kwargs.items()}


class ProbePass:
    """The pass on the user's probe in the user's own loop, in the mode and under the autocast of the training.

    Args:
        given: a tensor, which calls `model(tensor)`; a mapping, `model(**mapping)`; a pair (x, y), `model(x)`; or a
            function of the model, which calls it.
        model: without the wrappers of distributed training, which would send something.
        sites: what records it.

    Attributes:
        running: whether this is inside such a pass.
        awaited: whether the model was called in training since the last update.
        failed: whether a pass raised, after which there is none.

    Raises:
        CoordCheckError: a probe that is none of these.
    """

    def __init__(self, given: Any, model: nn.Module, sites: ActivationRecorder) -> None:
        self._call = _caller(given)
        self._model, self._sites = model, sites
        self._onlooker = Onlooker(model, sites)
        self.running = self.awaited = self.failed = False
        self._autocast: list[tuple[str, bool, torch.dtype]] = []
        self._modes: dict[nn.Module, bool] = {}

    @property
    def alone(self) -> bool:
        """Whether a pass sends nothing, so that one rank may make it when others do not."""
        together = any(isinstance(module, nn.SyncBatchNorm) for module in self._model.modules())
        return not together and not spread_over(self._model)

    def note_call(self) -> None:
        """A training call of the model has begun."""
        self.awaited = True
        kinds = [kind for kind in {"cpu": 0, self._device.type: 1} if torch.amp.is_autocast_available(kind)]
        self._autocast = [(k, torch.is_autocast_enabled(k), torch.get_autocast_dtype(k)) for k in kinds]

    @property
    def _device(self) -> torch.device:
        return next((p.device for p in self._model.parameters()), torch.device("cpu"))

    def run(self, *, as_before: bool = False) -> None:
        """Call the model on the probe, in the window of the sites that is open.

        Args:
            as_before: in the mode of the last pass, where the training is over and the model may be in another one.

        Raises:
            Exception: whatever the model raises.
        """
        now = {module: module.training for module in self._model.modules()}
        self._modes = {**now, **self._modes} if as_before else now
        task, self._sites.task = self._sites.task, graph_task()
        self.running, self.awaited = True, False
        try:
            _set_modes(self._modes)
            with self._autocasting():
                self._onlooker.look(lambda: self._call(self._model, self._device))
        except BaseException:
            self.failed = True
            raise
        finally:
            _set_modes(now)
            self.running, self._sites.task = False, task

    @contextmanager
    def _autocasting(self) -> Iterator[None]:
        """Under the autocast of the training call, without its cache: what is cast here has no graph."""
        with ExitStack() as modes:
            for kind, enabled, dtype in self._autocast:
                if enabled or torch.is_autocast_enabled(kind):
                    modes.enter_context(torch.autocast(kind, dtype, enabled=enabled, cache_enabled=False))
            yield


def _set_modes(modes: Mapping[nn.Module, bool]) -> None:
    for module, training in modes.items():
        if module.training is not training:
            module.training = training


def _caller(given: Any) -> Callable[[nn.Module, torch.device], object]:
    """What calls a model on a device with the probe; the batch is copied now, whatever the user does with it later.

    Raises:
        CoordCheckError: it is no batch and no function.
    """
    if callable(given) and not isinstance(given, Tensor):
        return lambda model, device: given(model)
    pair = isinstance(given, (tuple, list)) and len(given) == 2
    if arrays_in(given):
        raise CoordCheckError(f"probe: {arrays_in(given)} Make tensors of them: torch.as_tensor(array).")
    if not (pair or isinstance(given, (Tensor, Mapping))):
        raise CoordCheckError(
            f"probe must be one batch: a tensor, a mapping or a pair (x, y), got {describe(given)}. Of a data loader "
            "give next(iter(loader)); of anything else a function that calls the model: probe=lambda model: ..."
        )
    batches = Batches([to_device(given, torch.device("cpu"))])

    def call(model: nn.Module, device: torch.device) -> object:
        batch = batches.at(0, device)
        return model(**batch) if isinstance(batch, Mapping) else model(batch[0] if pair else batch)

    return call
