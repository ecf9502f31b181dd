"""All the architectures, by name."""

from __future__ import annotations

from sweep import attention, generative, recurrent, relations, vision
from sweep.mup import ARCHITECTURES

ROOMS = (recurrent, attention, vision, generative, relations)
"""The modules that hold them; to import one enters its architectures."""

__all__ = ["ARCHITECTURES", "ROOMS"]
