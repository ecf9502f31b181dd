"""How long the runs of a check take: the two smallest widths are run once, the others follow from their parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from coordcheck.checks.plans.blueprints import Blueprint
from coordcheck.recording.batches import cached_batches
from coordcheck.runs.records import RunKey, RunRecord
from coordcheck.training.losses import Loss, as_loss
from coordcheck.training.run import execute
from coordcheck.training.surroundings import preserved_state
from coordcheck.training.trials import Build, Probe, Run

TIMED = 2  # widths per label that are run


class Timing(NamedTuple):
    """Seconds that one run takes, at one width of one label."""

    label: str
    width: int
    seconds: float
    measured: bool
    """Whether it was run; the others are a line through those that were, against the number of parameters."""


class Untimed(NamedTuple):
    """A label whose runs could not be timed."""

    label: str
    reason: str


def time_runs(
    builds: Mapping[str, Build],
    widths: Sequence[int],
    data: tuple[Any, Loss | Callable[..., Any] | None],
    *,
    seed: int,
    steps: int,
    diagnosed: bool,
) -> tuple[dict[str, list[float]], list[Untimed]]:
    """Run the two smallest widths of every label once.

    A run before them, which is not counted, loads what is loaded once. Nothing may have been built on the meta device
    before: what a factory keeps from call to call would lie there.

    Args:
        builds: label -> factory.
        widths: ascending.
        data: batch and loss, as for `check`.
        seed: of all these runs.
        steps: updates per run.
        diagnosed: whether the check would diagnose these runs as well.

    Returns:
        Seconds per label, of the first widths; and the labels that have none, with the reason.
    """
    with preserved_state():
        batches, loss = cached_batches(data[0], steps), as_loss(data[1])
    probe, threads = Probe() if diagnosed else None, torch.get_num_threads()
    found: dict[str, list[float]] = {}
    untimed: list[Untimed] = []
    for label, build in builds.items():
        records: list[RunRecord] = []
        for width in [*widths[:1], *widths[:TIMED]]:
            run = Run(RunKey(label, width, seed), build, batches, loss, steps, None, threads, {}, probe=probe)
            records.append(execute(run))
            if not records[-1].finished:
                untimed.append(Untimed(label, records[-1].reason.strip().splitlines()[-1]))
                break
        else:
            found[label] = [record.seconds for record in records[1:]]
    return found, untimed


def carried_on(label: str, sizes: Mapping[int, int], seconds: Sequence[float]) -> list[Timing]:
    """The times of all widths: those measured at the first ones, and for the others a line against the parameters.

    Neither its slope nor its start is negative, so that a wider model never takes less time than a measured one.

    Args:
        label: of the timings.
        sizes: width -> number of parameters, ascending.
        seconds: of the first widths.

    Returns:
        A timing per width, ascending.

    >>> [round(t.seconds, 2) for t in carried_on("SP", {8: 100, 16: 200, 32: 400}, [0.2, 0.3])]
    [0.2, 0.3, 0.5]
    """
    widths = sorted(sizes)
    known = dict(zip(widths, seconds, strict=False))
    last = widths[len(known) - 1]
    rise = sizes[last] - sizes[widths[0]]
    slope = max(0.0, (known[last] - known[widths[0]]) / rise) if rise > 0 else 0.0
    slope = min(slope, known[last] / sizes[last]) if sizes[last] else 0.0
    return [
        Timing(label, width, known.get(width, known[last] + slope * (sizes[width] - sizes[last])), width in known)
        for width in widths
    ]


def timings_of(seconds: Mapping[str, Sequence[float]], blueprints: Sequence[Blueprint]) -> list[Timing]:
    """The times of all runs that can be built, of the labels whose first widths were timed."""
    found = []
    for label, known in seconds.items():
        sizes = {one.width: one.size for one in blueprints if one.label == label and one.place.built}
        found += carried_on(label, sizes, known)
    return found
