"""`plan`: what a check would train, and what stands in its way, before any of it is trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from coordcheck.checks.check import SEEDS, STEPS, WIDTHS, check
from coordcheck.checks.plans.drafting import draw_all
from coordcheck.checks.plans.tables import PlanTables
from coordcheck.checks.plans.text import plain, render
from coordcheck.checks.plans.timings import Untimed, time_runs, timings_of
from coordcheck.common.docstrings import as_for
from coordcheck.common.escaping import json_text
from coordcheck.runs.arguments import labelled, role_overrides
from coordcheck.runs.grids import distinct_widths, seed_numbers
from coordcheck.runs.numbers import whole_number
from coordcheck.training.trials import Build

SCHEMA = 1


class Plan(PlanTables):
    """What a check would train: print it, or read its tables, which `PlanTables` has."""

    def __str__(self) -> str:
        return plain(self)

    def __rich__(self) -> Any:
        """The plan as rich renders it: `rich.print(plan)` shows it in colour."""
        return render(self)

    def to_json(self) -> str:
        """The tables as strict JSON (no NaN: null)."""
        tables = {"builds": self.builds, "parameters": self.parameters, "shapes": self.shapes}
        data = {
            "format": "coordcheck plan",
            "schema": SCHEMA,
            "exit_code": self.exit_code,
            "axis": self.axis,
            "base": self.base_width,
            "untimed": [one._asdict() for one in self.untimed],
            "labels": self.labels,
            "widths": list(self.widths),
            "seeds": list(self.seeds),
            "steps": self.steps,
            "cost": _clean(vars(self.cost)),
            "problems": self.problems.to_dict("records"),
        } | {name: [_clean(row) for row in table.to_dict("records")] for name, table in tables.items()}
        return json_text(data)


def _clean(row: Mapping[Any, Any]) -> dict[str, Any]:
    """A row as JSON data: NaN and Inf become null."""
    return {str(k): None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


@as_for(check)
def plan(
    build: Build | Mapping[str, Build],
    *,
    widths: Sequence[int] = WIDTHS,
    seeds: int | Sequence[int] = SEEDS,
    steps: int = STEPS,
    roles: Mapping[str, str] | None = None,
    axis: str = "width",
    base: int | None = None,
    timed: bool = False,
    batch: Any = None,
    loss: Callable[..., Any] | None = None,
) -> Plan:
    """What `check` would train with the same arguments, without training it.

    Every width is built on the meta device, where a model of any size takes neither memory nor arithmetic; builds that
    cannot run there are built for real, while that is small.

    Args:
        build: as for `check`.
        widths: as for `check`.
        seeds: as for `check`; the first one is set before every build.
        steps: as for `check`.
        roles: as for `check`.
        axis: as for `check`.
        base: the width at which the learning rates were tuned: settings are told as powers of m = width / base. None
            takes the smallest of `widths`.
        timed: run the two smallest widths once, on `batch` with `loss`, and say how long all runs will take.
        batch: as for `check`; looked at where `timed`.
        loss: as for `check`; looked at where `timed`.

    Returns:
        A `Plan`: print it, `plan.parameters`, `plan.builds`, `plan.problems`, `plan.cost`, `plan.exit_code`.

    Raises:
        CoordCheckError: arguments that `check` would refuse as well. What a build raises stands in the plan.

    >>> from coordcheck.models import mlp
    >>> found = plan(mlp("µP")).parameters.set_index("parameter")
    >>> found.loc["hidden.0.weight", ["role", "shape", "learning_rate_text"]].tolist()
    ['hidden', 'n×n', '0.001 × m^-1']
    """
    builds, given, numbers = labelled(build), distinct_widths(widths), seed_numbers(seeds)
    steps, overrides = whole_number("steps", steps, 0), role_overrides(roles)
    if base is not None:
        base = whole_number("base", base, 1)
    seconds, untimed = dict[str, list[float]](), list[Untimed]()
    if timed:
        at = {"seed": numbers[0], "steps": steps}
        seconds, untimed = time_runs(builds, given, (batch, loss), **at, diagnosed=axis == "width")
    blueprints = tuple(draw_all(builds, given, numbers[0]))
    return Plan(
        *(blueprints, tuple(given), tuple(numbers), steps, axis, overrides, base),
        timings=tuple(timings_of(seconds, blueprints)),
        untimed=tuple(untimed),
    )
