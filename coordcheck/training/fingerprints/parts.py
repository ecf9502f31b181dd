"""Of which values, and of which bytes, a value consists: those that `pickle` would write."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Mapping
from enum import EnumMeta
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from coordcheck.training.fingerprints.kinds import hash_of, is_cached, is_generated

WHOLE = 2**28  # bytes of data that are read whole; of larger data, samples
SAMPLES, SAMPLE = 256, 2**20

DESCRIPTORS = (staticmethod, classmethod, property, functools.cached_property)
_OF_MODULES = frozenset(vars(nn.Module()))


# ---- bytes


def bytes_in(data: Any) -> memoryview:
    """Of bytes and what shows its own: a contiguous buffer."""
    return memoryview(data) if isinstance(data, bytes) else memoryview(data).cast("B")


def samples_of(view: memoryview) -> bytes:
    """32 bytes of pieces at equal distances, and of how long it is."""
    step = (view.nbytes - SAMPLE) // (SAMPLES - 1)
    return hash_of(str(view.nbytes).encode(), *(view[k * step : k * step + SAMPLE] for k in range(SAMPLES)))


def bytes_of_tensor(value: Tensor) -> memoryview | None:
    """Of the values that it stands for, whatever its layout and wherever it lies; None of one that has none."""
    if value.is_meta:
        return None
    if value.is_quantized:
        value = value.dequantize()
    flat = (value if value.layout is torch.strided else value.to_dense()).detach().cpu()
    flat = flat.resolve_conj().resolve_neg().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def bytes_of_array(value: np.ndarray[Any, Any]) -> memoryview:
    """Of its values in the order of its axes."""
    return np.ascontiguousarray(value).reshape(-1).view(np.uint8).data if value.size else memoryview(b"")


# ---- values


def of_class(value: type) -> Iterator[Any]:
    """Bases, members of an enumeration and fields of a dataclass."""
    yield from value.__bases__
    if isinstance(value, EnumMeta):
        members: Mapping[str, Any] = value.__members__
        yield [(name, one.value) for name, one in members.items()]
    fields = vars(value).get("__dataclass_fields__", {})
    yield from ((field.name, field.default, field.default_factory) for field in fields.values())


def attributes_of(value: type) -> tuple[dict[str, Any], dict[str, Any]]:
    """Methods that somebody wrote, and data, of a class by name."""
    methods: dict[str, Any] = {}
    data: dict[str, Any] = {}
    for name, member in sorted(vars(value).items()):
        if isinstance(member, (FunctionType, *DESCRIPTORS)):
            if not is_generated(member):
                methods[name] = member
        elif not name.startswith(("__", "_abc_")) and not (isinstance(value, EnumMeta) and name.startswith("_")):
            data[name] = member
    return methods, data


def of_closure(value: FunctionType) -> Iterator[Any]:
    """What the names of functions around it stand for."""
    for cell in value.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # a name that is not bound yet
            yield "empty cell"


def of_descriptor(value: Any) -> Iterator[Any]:
    """The functions behind a property, or another way to call one."""
    yield from (getattr(value, place) for place in ("__func__", "fget", "fset", "func") if hasattr(value, place))


def of_torch_module(value: nn.Module) -> Iterator[Any]:
    """What each module inside holds beside what every module does; then parameters and buffers."""
    for name, module in value.named_modules():
        own = {key: item for key, item in vars(module).items() if key not in _OF_MODULES}
        hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        yield from (name, type(module), module.training, own, hooks)
    yield from (dict(value.named_parameters()), dict(value.named_buffers()))


def of_object(value: Any, kind: type) -> Iterator[Any]:
    """What is needed to make any other object again: one text where a name is enough."""
    own = inspect.getattr_static(value, "__dict__", None)
    own = object.__getattribute__(value, "__dict__") if own is not None else {}
    if isinstance(own, dict) and callable(own.get("__wrapped__")):  # a cached function: its cache is no part of it
        yield own["__wrapped__"]
        return
    reduced: Any = type.__getattribute__(kind, "__reduce_ex__")(value, 5)
    if isinstance(reduced, str):
        yield reduced
        return
    make, args, *rest = reduced
    state, items, pairs = [*rest, None, None, None][:3]
    if isinstance(state, dict):  # without what is computed once and kept
        state = {name: item for name, item in state.items() if not is_cached(kind, name)} or None
    yield from (make, args, state, list(items or ()), list(pairs or ()))
