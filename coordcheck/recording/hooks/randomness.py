"""The states that random numbers are drawn from: seeded together, and put back as they were."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed torch, numpy and random; widths of one seed share it, in whichever order they run."""
    if _has_accelerator():
        torch.manual_seed(seed)
    else:  # the same for the CPU, without queueing a call (and a stack trace) for devices that are not there
        torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


@lru_cache(maxsize=1)
def _has_accelerator() -> bool:
    return torch.cuda.is_available() or torch.backends.mps.is_available() or torch.xpu.is_available()


@contextmanager
def kept_randomness() -> Iterator[None]:
    """Put back every state that torch on any device in use, numpy and random draw from.

    >>> before = random.getstate()
    >>> with kept_randomness():
    ...     seed_everything(0)
    >>> random.getstate() == before
    True
    """
    of_numpy, of_python = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(_devices_in_use()):
        try:
            yield
        finally:
            np.random.set_state(of_numpy)
            random.setstate(of_python)


def _devices_in_use() -> Sequence[int]:
    return range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
