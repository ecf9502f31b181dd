"""What the files of a folder hold: each field with the reader that looks at it.

A run or an experiment that is read here works everywhere: in every table, fit, figure and page. Fields that later
versions have added may be missing; what all versions write must be there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from coordcheck.common.errors import CoordCheckError
from coordcheck.runs.arguments import expectation, fold_names, role_overrides
from coordcheck.runs.reading import (
    LARGEST,
    WIDEST,
    Reader,
    Wrong,
    boolean,
    count,
    fields,
    integer,
    items,
    listed,
    mapping,
    members,
    number,
    one_of,
    optional,
    positive,
    text,
    wrong,
)
from coordcheck.runs.records import ParameterInfo, Row, RunKey, RunRecord, Site, Use
from coordcheck.runs.words import Kind, Outcome, Quantity, Side, Status, Through

STEPS = 2**31 - 1
MOST_ROWS, MOST_SITES = 2**20, 2**17
"""Of one run: 5000 layers over 64 steps have a million rows."""
MOST_NOTES, MOST_SETTINGS = 10_000, 1000
MOST_PLANNED = 100_000
OF_MODULES = (Quantity.ACTIVATION, Quantity.MEAN_ABS, Quantity.CHANGE)
PLACE = 2**10  # dimensions of a shape, and quantities of a row, are fewer


def _shape(value: object) -> tuple[int, ...]:
    """Sizes, whose product a tensor can have."""
    shape = tuple(items(integer, PLACE)(value))
    if math.prod(shape) > LARGEST:
        raise wrong("the shape of a tensor", value)
    return shape


_MEASURED = (Status.OK, Status.ZERO)
_quantity, _status = one_of(Quantity), one_of(Status)
_width, _step = partial(integer, least=1, most=WIDEST), partial(integer, most=STEPS)
_site_fields = fields(text, integer, one_of(Kind), _shape, text)
_parameter_fields = fields(
    *(text, _shape, optional(number), optional(number), boolean),
    *(optional(number), optional(number), optional(number), optional(boolean)),
    least=5,
)
_places = items(integer, MOST_SITES)
_use_fields = fields(
    *(
        integer,
        text,
        text,
        text,
        count,
        count,
        number,
        optional(number),
        boolean,
        _places,
        text,
        number,
        number,
        one_of(Through),
        positive,
        text,
        one_of(Side),
        items(integer, PLACE),
    ),
    least=11,
)


def _site(value: object) -> Site:
    return Site(*_site_fields(value))


def _parameter(value: object) -> ParameterInfo:
    return ParameterInfo(*_parameter_fields(value))


def _use(value: object) -> Use:
    found = _use_fields(value)
    return Use(*found)._replace(feeds=tuple(found[9]), channels=tuple(found[17] if len(found) > 17 else ()))


def _rows(value: object) -> list[Row]:
    """The rows, each (site, step, quantity) once: a run may have a million, so that the loop is a plain one."""
    found: list[Row] = []
    seen: set[int] = set()
    numbers = {quantity.value: place for place, quantity in enumerate(Quantity)}
    for item in listed(value):
        try:
            row = _row(item)
            key = (row.site * (STEPS + 1) + row.step) * PLACE + numbers[row.quantity.value]
            if key in seen:
                raise Wrong("its site has a value of this quantity at this step already")
        except Wrong as error:
            raise error.inside(f"[{len(found)}]") from None
        if len(found) == MOST_ROWS:
            raise Wrong(f"expected at most {MOST_ROWS} items")
        seen.add(key)
        found.append(row)
    return found


def _row(item: object) -> Row:
    if not isinstance(item, list) or len(item) != 5:
        raise wrong("a list of 5 values", item)
    site, step, quantity, value, word = item
    scale, status = None if value is None else positive(value), _status(word)
    if status is not (Status.OK if scale else Status.ZERO) if scale is not None else status in _MEASURED:
        raise Wrong(f"the value {scale!r} does not go with the status {status.value!r}")
    return Row(integer(site), _step(step), _quantity(quantity), scale, status)


RUN: dict[str, Reader[Any]] = {
    "label": text,
    "width": _width,
    "seed": integer,
    "settings": mapping(text, MOST_SETTINGS),
    "outcome": one_of(Outcome),
    "reason": text,
    "losses": items(optional(number), MOST_ROWS),
    "sites": items(_site, MOST_SITES),
    "rows": _rows,
    "parameters": items(_parameter, MOST_SITES),
    "uses": items(_use, MOST_SITES),
    "outside": mapping(number, MOST_SITES),
    "notes": items(text, MOST_NOTES),
    "seconds": positive,
}
"""The fields of a run, in the order in which they are written."""


def read_run(content: Iterator[tuple[str, Any]] | Mapping[str, Any]) -> RunRecord:
    """The record that `RunRecord.to_json` wrote.

    Args:
        content: its members; lists may be iterators.

    Returns:
        The record, every field of which was looked at.

    Raises:
        Wrong: a field is missing, or it or several together hold what no run leaves behind.
    """  # noqa: DOC501  # `wrong(...)` makes a `Wrong`
    if not isinstance(content, (Mapping, Iterator)):
        raise wrong("a mapping", content)
    found = members(content.items() if isinstance(content, Mapping) else content, RUN, needed=RUN)
    key = RunKey(found.pop("label"), found.pop("width"), found.pop("seed"))
    record = RunRecord(key, **found)
    for problem in _contradictions(record):
        raise Wrong(problem)
    record.tidy()
    return record


def _contradictions(record: RunRecord) -> Iterator[str]:
    """What cannot be true of one and the same run."""
    sites = len(record.sites)
    named = {
        "rows": (row.site for row in record.rows),
        "uses": (s for use in record.uses for s in (use.site, *use.feeds)),
    }
    for field, places in named.items():
        beyond = next((place for place in places if place >= sites), None)
        if beyond is not None:
            yield f"{field}: name the site {beyond}, and {sites} are listed"
    twice = _first_twice(site.layer for site in record.sites)
    if twice is not None:
        yield f"sites: {twice!r:.60} is there twice"
    steps = record.settings.get("steps", "")
    if steps.isascii() and steps.isdecimal() and len(steps) < 10:
        last = max((row.step for row in record.rows if row.quantity in OF_MODULES), default=0)
        for field, seen in {"rows": last, "losses": len(record.losses) - 1}.items():
            if seen > int(steps):
                yield f"{field}: go to step {seen}, and the settings say {steps}"


def _first_twice(names: Iterable[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def _argument(check: Any) -> Reader[Any]:
    """A reader of what a caller may hand in as well."""

    def read(value: object) -> Any:
        try:
            return check(value)
        except CoordCheckError as error:
            raise Wrong(str(error)) from None

    return read


def _tolerance(value: object) -> float:
    found = number(value)
    if found <= 0:
        raise wrong("a number above 0", value)
    return found


CRITERIA: dict[str, Reader[Any]] = {
    "expect": _argument(expectation),
    "tolerance": _tolerance,
    "axis": text,
    "roles": _argument(role_overrides),
    "fold": _argument(fold_names),
}
_planned = mapping(items(lambda value: list(fields(_width, integer)(value)), MOST_PLANNED))
_texts = mapping(text, MOST_SETTINGS)
EXPERIMENT: dict[str, Reader[Any]] = {
    "criteria": lambda value: members(mapping(lambda item: item)(value).items(), CRITERIA),
    "labels": mapping(_texts),
    "planned": _planned,
    "versions": _texts,
    "machine": _texts,
}
"""The fields of an experiment, none of which must be there."""


def read_experiment(content: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """What `RunFolder.save_experiment` wrote.

    Raises:
        Wrong: it holds what no check writes.
    """
    found = members(content, EXPERIMENT)
    planned = found.get("planned", {})
    strangers = [label for label in planned if label not in found.get("labels", {})]
    if strangers:
        raise Wrong(f"planned: the label {strangers[0]!r:.60} is not among the labels")
    if sum(map(len, planned.values())) > MOST_PLANNED:
        raise Wrong(f"planned: expected at most {MOST_PLANNED} runs")
    return found
