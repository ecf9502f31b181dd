"""What a check's slopes are held against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from coordcheck.analysis.verdicts import TOLERANCE, Expectation


@dataclass(frozen=True)
class Criteria:
    """What the slopes are held against."""

    expect: Expectation | str | None = None
    """The name of a parametrization, or layer glob -> exponent for layers that should scale with the width."""
    tolerance: float = TOLERANCE
    axis: str = "width"
    roles: Mapping[str, str] | None = None
    """Parameter glob -> role, where the shapes do not tell."""
    fold: Mapping[str, str] | None = None
    """Path of a container -> "first", "last" or "mean": its numbered children become one layer."""

    @property
    def parametrization(self) -> str:
        return self.expect if isinstance(self.expect, str) else "mup"

    @property
    def exponents(self) -> Expectation | None:
        return None if isinstance(self.expect, str) else self.expect

    def to_json(self) -> dict[str, Any]:
        """The criteria as they stand in a folder's experiment.json."""
        return dict(vars(self))
