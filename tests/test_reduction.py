"""Rows of several ranks become those of the whole: closed forms, and what one rank lacks."""

from __future__ import annotations

import math
from typing import Any

import pytest

from coordcheck.recording.distributed.ranks import Share, notes_of
from coordcheck.recording.distributed.reduction import reduce_ranks
from coordcheck.runs.records import ParameterInfo, Row, RunKey, RunRecord, Site
from coordcheck.runs.words import Kind, Quantity, Status


def share(rank: int, *rows: Any, sizes: dict[int, int] | None = None, **fields: Any) -> Share:
    """What a rank recorded of one layer of (4, 2): rows of (step, quantity, value or the status that says why none)."""
    record = RunRecord(RunKey("model", 64, 0), sites=[Site("layer", 0, Kind.MODULE, (4, 2), "float32")], **fields)
    for step, quantity, value in rows:
        measured = not isinstance(value, Status)
        status = Status.OK if measured else value
        record.rows.append(Row(0, step, quantity, value if measured else None, status))
    steps = {row.step for row in record.rows}
    return Share(rank, record, {(0, step): (sizes or {}).get(step, 8) for step in steps})


def reduced(*shares: Share) -> dict[tuple[int, Quantity], float | Status]:
    reduce_ranks(shares, [share.rank for share in shares])
    rows = shares[0].record.rows
    return {(row.step, row.quantity): row.status if row.value is None else row.value for row in rows}


A, M, C = Quantity.ACTIVATION, Quantity.MEAN_ABS, Quantity.CHANGE


def test_squares_are_summed_over_all_coordinates():
    """One rank holds (1, 1, 1, 1), the other (7): RMS sqrt(53 / 5), mean absolute value 11 / 5."""
    found = reduced(share(0, (0, A, 1.0), (0, M, 1.0), sizes={0: 4}), share(1, (0, A, 7.0), (0, M, 7.0), sizes={0: 1}))
    assert found[0, A] == pytest.approx(math.sqrt(53 / 5), rel=1e-15)
    assert found[0, M] == pytest.approx(11 / 5, rel=1e-15)


def test_copies_on_every_rank_stay_as_they_are():
    shares = [share(rank, (0, A, 0.1), (0, M, 0.07)) for rank in range(3)]
    assert reduced(*shares) == {(0, A): 0.1, (0, M): pytest.approx(0.07, rel=1e-15)}
    assert shares[0].record.sites[0].shape == (4, 2)


def test_examples_of_every_rank_are_in_the_shape():
    shares = [share(rank, (0, A, 0.1 + rank), (0, M, 0.07)) for rank in range(3)]
    reduced(*shares)
    assert shares[0].record.sites[0].shape == (12, 2)


@pytest.mark.parametrize("why", [Status.NAN, Status.INF])
def test_what_is_not_finite_on_one_rank_is_not_finite(why):
    found = reduced(share(0, (0, A, 1.0), (0, M, 1.0)), share(1, (0, A, why), (0, M, why)))
    assert found == {(0, A): why, (0, M): why}


@pytest.mark.parametrize("why", [Status.UNSUPPORTED, Status.INTEGER])
def test_what_one_rank_cannot_measure_is_not_measured(why):
    assert reduced(share(0, (0, A, 1.0), (0, M, 1.0)), share(1, (0, A, why))) == {(0, A): why}


@pytest.mark.parametrize("why", [Status.EMPTY, Status.NOT_CALLED])
def test_a_rank_without_examples_for_a_layer_does_not_count(why):
    assert reduced(share(0, (0, A, 1.0), (0, M, 1.0)), share(1, (0, A, why))) == {(0, A): 1.0, (0, M): 1.0}
    assert reduced(share(0, (0, A, why)), share(1, (0, A, why))) == {(0, A): why}


@pytest.mark.parametrize("why", [Status.MOVED_INPUT, Status.SHAPE_CHANGED])
def test_a_change_that_is_none_on_one_rank_is_none(why):
    start, later = [(0, A, 1.0), (0, M, 1.0)], [(1, A, 1.0), (1, M, 1.0)]
    found = reduced(share(0, *start, *later, (1, C, 0.5)), share(1, *start, *later, (1, C, why)))
    assert found[1, C] is why


def test_examples_that_go_another_way_change_the_shape():
    """At t=0 both ranks' examples reach an expert, at t=1 those of one."""
    start = [(0, A, 1.0), (0, M, 1.0)]
    reaches = share(0, *start, (1, A, 1.0), (1, M, 1.0), (1, C, 0.5))
    assert reduced(reaches, share(1, *start, (1, A, Status.NOT_CALLED)))[1, C] is Status.SHAPE_CHANGED


def test_a_rank_that_stopped_does_not_change_the_shape():
    start = [(0, A, 1.0), (0, M, 1.0)]
    goes_on = share(0, *start, (1, A, 1.0), (1, M, 1.0), (1, C, 0.5))
    assert reduced(goes_on, share(1, *start))[1, C] == 0.5
    assert "scales from t=1 on are not those of the whole: rank 1 stopped before" in goes_on.record.notes


def test_a_parameter_is_visible_where_any_rank_saw_it():
    info = ParameterInfo("weight", (2, 2), 0.1, 0.0, visible=False)
    shares = [share(rank, (0, A, 1.0), (0, M, 1.0), parameters=[info._replace(visible=rank == 1)]) for rank in range(2)]
    reduced(*shares)
    assert shares[0].record.parameters == [info._replace(visible=True)]


def test_notes_of_other_ranks_say_whose_they_are():
    shares = [share(0, (0, A, 1.0), notes=["shared"]), share(1, (0, A, 1.0), notes=["shared", "own"])]
    assert notes_of(shares, [0, 1]) == ["shared", "rank 1: own", "scales are those of ranks 0, 1 together"]
