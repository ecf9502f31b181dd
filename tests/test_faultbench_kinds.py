"""The kinds of the fault bench: each is large enough, is split by the same rule, and a sample of it is answered."""

from __future__ import annotations

import pytest
import torch

if not hasattr(torch.optim, "Muon"):
    pytest.skip(f"the bench needs Muon, of torch 2.9, and this is {torch.__version__}", allow_module_level=True)

from faultbench.faults import REGISTRY, controls, faults, parameter_names, split
from faultbench.foreign import KINDS
from faultbench.foreign.by_hand import own_updates, slopes
from faultbench.scoring import PATHS, alarm, culprits, diagnosis, same
from faultbench.sides import Decision, count, decisions

SAMPLE = (
    *("a scaled skip, sgd: healthy", "a scaled stream, adam: down init"),
    *("b standardised, adam: healthy", "b weight norm, adam: directions lr"),
    *("c fast weights, adam: healthy", "c fast weights, adam: value init"),
    *("d growing blocks, einsum, adam: healthy", "d block_diag, adamw: lr const"),
    *("e centred, adam: healthy", "e triangular, sign: init +0.5"),
    *("f there and back, adam: healthy", "f few rows, many times, adam: lr +1"),
    *("g stacked gate and up, sgd: healthy", "g stacked gate and up, sgd: gate init"),
    *("h cosine, adam: healthy", "h heads and head size grow, adam: 1/sqrt(d)"),
    *("i LARS, own: healthy", "i clipped inside, own: readout lr +0.5"),
    *("j rank 1, own: healthy", "j Dion, own: middle lr 1/n"),
    *("k relu net, adam: with the gradient", "k relu net, adam: tiny, middle lr"),
    *("l relu net, momentum: zero readout", "l tanh net, sgd: one rate"),
    *("m equilibrium, adam: healthy", "m recurrence, sgd: state lr 1/n"),
    *("n ignored numbers, sign: healthy", "n bias before batch norm, sgd: gain lr const"),
    *("o masked classes, -inf, adam: healthy", "o masked classes, finfo.min, sgd: readout lr"),
    *("p adapter, adam: healthy", "p LayerScale, adamw: vectors init"),
    *("q numbered experts of one tensor, sgd: healthy", "q experts of one tensor, adam: lr"),
)
"""Of each kind a healthy case and a planted one that are right."""


def test_each_kind_has_members_in_both_halves_half_of_them_families():
    assert sorted(KINDS) == list("abcdefghijklmnopq")
    for kind in KINDS:
        assert len(controls(kind=kind)) >= 3, kind
        assert len(faults(kind=kind)) >= 5, kind
        for half in ("dev", "held-out"):
            assert controls(half, kind), (kind, half)
            assert faults(half, kind), (kind, half)
            assert len(controls(half, kind)) + len(faults(half, kind)) >= 4, (kind, half)


def test_the_bench_itself_has_none_of_them():
    assert not any(case.kind for half in ("dev", "held-out") for case in (*faults(half), *controls(half)))
    assert all(case.name.startswith(f"{case.kind} ") for case in REGISTRY.values() if case.kind)
    assert {split(case.name) for case in REGISTRY.values() if case.kind} == {"dev", "held-out"}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_truths_name_what_the_models_have(kind):
    for case in faults(kind=kind):
        build = case.build.family.build
        modules = dict(build(64).model.named_modules())
        for name, (cause, exponent) in case.truth.items():
            assert name.partition("[")[0] in (modules if cause in PATHS else parameter_names(build)), case.name
            assert (4 * exponent).is_integer()


def test_a_sample_is_of_every_kind_and_of_both_sorts():
    assert {(REGISTRY[name].kind, REGISTRY[name].healthy) for name in SAMPLE} == {
        (kind, healthy) for kind in KINDS for healthy in (True, False)
    }


@pytest.mark.parametrize("name", SAMPLE)
def test_answer_to_a_sample(name):
    case = REGISTRY[name]
    if case.healthy:
        found = alarm(case, (0, 1))
        assert not found.false, found
    else:
        answer = culprits(diagnosis(case).verdicts, case.truth)
        assert same(answer, case.truth), f"{case.mechanism}: {answer}, not {dict(case.truth)}"


def test_by_hand_a_healthy_model_stands_still_and_a_planted_rate_shows():
    healthy = slopes(REGISTRY["f tiled, adam: healthy"], (64, 256), 1)
    assert all(abs(slope) < 0.25 for found in healthy.values() for slope in found[1:])
    planted = slopes(REGISTRY["f tiled, adam: lr +1"], (64, 256), 1)
    assert planted["middle.source"][1:] == pytest.approx((1.0, 1.0), abs=0.25)


def test_by_hand_a_parameter_that_the_loss_does_not_see_moves_nothing():
    found = own_updates(REGISTRY["n ignored numbers, sign: healthy"], 64, 0)
    assert "middle.matrix" not in found
    assert {"middle.lost", "middle.unused"}.isdisjoint(found)
    assert {"input.weight", "middle.matrix.weight", "readout.weight"} <= set(found)


def test_decisions_know_what_was_planted():
    case = REGISTRY["a scaled stream, adam: down init"]
    found = decisions(case, diagnosis(case))
    assert len(found) > 8
    assert all(decision.judged for decision in found)
    # were nothing planted, the gain that is off would be wrong
    pretended = decisions(REGISTRY["a scaled stream, adam: healthy"], diagnosis(case))
    assert sum(not decision.judged for decision in pretended) == 1


def test_the_count_tells_who_was_right():
    how = "disagreed, structure decided"
    table = count([Decision(how, True, False, True), Decision(how, False, True, False)])
    assert [line.split()[-5:] for line in table.splitlines() if line.startswith(how)] == [["2", "1", "1", "1", "0"]]
