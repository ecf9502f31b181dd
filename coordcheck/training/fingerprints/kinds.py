"""Kinds of values: those that change no number, those that are generated or cached; and the hash of pieces."""

from __future__ import annotations

import functools
import hashlib
import inspect
import os
import random
import sys
import threading
import types
import weakref
from types import FunctionType
from typing import Any

import numpy as np
import torch

# what decides no number, and has no state to compare
_SILENT = (
    *(type(threading.Lock()), type(threading.RLock()), threading.Thread, threading.Event, threading.Condition),
    *(threading.Semaphore, threading.local, weakref.ReferenceType, weakref.ProxyType, weakref.WeakKeyDictionary),
    *(weakref.WeakValueDictionary, weakref.WeakSet, types.GetSetDescriptorType, types.MemberDescriptorType),
)


_SINKS = frozenset({"logging", "rich", "tqdm", "wandb", "mlflow", "tensorboard", "tensorboardX", "trackio", "loguru"})


def is_silent(value: Any, kind: type) -> bool:
    """Whether a value changes no number, whatever its state; global random states are seeded before each run."""
    if issubclass(kind, _SILENT) or str(kind.__module__).partition(".")[0] in _SINKS:
        return True
    # those of numpy and random are where `from random import random` comes from
    states = random.__dict__["_inst"], np.random.mtrand.__dict__["_rand"], torch.default_generator
    return any(value is one for one in (sys.stdin, sys.stdout, sys.stderr, os.environ, *states))


def is_cached(kind: type, name: object) -> bool:
    """Whether an attribute is computed once and kept."""
    found = inspect.getattr_static(kind, name, None) if isinstance(name, str) else None
    return isinstance(found, functools.cached_property)


def is_generated(member: Any) -> bool:
    """Whether a method was written by a decorator, such as a dataclass's: its fields tell it."""
    function = getattr(member, "__func__", getattr(member, "fget", member))
    file = function.__code__.co_filename if isinstance(function, FunctionType) else ""
    return file.startswith("<") and not file.startswith(("<ipython", "<stdin", "<console"))


def name_of(kind: type) -> str:
    """A class's name, whatever its metaclass says."""
    return type.__getattribute__(kind, "__qualname__")


def hash_of(*pieces: Any) -> bytes:
    """32 bytes of several pieces, each told apart from the next."""
    whole = hashlib.sha256()
    for piece in pieces:
        whole.update(len(piece).to_bytes(8, "little"))
        whole.update(piece)
    return whole.digest()
