"""What `coordcheck.check` says of an architecture, healthy and with its fault, against the truth."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import torch

import coordcheck
from coordcheck.analysis.verdicts import Verdict
from sweep.catalogue import ARCHITECTURES
from sweep.planting import Planted, planted

SEEDS = 4
CRASHED = -1
"""The exit code of a check that raised."""
Answer = dict[str, set[tuple[float, float]]]
"""Culprit -> the powers of m by which its initial values and its learning rate are to be multiplied."""


class Told(NamedTuple):
    """One check."""

    status: str
    exit_code: int
    violated: tuple[str, ...]
    """Parameters and layers with a verdict that is violated, the parameters first."""
    answer: Answer
    seconds: float


class Row(NamedTuple):
    """One line of the table."""

    name: str
    fault: Planted
    healthy: Told
    broken: Told

    @property
    def clean(self) -> bool:
        """Nothing of the healthy model is called violated."""
        return self.healthy.exit_code in (0, 3) and not self.healthy.violated

    @property
    def found(self) -> bool:
        return self.fault.parameter in self.broken.answer

    @property
    def exact(self) -> bool:
        """The culprit alone, with its cause and power."""
        init, lr = self.fault.exponents
        return self.broken.answer == {self.fault.parameter: {(-init, -lr)}}

    @property
    def honest(self) -> bool:
        """The broken model does not pass."""
        return self.broken.exit_code not in (0, CRASHED)


def powers(row: Mapping[Any, Any], degree: int) -> tuple[float, float]:
    """What a line of the verdicts prescribes, a multiplier being told as what it amounts to."""
    init, lr, multiplier = (
        float(value) if value == value else 0.0
        for value in (row["init_exponent"], row["lr_exponent"], row["multiplier_exponent"])
    )
    return init + multiplier, lr + (1 + degree) * multiplier


def told(name: str, fault: Planted | None) -> Told:
    """Check one architecture at its widths."""
    torch.set_num_threads(1)
    model, start = ARCHITECTURES[name], time.perf_counter()
    build = partial(model.build, change=fault)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            report = coordcheck.check(build, model.batch, loss=model.loss, widths=model.widths, seeds=SEEDS, steps=2)
    except Exception as error:  # the sweep goes on, whatever one of its models does
        return Told(f"{type(error).__name__}: {error}", CRASHED, (), {}, time.perf_counter() - start)
    table = report.verdicts
    bad = table[table["verdict"].map(lambda verdict: Verdict(verdict).violated)]
    bad = bad.sort_values("parameter", key=lambda names: names.isna(), kind="stable")
    answer: Answer = {}
    for row in table[table["culprit"].astype(bool)].to_dict("records"):
        culprit = row["parameter"] if isinstance(row["parameter"], str) else row["layer"]
        answer.setdefault(culprit, set()).add(powers(row, int(model.optimizer == "sgd")))
    status = ", ".join(dict.fromkeys(verdict.value for verdict in report.status.values()))
    return Told(status, report.exit_code, tuple(bad["layer"]), answer, time.perf_counter() - start)


def judged(name: str, draw: int = 0) -> Row:
    """An architecture without and with its fault."""
    fault = planted(name, draw)
    return Row(name, fault, told(name, None), told(name, fault))
