"""Repeated blocks under one name: along a depth axis, block k of a deeper model is not block k of a shallow one."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import Enum

from coordcheck.runs.names import distinct
from coordcheck.runs.records import Row, RunRecord
from coordcheck.runs.words import Kind, Status

FOLDED = (Kind.MODULE, Kind.PASSTHROUGH)


class Fold(str, Enum):
    """How the blocks of a container become one."""

    FIRST = "first"
    LAST = "last"
    MEAN = "mean"
    """The root mean square over the blocks: the scale of all their coordinates together."""


def folded(records: Sequence[RunRecord], folds: Mapping[str, str]) -> list[RunRecord]:
    """The records with the numbered children of some containers folded into one.

    Layers `blocks.0.mlp`, `blocks.1.mlp`, ... become `blocks.last.mlp` (or first, mean), so that models of different
    depth have a layer in common. What the diagnosis measured stays as it is.

    Args:
        records: the runs; they are not changed.
        folds: path of a container -> "first", "last" or "mean".

    Returns:
        New records, in the same order.
    """
    for path, how in folds.items():
        records = [_folded(record, path, Fold(how)) for record in records]
    return list(records)


def _folded(record: RunRecord, path: str, how: Fold) -> RunRecord:
    child = re.compile(rf"{re.escape(path)}\.(\d+)(?=[.#:]|$)")
    groups: dict[str, dict[int, int]] = {}  # new name -> number of the block -> site
    layers = {site.layer for site in record.sites}
    for index, site in enumerate(record.sites):
        found = child.match(site.layer)
        if found and site.kind in FOLDED:
            name = distinct(f"{path}.{how.value}{site.layer[found.end() :]}", layers)
            groups.setdefault(name, {})[int(found[1])] = index
    if not groups:
        return record
    sites, places = list(record.sites), dict[int, int]()
    for name, blocks in groups.items():
        chosen = blocks[min(blocks) if how is Fold.FIRST else max(blocks)]
        sites[chosen] = sites[chosen]._replace(layer=name)
        kept = blocks.values() if how is Fold.MEAN else [chosen]
        places |= dict.fromkeys(blocks.values(), -1) | dict.fromkeys(kept, chosen)
    return replace(record, sites=sites, rows=_merged(record.rows, places))


def _merged(rows: Sequence[Row], places: Mapping[int, int]) -> list[Row]:
    """The rows at the sites that they now stand for, those of one place as one."""
    together: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        place = places.get(row.site, row.site)
        if place >= 0:
            together.setdefault((place, row.step, row.quantity), []).append(row._replace(site=place))
    return [_mean(same) if len(same) > 1 else same[0] for same in together.values()]


def _mean(rows: Sequence[Row]) -> Row:
    """The root mean square of rows; the first one that has no value instead, where there is one."""
    values = [row.value for row in rows if row.value is not None]
    if len(values) < len(rows):
        return next(row for row in rows if row.value is None)
    largest = max(values) or 1.0  # so that no square overflows
    mean = largest * math.sqrt(math.fsum((value / largest) ** 2 for value in values) / len(values))
    return rows[0]._replace(value=mean, status=Status.OK if mean else Status.ZERO)
