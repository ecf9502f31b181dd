"""All the architectures, by name."""

from __future__ import annotations

from sweep import (
    acting,
    adapting,
    adversarial,
    attention,
    comparing,
    experts,
    fields,
    generative,
    recurrent,
    relations,
    transformers,
    vision,
)
from sweep.mup import ARCHITECTURES

ROOMS = (
    recurrent,
    attention,
    transformers,
    vision,
    fields,
    adversarial,
    generative,
    relations,
    comparing,
    adapting,
    experts,
    acting,
)
"""The modules that hold them; to import one enters its architectures."""

__all__ = ["ARCHITECTURES", "ROOMS"]
