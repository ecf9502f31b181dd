"""The decision procedure: exponents in, cause and remedy out; and its controls."""

from __future__ import annotations

import math
import random

import pytest
import torch
import torch.nn.functional as F
from conftest import pair_batch
from test_exponents import use

import coordcheck
from coordcheck.analysis.diagnosis import diagnose
from coordcheck.analysis.exponents import Exponents
from coordcheck.analysis.findings import Cause
from coordcheck.analysis.logs import Exponent
from coordcheck.analysis.remedies import remedy
from coordcheck.analysis.targets import PARAMETRIZATIONS, parametrization
from coordcheck.analysis.verdicts import Verdict
from coordcheck.models import mlp
from coordcheck.reporting.report import Report
from coordcheck.runs.words import Role, Through

UNKNOWN = Exponent(math.nan, math.nan, math.nan, math.nan)


def exact(value, half=0.01):
    return Exponent(value, half / 2, value - half, value + half)


def measured(gain=0.0, response=0.0, *, growth=0.0, degree=0.0, half=0.01, **changed):
    """Exponents of one part, both sides agreeing."""
    fields = {
        "gain": exact(gain, half),
        "gain_weight": exact(gain, half),
        "response": exact(response, half),
        "response_weight": exact(response, half),
        "growth": exact(growth, half),
        "inherited": exact(0.0),
        "output": exact(gain, half),
        "degree": degree,
        "step": 1,
        "zero_init": False,
        "moved": True,
        "frozen": False,
        "has_gradient": True,
        "not_finite": False,
    }
    return Exponents(**fields | changed)


def judged(role=Role.HIDDEN, found=None, *, expect="mup", tolerance=0.25, **of_part):
    one = use(role=role, **of_part)
    return diagnose([one], {one.name: found or measured()}, PARAMETRIZATIONS[expect], tolerance)[0]


@pytest.mark.parametrize("degree", [0.0, 1.0])
@pytest.mark.parametrize(
    ("role", "gain", "responses"),
    [
        (Role.INPUT, 0.0, (0, 1)),
        (Role.HIDDEN, 0.0, (0, 1)),
        (Role.READOUT, -0.5, (0, 0)),
        (Role.VECTOR, 0.0, (0, 1)),
        (Role.NARROW, 0.0, (0, 1)),
        (Role.CONSTANT, 0.0, (0, 0)),
    ],
)
def test_the_targets_of_mup(role, gain, responses, degree):
    finding = judged(role, measured(gain, responses[round(degree)], degree=degree))
    assert (finding.verdict, finding.cause) == (Verdict.OK, None)
    # and one more power of the width in the learning rate is a fault in every role
    off = judged(role, measured(gain, responses[round(degree)] + 1, degree=degree, growth=1.0))
    assert (off.cause, off.learning_rate) == (Cause.LEARNING_RATE, -1)


FAULTS = [
    # gain, response, degree -> verdict, cause, init, lr, multiplier
    ((0.5, 0.0, 0), (Verdict.TOO_LARGE, Cause.INIT, -0.5, 0, 0)),
    ((-0.5, 0.0, 0), (Verdict.TOO_SMALL, Cause.INIT, 0.5, 0, 0)),
    ((0.0, 1.0, 0), (Verdict.LEARNS_TOO_FAST, Cause.LEARNING_RATE, 0, -1, 0)),
    ((0.0, -1.0, 0), (Verdict.LEARNS_TOO_SLOWLY, Cause.LEARNING_RATE, 0, 1, 0)),
    ((0.0, 2.0, 0), (Verdict.LEARNS_TOO_FAST, Cause.LEARNING_RATE, 0, -2, 0)),
    ((-1.0, -1.0, 0), (Verdict.TOO_SMALL, Cause.MULTIPLIER, 0, 0, 1)),
    ((0.5, 0.5, 0), (Verdict.TOO_LARGE, Cause.MULTIPLIER, 0, 0, -0.5)),
    ((0.5, 1.0, 0), (Verdict.TOO_LARGE, Cause.INIT, -0.5, -1, 0)),
    ((0.5, 2.0, 1), (Verdict.TOO_LARGE, Cause.MULTIPLIER, 0, 0, -0.5)),
    ((0.5, 1.0, 1), (Verdict.TOO_LARGE, Cause.INIT, -0.5, 0, 0)),
    ((0.0, 0.0, 1), (Verdict.LEARNS_TOO_SLOWLY, Cause.LEARNING_RATE, 0, 1, 0)),
]


