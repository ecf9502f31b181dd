"""The exponents that a parametrization asks for, and the one whose exponents a model has.

Sources: SP, NTK and mean field under SGD are abc-parametrizations of Yang & Hu 2021 (arXiv:2011.14522), table 1; µP,
its attention logits of scale 1/D and Adam are those of Yang et al. 2022 (arXiv:2203.03466), table 3 and definition
4.1; the others under Adam follow from them as in Yang & Littwin 2023 (arXiv:2308.01814).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from coordcheck.analysis.findings import Finding
from coordcheck.runs.words import Role

NAMED_WITHIN = 0.35  # distance to a parametrization's exponents up to which the model is called by its name


class Targets(NamedTuple):
    """A parametrization's gain and response, by role; response under an optimizer of degree 0 and of degree 1."""

    name: str
    gain: Mapping[Role, float]
    adam: Mapping[Role, float]
    sgd: Mapping[Role, float]
    attention: float
    """Slope of the attention logits beyond those of query and key, per slope of the head size."""

    def response(self, role: Role, degree: float) -> float:
        exponents = self.sgd if degree > 0.5 else self.adam
        return exponents.get({Role.NARROW: Role.HIDDEN, Role.VECTOR: Role.INPUT}.get(role, role), 0.0)


def _by_role(input: float, hidden: float, readout: float) -> dict[Role, float]:
    return {Role.INPUT: input, Role.HIDDEN: hidden, Role.READOUT: readout, Role.NARROW: hidden}


# fmt: off
PARAMETRIZATIONS = {
    #                                 gain                     response: degree 0       degree 1
    "mup": Targets("µP",         _by_role(0, 0, -.5), _by_role(0,  0,  0), _by_role( 1,  1,  0), -0.5),
    "sp": Targets("SP",          _by_role(0, 0,   0), _by_role(0,  1,  1), _by_role( 0,  1,  1),  0.0),
    "ntk": Targets("NTK",        _by_role(0, 0,   0), _by_role(0, .5, .5), _by_role( 0,  0,  0),  0.0),
    "mean-field": Targets("mean-field", _by_role(0, 0, -.5), _by_role(0, .5, 0), _by_role( 0, 0, -1), -0.5),
}
# fmt: on


def parametrization(findings: Sequence[Finding]) -> str | None:
    """The parametrization whose exponents are nearest: "SP", "NTK", "mean-field" or "µP"; None when none is near.

    A common shift of all responses under an optimizer of degree 1 is a global learning rate, and does not count.
    """
    measured = {
        (kind, role): float(np.median(values))
        for kind in ("gain", "response")
        for role in (Role.INPUT, Role.HIDDEN, Role.READOUT)
        if (values := [v for f in findings if f.use.role is role and not math.isnan(v := getattr(f, kind).value)])
    }
    degree = float(np.median([f.exponents.degree for f in findings])) if findings else 0.0
    if len(measured) < 3:
        return None
    distances = {}
    for targets in PARAMETRIZATIONS.values():
        gaps = {
            (kind, role): value - (targets.gain[role] if kind == "gain" else targets.response(role, round(degree)))
            for (kind, role), value in measured.items()
        }
        shift = (
            float(np.median([gap for (kind, _), gap in gaps.items() if kind == "response"])) if degree > 0.5 else 0.0
        )
        far = max(abs(gap - shift * (kind == "response")) for (kind, _), gap in gaps.items())
        distances[targets.name] = far + abs(shift) / 100  # of two that differ by a shift, the one without it
    best = min(distances, key=lambda name: distances[name])
    return best if distances[best] <= NAMED_WITHIN else None
