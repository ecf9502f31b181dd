"""Model -> rows: hooks that record the scale of every module call.

`SiteRecorder` is the engine: the caller opens one window per step and every call inside is recorded.
`Recorder` puts it into a training loop that is not ours: it opens the windows by itself.
"""

from __future__ import annotations

import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from coordcheck import scales
from coordcheck.errors import CoordCheckError
from coordcheck.records import (
    Kind,
    Outcome,
    ParameterInfo,
    Quantity,
    Row,
    RunKey,
    RunRecord,
    Site,
    Status,
    status_of,
)
from coordcheck.runfiles import RunFolder

ROOT = "(model)"
"""The layer name of the model's own output; module paths never hold parentheses."""

MAX_DEPTH = 8  # of containers inside an output; deeper ones are counted as not measured


@dataclass
class _Output:
    """One output tensor of one call in the open window."""

    layer: str
    kind: Kind
    shape: tuple[int, ...]
    dtype: str
    scales: dict[Quantity, scales.Scale]
    status: Status = Status.OK
    change_status: Status = Status.OK


class SiteRecorder:
    """Records activation, mean_abs and change of every module call, one window per step.

    Hooks are registered once, when the block is entered, and removed when it is left, also after an
    exception. They never raise into the model: what cannot be measured becomes a status. Statistics
    are computed inside the hook, so that in-place operations further on do not change them; they
    stay on their device until the window closes.

    Source: the quantities are those of Yang et al. 2022 (arXiv:2203.03466), appendix D.1, and their
    change from initialisation.
    """

    def __init__(self, model: nn.Module) -> None:
        if isinstance(model, torch.jit.ScriptModule):
            raise CoordCheckError(
                "the model is a ScriptModule, whose calls cannot be hooked. Pass the eager module it was made from."
            )
        if any(hasattr(m, "_orig_mod") or m._compiled_call_impl is not None for m in model.modules()):
            raise CoordCheckError(
                "the model is compiled, and hooks on a compiled model silently do not fire. Check the eager model: "
                "its scales are the same."
            )
        self.sites: dict[str, Site] = {}
        self.rows: list[Row] = []
        self.skipped: Counter[str] = Counter()
        self._model = model
        self._initial: dict[str, Tensor] = {}
        self._initial_inputs: list[Tensor] | None = None
        self._step: int | None = None
        self._outputs: list[_Output] = []
        self._calls: Counter[str] = Counter()
        self._ever_called: set[str] = set()
        self._returned: dict[int, tuple[weakref.ref[Tensor], int, _Output]] = {}
        self._moved: list[Tensor] = []
        self._input_moved = False
        self._handles = ExitStack()

    def __enter__(self) -> SiteRecorder:
        for name, module in self._model.named_modules():
            handle = module.register_forward_hook(partial(self._on_forward, name or ROOT))
            self._handles.callback(handle.remove)
        handle = self._model.register_forward_pre_hook(self._on_root_input, with_kwargs=True)
        self._handles.callback(handle.remove)
        return self

    def __exit__(self, *exception: object) -> None:
        self._handles.close()
        self._initial.clear()
        self._returned.clear()

    @contextmanager
    def window(self, step: int) -> Iterator[None]:
        """Record every module call made inside the block as step `step`."""
        self.open(step)
        try:
            yield
        finally:
            self.close()

    def open(self, step: int) -> None:
        """Start recording calls as step `step`."""
        self._step = step

    def close(self) -> None:
        """Stop recording and bring the window's scales over from the device, all at once."""
        step, self._step = self._step, None
        if step is None:
            return
        moved = self._input_moved or any(bool(flag) for flag in self._moved)
        values = iter(_fetch(scale for output in self._outputs for scale in output.scales.values()))
        seen = set()
        for output in self._outputs:
            site = self._site(output)
            seen.add(site.layer)
            measured = {quantity: next(values) for quantity in output.scales}
            self.rows.extend(_rows(site.order, step, output, measured, moved))
        for layer, site in self.sites.items():
            if layer not in seen:
                self.rows.append(Row(site.order, step, Quantity.ACTIVATION, None, Status.NOT_CALLED))
        self._outputs, self._moved, self._input_moved = [], [], False
        self._ever_called.update(self._calls)
        self._calls.clear()
        self._returned.clear()

    def never_called(self) -> set[str]:
        """Module paths none of whose calls was seen so far."""
        return {name or ROOT for name, _ in self._model.named_modules()} - self._ever_called

    def _site(self, output: _Output) -> Site:
        site = self.sites.get(output.layer)
        if site is None:
            site = Site(output.layer, len(self.sites), output.kind, output.shape, output.dtype)
            self.sites[output.layer] = site
        return site

    def _on_root_input(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._step is None or _in_backward() or self._calls[ROOT]:
            return
        inputs = [leaf for _, leaf in _leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if self._initial_inputs is None:
            self._initial_inputs = [tensor.detach().clone() for tensor in inputs]
            return
        same_shapes = [t.shape for t in inputs] == [t.shape for t in self._initial_inputs]
        self._input_moved = not same_shapes
        if same_shapes:
            self._moved = [(now != then).any() for now, then in zip(inputs, self._initial_inputs, strict=True)]

    def _on_forward(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        # a call during the backward pass is activation checkpointing computing the same call again
        if self._step is None or _in_backward():
            return
        self._calls[name] += 1
        call = self._calls[name]
        layer = name if call == 1 else f"{name}#{call}"
        if type(output) is Tensor:  # the usual case, without the walk
            self._record(layer, output)
            return
        for path, leaf in _leaves(output):
            if isinstance(leaf, Tensor):
                self._record(f"{layer}:out{path}" if path else layer, leaf)
            elif leaf is not None:
                self.skipped[f"{type(leaf).__name__} output"] += 1

    def _record(self, layer: str, tensor: Tensor) -> None:
        returned = self._returned.get(id(tensor))
        # the version tells an Identity from an in-place ReLU, which returns the same object, changed
        if returned is not None and returned[0]() is tensor and returned[1] == tensor._version:
            source = returned[2]
            self._outputs.append(
                _Output(
                    layer,
                    Kind.PASSTHROUGH,
                    source.shape,
                    source.dtype,
                    source.scales,
                    source.status,
                    source.change_status,
                )
            )
            return
        output = _Output(layer, Kind.MODULE, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), {})
        try:
            values = scales.measurable(tensor)
            output.scales[Quantity.ACTIVATION] = scales.rms(values)
            output.scales[Quantity.MEAN_ABS] = scales.mean_abs(values)
            self._record_change(output, scales.sample_rows(values))
        except scales.NotMeasurable as reason:
            output.status = reason.status
        except Exception:  # a hook of ours must never raise into the user's model
            output.scales.clear()
            output.status = Status.UNSUPPORTED
        self._outputs.append(output)
        self._returned[id(tensor)] = (weakref.ref(tensor), tensor._version, output)

    def _record_change(self, output: _Output, values: Tensor) -> None:
        if self._step == 0:
            self._initial[output.layer] = values.clone()
            return
        initial = self._initial.get(output.layer)
        if initial is None:
            output.change_status = Status.NOT_CALLED
        elif initial.shape != values.shape:
            output.change_status = Status.SHAPE_CHANGED
        else:
            output.scales[Quantity.CHANGE] = scales.rms_change(values, initial)


def _in_backward() -> bool:
    # the id of the autograd graph task this thread runs for, -1 outside a backward pass; torch keeps
    # no public name for it, and its own checkpointing reads it here
    return bool(torch._C._current_graph_task_id() != -1)


def _fetch(pending: Iterable[scales.Scale]) -> list[float]:
    """The scales as floats, with one transfer per device."""
    pending = list(pending)
    values = [0.0] * len(pending)
    by_device: dict[torch.device, list[int]] = {}
    for index, scale in enumerate(pending):
        by_device.setdefault(scale.reduction.device, []).append(index)
    for indices in by_device.values():
        reductions = torch.stack([pending[i].reduction for i in indices]).tolist()
        for index, reduction in zip(indices, reductions, strict=True):
            values[index] = reduction * pending[index].factor
    return values


def _rows(site: int, step: int, output: _Output, values: Mapping[Quantity, float], moved: bool) -> Iterator[Row]:
    """The rows of one output: a value with its status, or the reason why there is none."""
    if output.status is not Status.OK:
        yield Row(site, step, Quantity.ACTIVATION, None, output.status)
        return
    for quantity in (Quantity.ACTIVATION, Quantity.MEAN_ABS):
        yield _valued(site, step, quantity, values[quantity])
    if step == 0:
        return
    if output.change_status is not Status.OK:
        yield Row(site, step, Quantity.CHANGE, None, output.change_status)
    elif moved:
        yield Row(site, step, Quantity.CHANGE, None, Status.MOVED_INPUT)
    else:
        yield _valued(site, step, Quantity.CHANGE, values[Quantity.CHANGE])


def _valued(site: int, step: int, quantity: Quantity, value: float) -> Row:
    status = status_of(value)
    return Row(site, step, quantity, None if status.not_finite else value, status)


def _leaves(value: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Everything inside nested tuples, lists, mappings and dataclasses, with its path: `[0]`, `.logits`."""
    children: Iterable[tuple[str, Any]]
    if isinstance(value, Tensor) or depth == MAX_DEPTH:
        yield path, value
        return
    if is_dataclass(value) and not isinstance(value, type):
        children = ((f".{f.name}", getattr(value, f.name)) for f in fields(value))
    elif isinstance(value, Mapping):
        children = ((f"[{key}]", item) for key, item in value.items())
    elif isinstance(value, (tuple, list)):
        names = getattr(value, "_fields", None)
        children = ((f".{names[i]}" if names else f"[{i}]", item) for i, item in enumerate(value))
    else:
        yield path, value
        return
    for suffix, item in children:
        yield from _leaves(item, path + suffix, depth + 1)


def parameter_infos(model: nn.Module, optimizers: Sequence[Optimizer], never_called: set[str]) -> list[ParameterInfo]:
    """Every trainable parameter with its learning rate and weight decay, read after the first backward pass.

    `never_called` names the modules no call of which was seen: a parameter of theirs that has a
    gradient all the same did its work where hooks cannot see it.
    """
    groups = {id(p): group for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    infos = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        owner = name.rpartition(".")[0] or ROOT
        group = groups.get(id(parameter), {})
        infos.append(
            ParameterInfo(
                name=name,
                shape=tuple(parameter.shape),
                learning_rate=_optional_float(group.get("lr")),
                weight_decay=_optional_float(group.get("weight_decay")),
                visible=parameter.grad is None or owner not in never_called,
            )
        )
    return infos


def _optional_float(value: Any) -> float | None:
    return None if value is None else float(value)


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
        CoordCheckError: on entering, when the width is not a positive integer, the model cannot be
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
        if isinstance(width, bool) or not isinstance(width, int) or width < 1:
            raise CoordCheckError(f"width must be a positive integer, got {width!r}.")
        self.record = RunRecord(RunKey(label, width, seed), settings={"steps": str(steps)})
        self._model = model
        self._optimizers = list(optimizer) if isinstance(optimizer, Sequence) else [optimizer]
        self._steps = steps
        self._folder = None if save_to is None else RunFolder(save_to)
        self._sites = SiteRecorder(model)
        self._handles = ExitStack()
        self._t = 0
        self._started = 0.0

    def __enter__(self) -> Recorder:
        if self._folder is not None:
            self._folder.probe()
        self._handles.enter_context(self._sites)
        register: Callable[..., Any]
        for register, hook in (
            (self._model.register_forward_hook, self._after_forward),
            (self._optimizers[0].register_step_pre_hook, self._before_update),
            (self._optimizers[-1].register_step_post_hook, self._after_update),
        ):
            self._handles.callback(register(hook).remove)
        self._started = time.perf_counter()
        self._sites.open(0)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._sites.close()
        self._handles.close()
        record = self.record
        record.sites, record.rows = list(self._sites.sites.values()), self._sites.rows
        record.seconds = time.perf_counter() - self._started
        if kind is not None and self._t < self._steps:
            record.outcome, record.reason = Outcome.FAILED, f"{kind.__name__}: {error}"
        if self._folder is not None and record.rows:
            self._folder.save(record)

    def _after_forward(self, module: nn.Module, args: Any, output: Any) -> None:
        # whatever follows before the next update is another micro-batch, or no training at all
        if not _in_backward():
            self._sites.close()

    def _before_update(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._sites.close()
        if self._t == 0:
            self.record.parameters = parameter_infos(self._model, self._optimizers, self._sites.never_called())

    def _after_update(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._t += 1
        if self._t <= self._steps:
            self._sites.open(self._t)