@pytest.mark.parametrize(("exponents", "expected"), FAULTS)
def test_cause_and_exponent_of_a_hidden_matrix(exponents, expected):
    gain, response, degree = exponents
    found = judged(found=measured(gain, response, degree=degree))
    assert (found.verdict, found.cause, found.init, found.learning_rate, found.multiplier) == expected


@pytest.mark.parametrize("noise", [0.0, 0.2, -0.2])
def test_deviations_are_rounded_to_the_nearest_half(noise):
    assert judged(found=measured(0.0, 1.0 + noise)).learning_rate == -1


def test_three_values():
    assert judged(found=measured(0.0, 0.2, half=0.04)).verdict is Verdict.OK
    assert judged(found=measured(0.0, 0.2, half=0.1)).verdict is Verdict.UNDECIDED
    assert judged(found=measured(0.0, 0.4, half=0.1)).verdict is Verdict.LEARNS_TOO_FAST
    assert judged(found=measured(0.0, 0.4, half=0.1), tolerance=0.6).verdict is Verdict.OK
    assert judged(found=measured()._replace(response_weight=UNKNOWN, response=UNKNOWN)).verdict is Verdict.UNDECIDED


def test_a_zero_initialised_readout_is_by_design():
    found = judged(Role.READOUT, measured(0.0, 0.0, zero_init=True, gain_weight=UNKNOWN))
    assert found.verdict is Verdict.OK


def test_a_large_vocabulary_forgives_the_readouts_scale_with_a_warning():
    forgiven = judged(Role.READOUT, measured(0.0, 0.0), largest_fan_out=50_000)
    assert forgiven.verdict is Verdict.OK
    assert "warning: initialised as in SP" in forgiven.explanation
    assert judged(Role.READOUT, measured(0.0, 0.0), largest_fan_out=256).cause is Cause.INIT
    assert judged(Role.READOUT, measured(0.5, 0.0), largest_fan_out=50_000).cause is Cause.INIT


def test_the_gain_of_a_narrow_matrix_is_a_warning():
    found = judged(Role.NARROW, measured(-0.5, 0.0))
    assert (found.verdict, found.cause) == (Verdict.OK, None)
    assert "warning" in found.explanation


def test_frozen_needs_a_gradient():
    still = {"moved": False, "step": 0}
    moving = use("moving")
    for has_gradient, frozen, expected in (
        (True, True, (Verdict.FROZEN, Cause.FROZEN)),
        (True, False, (Verdict.UNDECIDED, None)),
        (False, False, (Verdict.NOT_VISIBLE, None)),
    ):
        found = {"w": measured(has_gradient=has_gradient, frozen=frozen, **still), "moving": measured()}
        finding = diagnose([use(), moving], found, PARAMETRIZATIONS["mup"], 0.25)[0]
        assert (finding.verdict, finding.cause) == expected


def test_where_nothing_moves_nothing_is_to_blame():
    finding = judged(found=measured(moved=False))
    assert (finding.verdict, finding.cause) == (Verdict.UNDECIDED, None)
    assert "learning rate" in finding.explanation


def test_what_weights_do_counts_where_their_size_misleads():
    # a rank-one initialisation: its gain is that of n aligned terms, whatever the RMS of its entries says
    found = judged(found=measured(0.5, gain_weight=exact(0.0)))
    assert (found.cause, found.init) == (Cause.INIT, -0.5)


@pytest.mark.parametrize(
    ("seen", "half", "structure", "verdict"),
    [
        (0.32, 0.2, 0.52, Verdict.UNDECIDED),  # it would blame what was measured to be as likely right
        (-0.18, 0.2, 0.02, Verdict.UNDECIDED),  # and clear what was measured to be as likely off
        (0.1, 0.3, 0.0, Verdict.OK),
        (0.45, 0.3, 0.5, Verdict.LEARNS_TOO_FAST),
        (0.02, 0.02, 0.29, Verdict.OK),
    ],
)
def test_the_update_of_a_made_weight_narrows_its_response_where_that_agrees(seen, half, structure, verdict):
    response = Exponent(seen, half / 3.2, seen - half, seen + half)
    found = measured(response=seen)._replace(response=response, response_weight=exact(structure, 0.1))
    assert judged(found=found, through=Through.MADE).verdict is verdict


