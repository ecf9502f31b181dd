"""Rows of several ranks -> rows of the whole: sums of squares over all coordinates, wherever they are."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from coordcheck.recording.distributed.ranks import Exchange, Share, notes_of, own_rank
from coordcheck.recording.layers.activations import ROOT
from coordcheck.runs.records import ParameterInfo, Row, RunRecord, Site
from coordcheck.runs.words import Kind, Quantity, Status, status_of

MEASURED = {Status.OK, Status.ZERO, Status.NAN, Status.INF}
UNCHANGED = (Status.MOVED_INPUT, Status.SHAPE_CHANGED, Status.NOT_CALLED)  # why a change has no value, worst first
REDUCED = (Quantity.ACTIVATION, Quantity.MEAN_ABS, Quantity.CHANGE)
OUTPUTS = (Kind.MODULE, Kind.PASSTHROUGH)


class SharedRun:
    """The share that this rank has in a run that several ranks record.

    Args:
        record: what this rank records; on the rank that writes the run file it becomes that of all.
        ranks: those that train the model together.
    """

    def __init__(self, record: RunRecord, ranks: Collection[int]) -> None:
        self._record, self._ranks = record, sorted(ranks)
        self._rank = own_rank()
        self._pending: Share | None = None
        self._exchange: Exchange | None = None

    def begin(self) -> None:
        """Tell the others that this rank records the run."""
        self._exchange = Exchange(self._record.key, self._ranks)

    def hand_in(self, sizes: Mapping[tuple[int, int], int]) -> None:
        """Leave the record, which is complete, for the rank that writes the file."""
        self._pending = Share(self._rank, self._record, sizes)
        if self._exchange is not None:
            self._exchange.post(self._pending)

    def gathered(self, patience: float | None = None) -> bool:
        """Whether the record has just become that of all ranks, and is this rank's to write.

        Args:
            patience: seconds to wait for the others at most, and take what there is; None takes all or nothing.
        """
        share = self._pending
        if share is None:
            return False
        others: list[Share] = []
        try:
            leads = self._rank == self._ranks[0]
            if self._exchange is not None:
                if patience is None and not (leads and self._exchange.complete()):
                    return False
                leads = self._exchange.leads(patience or 0.0)
                others = self._exchange.gather(patience or 0.0) if leads else []
                self._ranks = self._exchange.ranks
        except Exception as error:  # the process that keeps the store has ended, say
            leads = self._rank == self._ranks[0]
            self._record.notes.append(f"other ranks were not reached: {type(error).__name__}: {error}")
        self._pending = None
        if leads:
            reduce_ranks([share, *others], self._ranks)
        return leads


class Piece(NamedTuple):
    """The rows of one layer at one step on one rank, and how many coordinates they stand for."""

    rank: int
    rows: Mapping[Quantity, Row]
    size: int


def reduce_ranks(shares: Sequence[Share], expected: Sequence[int]) -> None:
    """Make the record of the first share that of all of them.

    With n_r coordinates on rank r, activation and change become sqrt(sum n_r rms_r^2 / sum n_r), mean_abs its weighted
    mean: those of one process that holds everything, whether the ranks hold examples, positions, channels or copies.
    Where an output is large, each rank follows its change on a sample of its own rows: together they are another, and
    larger, sample than that of one process. Other quantities stay those of the first share.

    Args:
        shares: of the ranks that handed in, first the one that writes.
        expected: the ranks that should have.
    """
    record = shares[0].record
    notes = notes_of(shares, expected)
    if len(shares) > 1:
        if _stages(shares):
            notes.append("the ranks hold different parts of the model: its own output is that of the first part")
        record.sites, record.rows = _whole(shares)
        record.parameters = _all_parameters(shares)
    record.notes = notes


def _stages(shares: Sequence[Share]) -> bool:
    """Whether ranks hold parts of the model that have no parameter in common: the stages of a pipeline."""
    names = [{parameter.name for parameter in share.record.parameters} for share in shares]
    return any(found and names[0] and not found & names[0] for found in names[1:])


def _all_parameters(shares: Sequence[Share]) -> list[ParameterInfo]:
    """Every parameter once; it is visible where any rank saw it at work."""
    found: dict[str, ParameterInfo] = {}
    for share in shares:
        for info in share.record.parameters:
            before = found.setdefault(info.name, info)
            found[info.name] = before._replace(visible=before.visible or info.visible)
    return list(found.values())


def _whole(shares: Sequence[Share]) -> tuple[list[Site], list[Row]]:
    sites = list(shares[0].record.sites)
    places = {site.layer: place for place, site in enumerate(sites) if site.kind in OUTPUTS}
    pieces: dict[tuple[int, int], list[Piece]] = {}
    for share in shares:
        own = _pieces(share)
        for (number, step), piece in own.items():
            site = share.record.sites[number]
            if share is not shares[0] and site.layer.startswith(ROOT) and _stages((shares[0], share)):
                continue
            if site.layer not in places:
                places[site.layer] = len(sites)
                sites.append(site._replace(order=len(sites)))
            pieces.setdefault((places[site.layer], step), []).append(piece)
    rows = [row for row in shares[0].record.rows if row.quantity not in REDUCED]
    at_start = {place: _contributors(found) for (place, step), found in pieces.items() if step == 0}
    steps: dict[int, list[list[Piece]]] = {}
    for (place, step), found in pieces.items():
        rows.extend(_reduced(place, step, found, at_start.get(place)))
        steps.setdefault(place, []).append(found)
    for place, by_step in steps.items():
        sites[place] = sites[place]._replace(shape=_whole_shape(sites[place].shape, by_step))
    return sites, sorted(rows, key=lambda row: row.step)


def _pieces(share: Share) -> dict[tuple[int, int], Piece]:
    """The rows of a rank that are reduced, by site and step."""
    found: dict[tuple[int, int], dict[Quantity, Row]] = {}
    for row in share.record.rows:
        if row.quantity in REDUCED and share.record.sites[row.site].kind in OUTPUTS:
            found.setdefault((row.site, row.step), {})[row.quantity] = row
    return {key: Piece(share.rank, rows, share.sizes.get(key, 0)) for key, rows in found.items()}


def _whole_shape(shape: tuple[int, ...], steps: Sequence[Sequence[Piece]]) -> tuple[int, ...]:
    """The shape with the examples of all ranks; ranks whose scales are the same at every step hold copies."""
    scales: dict[int, list[float | None]] = {}
    for found in steps:
        for piece in found:
            scales.setdefault(piece.rank, []).extend(row.value for row in piece.rows.values())
    held = sum(piece.size for piece in steps[0])
    copies, odd = divmod(len(scales), len({tuple(values) for values in scales.values()}))
    row = math.prod(shape[1:]) * copies
    if odd or not held or min(shape, default=0) < 1 or held % row:
        return shape
    return (held // row, *shape[1:])


def _contributors(pieces: Sequence[Piece]) -> set[int]:
    return {piece.rank for piece in pieces if piece.rows[Quantity.ACTIVATION].status in {*MEASURED, Status.ZERO_INPUT}}


def _reduced(site: int, step: int, pieces: Sequence[Piece], at_start: set[int] | None) -> Iterator[Row]:
    """The rows of one layer at one step; `at_start` holds the ranks that measured it at t=0."""
    statuses = [piece.rows[Quantity.ACTIVATION].status for piece in pieces]
    for reason in (Status.UNSUPPORTED, Status.INTEGER, Status.ZERO_INPUT):
        if reason in statuses:
            yield Row(site, step, Quantity.ACTIVATION, None, reason)
            return
    there = [piece for piece in pieces if piece.rows[Quantity.ACTIVATION].status in MEASURED]
    if not there:
        reason = Status.EMPTY if Status.EMPTY in statuses else Status.NOT_CALLED
        yield Row(site, step, Quantity.ACTIVATION, None, reason)
        return
    yield _together(site, step, Quantity.ACTIVATION, there)
    yield _together(site, step, Quantity.MEAN_ABS, there)
    changes = [piece for piece in there if Quantity.CHANGE in piece.rows]
    if changes:
        reasons = {piece.rows[Quantity.CHANGE].status for piece in changes}
        reached = {piece.rank for piece in pieces}
        if at_start is not None and at_start & reached != _contributors(pieces):
            reasons.add(Status.SHAPE_CHANGED)  # another rank's examples came this way at t=0
        why = next((reason for reason in UNCHANGED if reason in reasons), None)
        if why is not None:
            yield Row(site, step, Quantity.CHANGE, None, why)
        else:
            yield _together(site, step, Quantity.CHANGE, changes)


def _together(site: int, step: int, quantity: Quantity, pieces: Sequence[Piece]) -> Row:
    """One scale of all coordinates."""
    rows = [piece.rows[quantity] for piece in pieces]
    for status in (Status.NAN, Status.INF):
        if any(row.status is status for row in rows):
            return Row(site, step, quantity, None, status)
    values = [row.value or 0.0 for row in rows]
    sizes = [piece.size for piece in pieces]
    value = mean(values, sizes) if quantity is Quantity.MEAN_ABS else root_mean_square(values, sizes)
    return Row(site, step, quantity, value, status_of(value))


def mean(values: Sequence[float], sizes: Sequence[int]) -> float:
    """The mean of everything, from the means of its parts and their sizes.

    >>> mean([1.0, 4.0], [2, 1])
    2.0
    """
    return math.fsum(value * size for value, size in zip(values, sizes, strict=True)) / sum(sizes)


def root_mean_square(values: Sequence[float], sizes: Sequence[int]) -> float:
    """The RMS of everything, from the RMS of its parts and their sizes; squares neither overflow nor vanish.

    >>> root_mean_square([1e200, 7e200], [1, 1])
    5e+200
    """
    largest = max(values) or 1.0
    return largest * math.sqrt(mean([(value / largest) ** 2 for value in values], sizes))
