"""What a check would train: its models, their settings, what stands in its way and what it costs, as tables."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from coordcheck.analysis.slopes import exponent_of
from coordcheck.checks.check import DIAGNOSED_SEEDS, DIAGNOSED_WIDTHS
from coordcheck.checks.plans.blueprints import Blueprint, Drawn, by_name
from coordcheck.checks.plans.costs import Cost, cost_of
from coordcheck.checks.plans.obstacles import Level, Obstacle, obstacles
from coordcheck.checks.plans.shapes import Power, power_of, roles_by_shape, shape_text
from coordcheck.checks.plans.timings import Timing, Untimed
from coordcheck.common.errors import CoordCheckError, IncompleteCheck
from coordcheck.runs.repeats import pattern
from coordcheck.runs.words import Role


@dataclass(frozen=True)
class PlanTables:
    """What a check would train, as tables.

    Attributes:
        blueprints: what `build` made, per label and width.
        widths: ascending.
        seeds: which seeds a check would run.
        steps: updates per run.
        axis: what the widths count.
        roles: parameter glob -> role, where the shapes do not tell.
        base: m of the settings' powers is width / base; None is the smallest width.
        timings: seconds per run by label and width; empty where none was timed.
        untimed: labels that were to be timed and could not be.
    """

    blueprints: tuple[Blueprint, ...]
    widths: tuple[int, ...]
    seeds: tuple[int, ...]
    steps: int
    axis: str = "width"
    roles: Mapping[str, str] | None = None
    base: int | None = None
    timings: tuple[Timing, ...] = ()
    untimed: tuple[Untimed, ...] = ()

    @property
    def base_width(self) -> int:
        """The width at which m = 1."""
        return self.widths[0] if self.base is None else self.base

    def seconds(self, label: str, width: int) -> Timing | None:
        """How long one run takes; None where nothing was timed."""
        return next((t for t in self.timings if (t.label, t.width) == (label, width)), None)

    @property
    def labels(self) -> list[str]:
        return list(dict.fromkeys(blueprint.label for blueprint in self.blueprints))

    def of_label(self, label: str) -> list[Blueprint]:
        """One label's blueprints, by ascending width."""
        return [blueprint for blueprint in self.blueprints if blueprint.label == label]

    @cached_property
    def builds(self) -> pd.DataFrame:
        """One row per label and width: what was built, where, how large it is, and how long it takes.

        Columns `label, width, place, reason, tensors, parameters, bytes, state_bytes, optimizer, seconds, run_seconds,
        timed`; `bytes` are those of the parameters, `state_bytes` (NaN where it is not known) those of the optimizer's
        state, `seconds` what building took, `run_seconds` what a run takes (NaN where nothing was timed; `timed` where
        it was run, and not carried on from narrower ones).
        """
        rows = [
            [
                *(b.label, b.width, b.place.value, b.reason, len(b.parameters), b.size, b.bytes),
                *(math.nan if b.state_bytes is None else b.state_bytes, b.optimizer, b.seconds),
                *((math.nan, False) if (t := self.seconds(b.label, b.width)) is None else (t.seconds, t.measured)),
            ]
            for b in self.blueprints
        ]
        sizes = ("tensors", "parameters", "bytes", "state_bytes", "optimizer", "seconds", "run_seconds", "timed")
        return pd.DataFrame(rows, columns=["label", "width", "place", "reason", *sizes])

    @cached_property
    def parameters(self) -> pd.DataFrame:
        """One row per label and parameter: role by shape, shape, and settings as powers of m = width / base_width.

        Columns `label, parameter, pattern, role` (missing where the shapes do not tell, and along another axis than
        the width), `shape, learning_rate, learning_rate_exponent, weight_decay, weight_decay_exponent, decay_exponent`
        (of learning rate times weight decay), `trainable, held, tied, widths` (how many have it), and the settings as
        text. `learning_rate` and `weight_decay` are those at m = 1; NaN where no optimizer holds the parameter.
        """
        rows = []
        for label in self.labels:
            across, roles = by_name(self.of_label(label)), self._roles(label)
            rows += [{"label": label, **self._row(name, drawn, roles[name])} for name, drawn in across.items()]
        return pd.DataFrame(rows, columns=PARAMETER_COLUMNS)

    @cached_property
    def shapes(self) -> pd.DataFrame:
        """Tidy: one row per label, parameter and width, with its shape (None of a lazy one) and settings there."""
        rows = [
            (b.label, one.name, b.width, one.shape, one.learning_rate, one.weight_decay)
            for b in self.blueprints
            for one in b.parameters
        ]
        return pd.DataFrame(rows, columns=["label", "parameter", "width", "shape", "learning_rate", "weight_decay"])

    @cached_property
    def obstacles(self) -> list[Obstacle]:
        """What stands in the way of the check, per label, the worst first."""
        found = [o for label in self.labels for o in obstacles(self.of_label(label), self.axis, self._roles(label))]
        return sorted(found, key=lambda obstacle: list(Level).index(obstacle.level))

    @cached_property
    def problems(self) -> pd.DataFrame:
        """The obstacles as a table: `label, level, text`."""
        return pd.DataFrame([(o.label, o.level.value, o.text) for o in self.obstacles], columns=Obstacle._fields)

    @cached_property
    def cost(self) -> Cost:
        return cost_of(self.blueprints, seeds=len(self.seeds), steps=self.steps, diagnosed=self._diagnosed)

    @property
    def _diagnosed(self) -> int:
        """Runs that a check also diagnoses."""
        widths = min(len(self.widths), len(DIAGNOSED_WIDTHS)) if self.axis == "width" else 0
        return len(self.labels) * widths * min(len(self.seeds), DIAGNOSED_SEEDS)

    @property
    def exit_code(self) -> int:
        """0 when it can be checked, 2 when a label cannot, 3 when some of its widths cannot be built."""
        levels = {obstacle.level for obstacle in self.obstacles}
        if Level.STOPS in levels:
            return CoordCheckError.exit_code
        return IncompleteCheck.exit_code if Level.MISSING in levels else 0

    def _roles(self, label: str) -> Mapping[str, Role | None]:
        across = by_name(self.of_label(label))
        return roles_by_shape(across, self.roles) if self.axis == "width" else dict.fromkeys(across)

    def _row(self, name: str, drawn: Mapping[int, Drawn], role: Role | None) -> dict[str, Any]:
        smallest, any_width = self.base_width, next(iter(drawn.values()))
        rate = power_of({width: one.learning_rate for width, one in drawn.items()}, smallest)
        decay = power_of({width: one.weight_decay for width, one in drawn.items()}, smallest)
        pulls = {w: (one.learning_rate or 0.0) * (one.weight_decay or 0.0) for w, one in drawn.items()}
        return {
            "parameter": name,
            "pattern": pattern(name),
            "role": None if role is None else role.value,
            "shape": shape_text({width: one.shape for width, one in drawn.items()}),
            **_setting("learning_rate", rate),
            **_setting("weight_decay", decay),
            "decay_exponent": round(exponent_of(pulls), 4),
            "trainable": any_width.trainable,
            "held": any_width.holders > 0,
            "tied": ", ".join(any_width.tied),
            "widths": len(drawn),
        }


PARAMETER_COLUMNS = [
    *("label", "parameter", "pattern", "role", "shape"),
    *("learning_rate", "learning_rate_exponent", "learning_rate_text"),
    *("weight_decay", "weight_decay_exponent", "weight_decay_text"),
    *("decay_exponent", "trainable", "held", "tied", "widths"),
]


def _setting(name: str, power: Power | None) -> dict[str, Any]:
    if power is None:
        return {name: math.nan, f"{name}_exponent": math.nan, f"{name}_text": "none"}
    return {name: power.base, f"{name}_exponent": power.exponent, f"{name}_text": power.text}