@pytest.mark.parametrize(
    ("value", "last", "mends"), [(0.68, 0.84, -1), (0.68, 0.6, -0.5), (-0.82, -0.6, 0.5), (0.6, 1, -0.5)]
)
def test_halfway_between_two_powers_the_widest_models_tell_which(value, last, mends):
    seen = Exponent(value, 0.05, value - 0.1, value + 0.1, last)
    assert judged(found=measured()._replace(response=seen, response_weight=seen)).learning_rate == mends


@pytest.mark.parametrize(("degree", "lead", "blamed"), [(0.0, 0.5, 0), (1.0, 1.0, 0), (0.0, 1.5, 1), (0.0, -0.5, 1)])
def test_directions_wait_for_the_lengths_beside_them(degree, lead, blamed):
    lengths = use("g", Role.VECTOR, through=Through.MADE, layer="weight norm", operation="mul")
    directions = use("v", through=Through.NORMED, layer="weight norm")
    target = PARAMETRIZATIONS["mup"].response(Role.HIDDEN, round(degree))
    long = measured(0.5, PARAMETRIZATIONS["mup"].response(Role.VECTOR, round(degree)), degree=degree)
    fast = measured(response=target + lead, degree=degree)._replace(gain=UNKNOWN, gain_weight=UNKNOWN)
    both = {"g": long, "v": fast}
    found = diagnose([lengths, directions], both, PARAMETRIZATIONS["mup"], 0.25)
    assert (found[0].cause, found[0].init) == (Cause.INIT, -0.5)
    assert [finding.use.name for finding in found[1:] if finding.culprit] == ["v"] * blamed


def test_growth_without_another_cause_is_a_gradient_fan_in_under_sgd_only():
    grown = measured(0.0, 1.0, degree=1.0, growth=0.5)
    assert (judged(found=grown).cause, judged(found=grown).learning_rate) == (Cause.GRADIENT_FAN_IN, -0.5)
    assert judged(found=measured(0.0, 0.0, degree=0.0, growth=0.5)).cause is None
    # not where the readout's initialisation explains it: all gradients grow with it
    readout = use("readout", role=Role.READOUT)
    both = {"w": grown, "readout": measured(0.0, 0.0, degree=1.0)}
    findings = diagnose([use(), readout], both, PARAMETRIZATIONS["mup"], 0.25)
    assert [f.cause for f in findings] == [None, Cause.INIT]


@pytest.mark.parametrize("role", [Role.INPUT, Role.HIDDEN, Role.VECTOR])
@pytest.mark.parametrize(
    ("structure", "seen", "half", "cause", "rate", "verdict"),
    [
        (1.0, 1.9, 0.2, Cause.GRADIENT_FAN_IN, -1, Verdict.LEARNS_TOO_FAST),
        (0.0, 0.9, 0.2, None, 0, Verdict.OK),  # the same with that remedy
        (0.0, 0.9, 0.35, None, 0, Verdict.OK),  # of the multiples of 1/2, the interval holds the target alone
        (0.0, 0.67, 0.2, None, 0, Verdict.UNDECIDED),
        (0.0, 0.45, 0.1, Cause.LEARNING_RATE, 1, Verdict.LEARNS_TOO_SLOWLY),
        (0.0, 0.1, 0.1, Cause.LEARNING_RATE, 1, Verdict.LEARNS_TOO_SLOWLY),
    ],
)
def test_a_gradient_that_sums_is_right_once_its_remedy_is_applied(role, structure, seen, half, cause, rate, verdict):
    found = measured(0.0, structure, degree=1.0)._replace(response=exact(seen, half))
    finding = judged(role, found, operation="layer_norm" if role is Role.VECTOR else "linear")
    assert (finding.cause, finding.learning_rate, finding.verdict) == (cause, rate, verdict)
    if verdict is Verdict.OK:
        assert "its gradient sums over terms whose number grows" in finding.explanation


