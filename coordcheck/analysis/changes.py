"""Rules -> what is done to a model and its optimizer: to initial values, learning rates, and what modules take or give.

A multiplier m^c of a parameter is no more than another scale of its initial values and its learning rate, m^c and
m^((1 + k) c) under an optimizer of degree k; nothing is added to the model (abc-parametrizations have that symmetry:
Yang & Hu 2021, arXiv:2011.14522). The other way round, rows of one tensor, whose learning rate is that of the tensor,
learn m^e times as fast where the module's output is multiplied by m^(e / (1 + k)), and their initial values by its
inverse. A multiplier of one use of a shared matrix, or of an attention, is put on a module's input or output.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from coordcheck.analysis.prescriptions import rate_of
from coordcheck.runs.rules import Linear, Rule
from coordcheck.runs.words import Side


class Rows(NamedTuple):
    """Rows of a parameter, by the parameter's name."""

    parameter: str
    channels: tuple[Linear, ...]


class Times(NamedTuple):
    """Where a module is multiplied: all that it takes, or gives, or some channels of that."""

    module: str
    side: Side
    channels: tuple[Linear, ...] = ()
    without: str = ""
    """The parameter beside which a bias is left as it is; empty where that is multiplied, too."""


class Changes(NamedTuple):
    """Powers of m = width / base width by what they belong to."""

    init: dict[str, float]
    rows: dict[Rows, float]
    learning_rate: dict[str, float]
    eps: dict[str, float]
    times: dict[Times, float]


def changes(rules: Iterable[Rule]) -> Changes:
    """What all rules ask for together."""
    found = Changes({}, {}, {}, {}, {})
    for rule in rules:
        if rule.channels and rule.parameter:
            _of_block(rule, found)
            continue
        outside = bool(rule.module)
        if outside and rule.multiplier:
            _add(found.times, Times(rule.module, rule.side, rule.channels), rule.multiplier)
        _add(found.init, rule.parameter, rule.init + (0.0 if outside else rule.multiplier))
        _add(found.learning_rate, rule.parameter, rule.learning_rate if outside else rate_of(rule))
        _add(found.eps, rule.parameter, rule.eps)
    parts: tuple[dict[Any, float], ...] = found
    return Changes(*({key: power for key, power in part.items() if power} for part in parts))


def _of_block(rule: Rule, found: Changes) -> None:
    outer = rate_of(rule) / (1 + rule.degree)
    _add(found.rows, Rows(rule.parameter, rule.channels), rule.init + rule.multiplier - outer)
    _add(found.times, Times(rule.module, rule.side, rule.channels, rule.parameter), outer)


def _add(powers: dict[Any, float], key: Any, power: float) -> None:
    powers[key] = powers.get(key, 0.0) + power
