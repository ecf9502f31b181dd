"""Updates that are made of a whole matrix: neither its gradient times a factor, nor signs of its coordinates."""

from __future__ import annotations

import math

from torch import Tensor
from torch.optim import Optimizer

from coordcheck.recording import scales
from coordcheck.recording.updates.degrees import ALONG, is_plain, movement
from coordcheck.runs.records import SIGNS

OF_TORCH = ("Muon", "Adafactor")  # its other optimizers move every coordinate by itself


def may_reshape(optimizer: Optimizer) -> bool:
    """Whether an optimizer may look at a whole matrix."""
    return not is_plain(optimizer) or type(optimizer).__name__ in OF_TORCH


def reshaped(change: Tensor, gradient: Tensor) -> bool:
    """Whether an update is neither its gradient times a factor, nor as that of signs of one size.

    >>> import torch
    >>> gradient = torch.arange(1.0, 17.0).view(4, 4)
    >>> reshaped(gradient, gradient), reshaped(gradient.sign(), gradient), reshaped(gradient**2, gradient)
    (False, False, True)
    """
    sizes = change.detach().abs()[gradient != 0].double()
    found = movement(change, gradient)
    uneven = bool(sizes.numel()) and float(sizes.mean()) < SIGNS * float(scales.rms(sizes))
    return 0 < found.change < math.inf and uneven and found.along < ALONG