def test_a_measured_response_excuses_no_learning_rate_of_adam():
    found = measured(0.0, -1.0)._replace(response=exact(0.0))
    assert judged(found=found).cause is Cause.LEARNING_RATE


def behind(cause, found):
    """A matrix of a right response, whose gradient grows or sums, and a readout with a fault behind it."""
    readout = {Cause.LEARNING_RATE: measured(-0.5, 1.0, degree=1.0), Cause.INIT: measured(0.0, 0.0, degree=1.0)}
    right = measured(-0.5, 0.0, degree=1.0)
    both = {"w": found, "readout": readout.get(cause, right)}
    findings = diagnose([use(), use("readout", role=Role.READOUT)], both, PARAMETRIZATIONS["mup"], 0.25)
    assert findings[1].cause is cause
    return findings[0]


@pytest.mark.parametrize("of_own", [{"growth": 0.75}, {"response": exact(1.75)}], ids=["growth", "response"])
def test_a_gradient_that_grows_waits_for_the_faults_behind_it(of_own):
    """The rate of a readout that starts at zero is its initial scale once it has moved: the gradient comes from it."""
    found = {
        step: measured(0.0, 1.0, degree=1.0, step=step)._replace(
            **{name: value if isinstance(value, Exponent) else exact(value) for name, value in of_own.items()}
        )
        for step in (1, 2)
    }
    assert behind(None, found[2]).cause is Cause.GRADIENT_FAN_IN
    later = behind(Cause.LEARNING_RATE, found[2])
    assert (later.verdict, later.cause, later.learning_rate) == (Verdict.OK, None, 0.0)
    assert "readout behind it" in later.explanation
    assert behind(Cause.LEARNING_RATE, found[1]).cause is Cause.GRADIENT_FAN_IN  # the readout had not moved
    assert behind(Cause.INIT, found[1]).cause is None


def test_a_fault_in_front_explains_no_gradient():
    grown = measured(0.0, 1.0, degree=1.0, growth=0.75, step=2)
    found = {"first": measured(0.0, 0.0, degree=1.0, step=2), "w": grown}
    findings = diagnose([use("first"), use()], found, PARAMETRIZATIONS["mup"], 0.25)
    assert [f.cause for f in findings] == [Cause.LEARNING_RATE, Cause.GRADIENT_FAN_IN]


def test_the_second_use_of_a_matrix_is_judged_by_what_the_first_leaves():
    embedding = use("e", role=Role.INPUT, parameter="e")
    readout = use("e@linear", role=Role.READOUT, parameter="e", tied=True, multiplier=-1.0)
    # the shared init grows as n^1/2: the input use explains the readout's gain
    found = {"e": measured(0.5, 0.0), "e@linear": measured(0.0, 0.0)}
    findings = diagnose([embedding, readout], found, PARAMETRIZATIONS["mup"], 0.25)
    assert [(f.cause, f.exponent) for f in findings if f.culprit] == [(Cause.INIT, -0.5)]
    # no multiplier at the readout: its init and rate belong to the embedding, so the multiplier is to blame
    found = {"e": measured(0.0, 0.0), "e@linear": measured(0.5, 1.0)}
    findings = diagnose([embedding, readout], found, PARAMETRIZATIONS["mup"], 0.25)
    assert [(f.cause, f.exponent) for f in findings if f.culprit] == [(Cause.MULTIPLIER, -1)]


def test_a_use_that_is_not_visible_is_no_first_one():
    places = use("e", role=Role.VECTOR, parameter="e", hidden="it acts in cdist", operation="cdist")
    embedding = use("e@embedding", role=Role.INPUT, parameter="e", tied=True)
    for gain, cause in ((-0.5, (Cause.INIT, 0.5)), (0.0, (None, 0.0))):
        found = {"e": measured(math.nan, math.nan), "e@embedding": measured(gain, 0.0)}
        findings = diagnose([places, embedding], found, PARAMETRIZATIONS["mup"], 0.25)
        assert findings[0].verdict is Verdict.NOT_VISIBLE
        assert (findings[1].cause, findings[1].init) == cause


