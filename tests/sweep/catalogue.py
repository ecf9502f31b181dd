"""All the architectures, by name."""

from __future__ import annotations

from sweep import acting, adapting, attention, experts, generative, recurrent, relations, vision
from sweep.mup import ARCHITECTURES

ROOMS = (recurrent, attention, vision, generative, relations, adapting, experts, acting)
"""The modules that hold them; to import one enters its architectures."""

__all__ = ["ARCHITECTURES", "ROOMS"]
