"""What stands in the way of a check, and what its reader should know, as far as no training is needed to see it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import Enum
from typing import NamedTuple

from coordcheck.analysis.audits import NAMES, decay_notes, listed
from coordcheck.analysis.slopes import MIN_WIDTHS
from coordcheck.checks.plans.blueprints import Blueprint, Drawn, Place, by_name
from coordcheck.checks.plans.shapes import is_regular, power_of, size_text
from coordcheck.runs.records import ParameterInfo, RunKey, RunRecord
from coordcheck.runs.words import Role


class Level(str, Enum):
    """What an obstacle means for a check."""

    STOPS = "stops"
    """The label cannot be checked."""
    MISSING = "missing"
    """Some of its widths cannot be built."""
    PROBLEM = "problem"
    """The check runs, and is probably not the one that was meant."""
    NOTE = "note"


class Obstacle(NamedTuple):
    """One thing seen before training."""

    label: str
    level: Level
    text: str


class _Seen(NamedTuple):
    """One label at all widths."""

    blueprints: Sequence[Blueprint]
    axis: str
    roles: Mapping[str, Role | None]
    across: Mapping[str, Mapping[int, Drawn]]

    @property
    def built(self) -> list[Blueprint]:
        return [blueprint for blueprint in self.blueprints if blueprint.place.built]

    @property
    def scales_width(self) -> bool:
        return self.axis == "width"

    def named(self, holds: Callable[[Drawn], bool]) -> str:
        """The parameters of which something holds at some width; with the widths where it does not at all."""
        at = {name: [w for w, one in drawn.items() if holds(one)] for name, drawn in self.across.items()}
        names = [name for name, widths in at.items() if widths]
        some = sorted({w for name in names for w in at[name]})
        everywhere = all(len(at[name]) == len(self.across[name]) for name in names)
        return listed(names) + ("" if everywhere else f" ({self.axis} {_numbers(some)})")


Found = Iterator[tuple[Level, str]]


def obstacles(blueprints: Sequence[Blueprint], axis: str, roles: Mapping[str, Role | None]) -> list[Obstacle]:
    """What is to be said of one label.

    Args:
        blueprints: of one label, by ascending width.
        axis: what the widths count.
        roles: of its parameters, None where the shapes do not tell.

    Returns:
        What stands in the way of a check, and what is only to be known, in the order of the looks.
    """
    seen = _Seen(blueprints, axis, roles, by_name(blueprints))
    looks = (_failures, _too_few, _ignored, _names, _held, _rates, _kinds, _sizes, _decays, _unclear, _places)
    return [Obstacle(blueprints[0].label, level, text) for look in looks for level, text in look(seen)]


def _numbers(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))


def _reasons(blueprints: Iterable[Blueprint]) -> dict[str, list[int]]:
    """Widths by reason."""
    found: dict[str, list[int]] = {}
    for blueprint in blueprints:
        found.setdefault(blueprint.reason, []).append(blueprint.width)
    return found


def _failures(seen: _Seen) -> Found:
    failed = [blueprint for blueprint in seen.blueprints if blueprint.place is Place.FAILED]
    for reason, widths in _reasons(failed).items():
        everywhere = len(failed) == len(seen.blueprints)
        where = f"every {seen.axis}" if len(widths) == len(seen.blueprints) else f"{seen.axis} {_numbers(widths)}"
        yield (Level.STOPS if everywhere else Level.MISSING), f"build fails at {where}: {reason}"


def _too_few(seen: _Seen) -> Found:
    widths = [blueprint.width for blueprint in seen.blueprints]
    if len(widths) < MIN_WIDTHS:
        yield (
            Level.STOPS,
            f"a verdict needs at least {MIN_WIDTHS} distinct widths, got {len(widths)} ({_numbers(widths)}). "
            "Add widths: a range of 8 or more times is best.",
        )


def _ignored(seen: _Seen) -> Found:
    """Widths whose models are alike: as the smallest, which a check refuses, or as one another."""
    if not seen.scales_width:
        return
    alike: dict[tuple[object, ...], list[int]] = {}
    for blueprint in seen.built:
        shapes = tuple((one.name, one.shape) for one in blueprint.parameters if one.trainable)
        alike.setdefault(shapes, []).append(blueprint.width)
    for widths in alike.values():
        if len(widths) > 1:
            yield (
                Level.STOPS if widths[0] == seen.built[0].width else Level.PROBLEM,
                f"equal parameter shapes at widths {_numbers(widths)}: does the factory use its width argument? "
                'If another axis is checked, name it: axis="depth".',
            )


def _names(seen: _Seen) -> Found:
    """Parameters that some widths do not have."""
    widths = [blueprint.width for blueprint in seen.built]
    partial: dict[tuple[int, ...], list[str]] = {}
    for name, drawn in seen.across.items():
        if len(drawn) < len(widths):
            partial.setdefault(tuple(drawn), []).append(name)
    if partial and max(map(len, seen.across.values())) < MIN_WIDTHS <= len(widths) and seen.scales_width:
        yield Level.STOPS, f"no parameter has the same name at {MIN_WIDTHS} widths, so nothing can be compared"
    counts = {len(blueprint.parameters) for blueprint in seen.built}
    for at, names in partial.items():
        what = "parameter" if len(names) == 1 else f"{len(names)} parameters"
        level = Level.PROBLEM if seen.scales_width else Level.NOTE
        yield level, f"{what} only at {seen.axis} {_numbers(at)}: {listed(names)}; not compared elsewhere"
    if len(counts) > 1 and seen.scales_width:
        found = ", ".join(f"{len(blueprint.parameters)} at {blueprint.width}" for blueprint in seen.built)
        yield Level.NOTE, f"the number of parameters differs: {found}"


def _held(seen: _Seen) -> Found:
    """What optimizers hold, and what they do not."""
    idle = seen.named(lambda one: one.trainable and not one.holders)
    if idle:
        yield Level.PROBLEM, f"no optimizer holds {idle}: never updated, though requires_grad is True"
    twice = seen.named(lambda one: one.holders > 1)
    if twice:
        yield Level.PROBLEM, f"held more than once: {twice}: updated several times at every step"
    at = {blueprint.width: blueprint.foreign for blueprint in seen.built if blueprint.foreign}
    if at:
        width, shapes = next(iter(at.items()))
        written = ["×".join(map(str, shape)) or "scalar" for shape in shapes]
        more = f" and {len(written) - NAMES} more" if len(written) > NAMES else ""
        yield (
            Level.PROBLEM,
            f"the optimizer holds {len(shapes)} tensors that are not the model's parameters ({seen.axis} {width}: "
            f"{', '.join(written[:NAMES])}{more}): was it made from another model, or before a part was replaced?",
        )


def _rates(seen: _Seen) -> Found:
    zero = seen.named(lambda one: one.trainable and one.learning_rate == 0)
    if zero:
        yield (
            Level.PROBLEM,
            f"learning rate 0 at the start: {zero}. A check calls optimizer.step() and no scheduler: give the "
            "learning rate after the warm-up",
        )
    for what, field in (("learning rate", "learning_rate"), ("weight decay", "weight_decay")):
        bent: dict[tuple[float, ...], list[str]] = {}
        for name, drawn in seen.across.items():
            power = power_of({width: getattr(one, field) for width, one in drawn.items()}, seen.blueprints[0].width)
            if power is not None and not power.exact:
                bent.setdefault(power.values, []).append(name)
        for values, names in bent.items():
            told = ", ".join(f"{value:.4g}" for value in values)
            yield Level.NOTE, f"the {what} of {listed(names)} is no power of the {seen.axis}: {told}"


def _kinds(seen: _Seen) -> Found:
    frozen = seen.named(lambda one: not one.trainable)
    if frozen:
        yield Level.NOTE, f"frozen (requires_grad is False), neither trained nor judged: {frozen}"
    lazy = seen.named(lambda one: one.shape is None)
    if lazy:
        yield Level.NOTE, f"lazy, of no shape before a first forward pass, and not counted: {lazy}"
    ties = {name: one.tied for name, drawn in seen.across.items() for one in drawn.values() if one.tied}
    if ties:
        pairs = [" = ".join((name, *others)) for name, others in ties.items()]
        yield Level.NOTE, f"tied: {listed(pairs)}"


def _sizes(seen: _Seen) -> Found:
    """Axes that grow, and neither as a power of the width nor on a line."""
    rough: dict[tuple[int, ...], list[str]] = {}
    for name, drawn in seen.across.items():
        shapes = {width: one.shape for width, one in drawn.items() if one.shape is not None}
        if len({len(shape) for shape in shapes.values()}) == 1:
            for axis in range(len(next(iter(shapes.values())))):
                sizes = {width: shape[axis] for width, shape in shapes.items()}
                if not is_regular(size_text(sizes)):
                    rough.setdefault(tuple(sizes.values()), []).append(name)
    for found, names in rough.items():
        name = listed(list(dict.fromkeys(names)))
        yield Level.NOTE, f"grows in no power of the {seen.axis} (rounded?): {name}: {_numbers(found)}"


def _decays(seen: _Seen) -> Found:
    """The exponent of learning rate x weight decay, as a report says it."""
    records = [
        RunRecord(
            RunKey(blueprint.label, blueprint.width, 0),
            parameters=[
                ParameterInfo(one.name, one.shape or (), one.learning_rate, one.weight_decay, True, pulled=one.pulled)
                for one in blueprint.parameters
                if one.trainable
            ],
        )
        for blueprint in seen.built
    ]
    for note in decay_notes(records):
        yield Level.NOTE, note


def _unclear(seen: _Seen) -> Found:
    names = [name for name, role in seen.roles.items() if role is None and not _is_lazy(seen.across[name])]
    if names and seen.scales_width:
        yield (
            Level.NOTE,
            f"role unclear by shape: {listed(names)}: one axis grows, in a kind of module that is not known. "
            "A check sees how it is used",
        )


def _is_lazy(drawn: Mapping[int, Drawn]) -> bool:
    return any(one.shape is None for one in drawn.values())


def _places(seen: _Seen) -> Found:
    """Where the meta device did not do."""
    for place, what in ((Place.REAL, "built for real"), (Place.NOT_BUILT, "not built")):
        at = [blueprint for blueprint in seen.blueprints if blueprint.place is place]
        for reason, widths in _reasons(at).items():
            yield Level.NOTE, f"{seen.axis} {_numbers(widths)} {what}: {reason}"