def test_uses_that_ask_for_opposite_learning_rates_are_undecided():
    first = use("e", role=Role.INPUT, parameter="e")
    other = use("e@linear", role=Role.INPUT, parameter="e", tied=True)
    found = {"e": measured(0.0, 0.5), "e@linear": measured(0.0, 0.0)}
    findings = diagnose([first, other], found, PARAMETRIZATIONS["mup"], 0.25)
    assert [f.verdict for f in findings] == [Verdict.UNDECIDED] * 2
    # both see the one that is off
    found = {"e": measured(0.0, 0.5), "e@linear": measured(0.0, 0.5)}
    findings = diagnose([first, other], found, PARAMETRIZATIONS["mup"], 0.25)
    assert [(f.use.name, f.learning_rate) for f in findings if f.culprit] == [("e", -0.5)]
    assert [f.verdict for f in findings if not f.culprit] == [Verdict.OK]
    # what the first one has is right there
    found = {"e": measured(0.0, 0.0), "e@linear": measured(0.0, -0.5)}
    findings = diagnose([first, other], found, PARAMETRIZATIONS["mup"], 0.25)
    assert [f.verdict for f in findings] == [Verdict.OK, Verdict.UNDECIDED]
    assert findings[1].explanation.endswith("it has one learning rate, and e is right")


def test_what_was_measured_of_the_rows_that_an_embedding_looks_up_is_judged():
    table = use("e", role=Role.INPUT, parameter="e", operation="embedding")
    found = {"e": measured(0.0, 0.0)._replace(response_weight=measured(0.0, -0.5).response_weight)}
    (finding,) = diagnose([table], found, PARAMETRIZATIONS["mup"], 0.25)
    assert (finding.verdict, finding.response.value) == (Verdict.OK, 0.0)


def test_blocks_that_differ_replace_the_whole():
    whole, blocks = use("qkv", parameter="qkv"), [use(f"qkv[{i}]", parameter="qkv") for i in range(3)]
    found = {"qkv": measured(), "qkv[0]": measured(), "qkv[1]": measured(0.5), "qkv[2]": measured()}
    findings = diagnose([whole, *blocks], found, PARAMETRIZATIONS["mup"], 0.25)
    assert [f.use.name for f in findings] == ["qkv[0]", "qkv[1]", "qkv[2]"]
    assert [f.use.name for f in findings if f.culprit] == ["qkv[1]"]
    same = dict.fromkeys(found, measured(0.5))
    assert [f.use.name for f in diagnose([whole, *blocks], same, PARAMETRIZATIONS["mup"], 0.25)] == ["qkv"]


@pytest.mark.parametrize(
    ("head", "scale", "expect", "exponent"),
    [
        (1.0, -1.0, "mup", None),
        (1.0, -0.5, "mup", -0.5),
        (1.0, -0.5, "sp", None),
        (1.0, -1.0, "sp", 0.5),
        (0.0, 0.0, "mup", None),
        (0.0, 0.0, "sp", None),
        (0.5, -0.5, "mup", None),
        (1.0, -2.0, "mup", 1.0),
        (0.5, -0.25, "mup", -0.25),  # heads and their size grow as the root of the width, and the scale is 1/sqrt(D)
        (0.5, 0.0, "mup", -0.5),
    ],
)
def test_attention_is_judged_by_its_scale_and_head_size(head, scale, expect, exponent):
    logits = measured(scale + head / 2, half=0.0)
    finding = judged(Role.ATTENTION, logits, expect=expect, fan_in=head, parameter="")
    assert finding.cause is (None if exponent is None else Cause.ATTENTION_SCALE)
    assert finding.multiplier == (exponent or 0)


def test_a_module_without_parameters_must_not_scale():
    def found(gain, output):
        return judged(Role.FUNCTION, measured(gain, output=exact(output)), parameter="").cause

    assert found(-0.5, -0.5) is Cause.FORWARD_SCALE
    assert found(0.5, 0.0) is None  # it restores what came too small: a normalisation
    assert found(0.0, 0.5) is None  # it hands on what came too large


SIGNATURES = [(name, degree) for name in PARAMETRIZATIONS for degree in (0.0, 1.0)]


