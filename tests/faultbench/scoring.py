"""What `coordcheck` answers to a case, and how that compares with the truth."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import pandas as pd
import torch

import coordcheck
from coordcheck.analysis.verdicts import Verdict
from faultbench import foreign  # noqa: F401  its cases are in the registry, here and in other processes
from faultbench.faults import REGISTRY, Fault
from faultbench.sides import Decision, decisions

WIDTHS, SEEDS = (64, 128, 256), 2
CONTROL_SEEDS = tuple([2 * pair, 2 * pair + 1] for pair in range(5))
FLAT = 0.25
"""How far a slope of the classical coordinate check may lie from 0."""
PATHS = ("attention scale", "forward scale")
"""Causes whose culprit is told by the path of its module."""

Answer = dict[str, tuple[str, float]]


class Alarm(NamedTuple):
    """What was said about a control with one pair of seeds."""

    culprits: Answer
    violated: tuple[str, ...]
    undecided: tuple[str, ...]
    decisions: tuple[Decision, ...]

    @property
    def false(self) -> bool:
        return bool(self.culprits or self.violated)


class Score(NamedTuple):
    """One case: what was answered, and by the classical check and our symptoms, which layers were flagged."""

    name: str
    answer: Answer | None
    """None for a control, or when the check itself failed."""
    alarms: tuple[Alarm, ...]
    plain: frozenset[str]
    excused: frozenset[str]
    """The plain check's layers without a readout that shrinks, which its manual tells to expect."""
    symptoms: frozenset[str]
    seconds: float
    error: str = ""
    decisions: tuple[Decision, ...] = ()

    @property
    def case(self) -> Fault:
        return REGISTRY[self.name]

    @property
    def found(self) -> bool:
        """Some true culprit was named."""
        return bool(set(self.answer or ()) & set(self.case.truth))

    @property
    def exact_set(self) -> bool:
        return set(self.answer or ()) == set(self.case.truth)

    @property
    def exact(self) -> bool:
        return self.exact_set and same(self.answer or {}, self.case.truth)


def same(answer: Mapping[str, tuple[str, float]], truth: Mapping[str, tuple[str, float]]) -> bool:
    """Equal culprits, causes and exponents; one that is frozen has no exponent."""
    return set(answer) == set(truth) and all(
        answer[name][0] == cause and (math.isnan(exponent) or answer[name][1] == exponent)
        for name, (cause, exponent) in truth.items()
    )


def culprits(verdicts: pd.DataFrame, truth: Mapping[str, tuple[str, float]]) -> Answer:
    """The culprits of a table of verdicts under the names that the truth uses."""
    found = {}
    for row in verdicts[verdicts["culprit"].astype(bool)].to_dict("records"):
        found[_named(row, truth)] = (str(row["cause"]), float(row["exponent"]))
    return found


def _named(row: Mapping[str, object], truth: Mapping[str, tuple[str, float]]) -> str:
    layer, parameter = str(row["layer"]), row["parameter"]
    if row["cause"] in PATHS:
        inside = [path for path, (cause, _) in truth.items() if cause == row["cause"] and _within(layer, path)]
        return inside[0] if inside else layer
    return layer if "[" in layer or not isinstance(parameter, str) else parameter


def _within(layer: str, path: str) -> bool:
    return layer == path or layer.startswith((f"{path}.", f"{path}/", f"{path}#"))


def diagnosis(case: Fault, seeds: int | Sequence[int] = SEEDS) -> coordcheck.Report:
    return coordcheck.diagnose(case.build, case.batch, loss=case.loss, widths=WIDTHS, seeds=seeds)


def alarm(case: Fault, seeds: Sequence[int]) -> Alarm:
    """What a control sets off."""
    report = diagnosis(case, seeds)
    verdicts = report.verdicts
    rows = verdicts[verdicts["role"].notna()]
    bad = rows["verdict"].map(lambda verdict: Verdict(verdict).violated)
    undecided = rows["verdict"] == Verdict.UNDECIDED.value
    names = tuple(map(str, rows.loc[bad, "layer"])), tuple(map(str, rows.loc[undecided, "layer"]))
    return Alarm(culprits(verdicts, case.truth), *names, tuple(decisions(case, report)))


def whole_check(name: str) -> int:
    """The exit code of `coordcheck.check` with its default widths and seeds."""
    torch.set_num_threads(1)
    case = REGISTRY[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return coordcheck.check(case.build, case.batch, loss=case.loss).exit_code


def owners(case: Fault) -> frozenset[str]:
    """The modules that own the true culprits."""
    return frozenset(
        name if cause in PATHS else name.partition("[")[0].rpartition(".")[0] for name, (cause, _) in case.truth.items()
    )


def flagged(case: Fault) -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
    """The layers that the classical check flags, those without a shrinking readout, and those with a violated symptom.

    To be fair to both, only layers that could be culprits count: modules that own parameters, and attentions.
    """
    report = coordcheck.check(case.build, case.batch, loss=case.loss, widths=WIDTHS, seeds=SEEDS, probe=None)
    with torch.random.fork_rng([]):
        modules = dict(case.build.setup(WIDTHS[0]).model.named_modules())
    able = {name for name, module in modules.items() if name and list(module.parameters(recurse=False))}
    able |= {name for name in modules if name.endswith("attention")} | owners(case)
    slopes, verdicts = report.slopes, report.verdicts
    steep = slopes[(slopes["quantity"] == "activation") & (slopes["step"] >= 1) & (slopes["slope"].abs() > FLAT)]
    bad = verdicts[verdicts["verdict"].map(lambda verdict: Verdict(verdict).violated)]
    unexpected = steep[(steep["layer"] != "readout") | (steep["slope"] > 0)]
    plain, excused, symptoms = (frozenset(table["layer"]) & able for table in (steep, unexpected, bad))
    return plain, excused, symptoms


def score(name: str, *, plain: bool = True) -> Score:
    """Ask about one case; a check that fails is a miss with its error."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    case, answer, alarms = REGISTRY[name], None, []
    layers = frozenset(), frozenset(), frozenset()  # type: tuple[frozenset[str], frozenset[str], frozenset[str]]
    start = time.perf_counter()
    error, decided = "", list[Decision]()
    try:
        if case.healthy:
            alarms = [alarm(case, seeds) for seeds in CONTROL_SEEDS]
            decided = [decision for found in alarms for decision in found.decisions]
        else:
            report = diagnosis(case)
            answer, decided = culprits(report.verdicts, case.truth), decisions(case, report)
        seconds = time.perf_counter() - start
        layers = flagged(case) if plain else layers
    except Exception as failure:  # a bench goes on, whatever one of its cases does
        seconds, error = time.perf_counter() - start, f"{type(failure).__name__}: {failure}"
    return Score(name, answer, tuple(alarms), *layers, seconds / (len(alarms) or 1), error, tuple(decided))


def share(hits: Iterable[bool]) -> str:
    """How many of how many.

    >>> share([True, False])
    '1 / 2 (50.0%)'
    """
    hits = list(hits)
    return f"{sum(hits)} / {len(hits)} ({100 * sum(hits) / max(1, len(hits)):.1f}%)"