@pytest.mark.parametrize(("name", "degree"), SIGNATURES)
def test_every_parametrization_is_called_by_its_name(name, degree):
    targets = PARAMETRIZATIONS[name]
    roles = {"a": Role.INPUT, "b": Role.HIDDEN, "c": Role.READOUT}
    uses = [use(key, role=role) for key, role in roles.items()]
    found = {
        key: measured(targets.gain[role], targets.response(role, degree), degree=degree) for key, role in roles.items()
    }
    findings = diagnose(uses, found, targets, 0.25)
    assert parametrization(findings) == targets.name
    assert not any(finding.culprit for finding in findings)
    far = {key: value._replace(gain_weight=exact(1.0), gain=exact(1.0)) for key, value in found.items()}
    assert parametrization(diagnose(uses, far, targets, 0.25)) is None


def test_remedies_are_exact_factors():
    assert remedy(judged(found=measured(0.0, 1.0)), provisional=False) == (
        "w: multiply its learning rate by m^-1, m = width / base width"
    )
    assert remedy(judged(found=measured(0.5, 1.0)), provisional=True) == (
        "w: multiply its initial standard deviation by m^-0.5 and multiply its learning rate by m^-1 "
        "(provisional: check again once the initialisation is right), m = width / base width"
    )
    assert remedy(judged(), provisional=False) == ""


SEEDS = 20


@pytest.fixture(scope="module")
def healthy():
    """Records of a correct model: 20 seeds at three widths, trained and diagnosed."""
    torch.set_num_threads(1)
    report = coordcheck.diagnose(
        {"µP": mlp("µP", lr=3e-3)}, pair_batch(), loss=F.cross_entropy, widths=(64, 128, 256), seeds=SEEDS
    )
    return report.records


@pytest.mark.parametrize("seeds", [1, 2])
def test_healthy_models_are_not_blamed(healthy, seeds):
    chosen = random.Random(0)
    codes: dict[tuple[int, ...], int] = {}
    drawn = [tuple(sorted(chosen.sample(range(SEEDS), seeds))) for _ in range(200)]
    for picked in set(drawn):
        codes[picked] = Report([record for record in healthy if record.key.seed in picked]).exit_code
    found = [codes[picked] for picked in drawn]
    assert found.count(1) <= 2
    assert found.count(3) <= 10


def test_the_same_resampling_finds_sp_every_time():
    records = coordcheck.diagnose(
        {"SP": mlp("SP")}, pair_batch(), loss=F.cross_entropy, widths=(64, 128, 256), seeds=6
    ).records
    for seed in range(6):
        found = Report([record for record in records if record.key.seed == seed])
        assert list(found.culprits["layer"]) == ["hidden.0.weight", "hidden.1.weight", "readout.weight"]


def test_a_narrow_output_that_the_loss_sees_directly_is_judged_by_its_own_growth():
    # a head with a loss of its own that also feeds back: its gradient is of order one, as a readout's
    direct = judged(Role.NARROW, measured(0.0, 0.0, degree=1.0, growth=0.0))
    assert (direct.verdict, direct.cause) == (Verdict.OK, None)
    assert "does not show it" in direct.explanation
    slow = judged(Role.NARROW, measured(0.0, 0.0, degree=1.0, growth=-1.0))
    assert (slow.cause, slow.learning_rate) == (Cause.LEARNING_RATE, 1)


def test_a_product_that_is_not_judged_is_told():
    finding = judged(Role.ATTENTION, parameter="", hidden="no softmax follows")
    assert (finding.verdict, finding.cause, finding.explanation) == (Verdict.NOT_VISIBLE, None, "no softmax follows")


def test_without_the_degree_of_any_update_nothing_is_decided():
    finding = judged(found=measured(response=1.0, growth=1.0), degree=None)
    assert (finding.verdict, finding.cause) == (Verdict.UNDECIDED, None)
    assert finding.explanation == "the degree of the optimizer's update in the gradient was not measured"
    known = use(name="other", role=Role.HIDDEN, degree=0.0)
    both = diagnose(
        [use(role=Role.HIDDEN, degree=None), known],
        {"w": measured(response=1.0, growth=1.0), "other": measured()},
        PARAMETRIZATIONS["mup"],
        0.25,
    )
    assert [found.cause for found in both] == [Cause.LEARNING_RATE, None]  # taken for that of the others
