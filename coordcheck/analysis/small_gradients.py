"""Where an optimizer's eps is to blame: gradients fall with the width, eps does not, and the wider models stop moving.

Adam's update is lr g / (k |g| + j eps), with k = j = 1 at first (Kingma & Ba 2015, arXiv:1412.6980): of size lr / k
while |g| is far above eps. In µP the gradients of most matrices fall as 1/n, and so must an eps that is not far below
them at any width (Yang et al. 2022, arXiv:2203.03466, appendix B.3). The diagnosis works without eps, as its few
examples have other gradients than training. What tells is the first update of training beside its gradient, as both
were measured on the whole batch: eps is the cause where the update falls, and eps alone makes it fall so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from coordcheck.analysis.deviations import nearest_half
from coordcheck.analysis.findings import Cause, Finding
from coordcheck.analysis.slopes import MIN_WIDTHS, exponent_of
from coordcheck.analysis.verdicts import Verdict
from coordcheck.runs.records import RunRecord

SOON = 8  # times the largest width up to which it is told where eps would take over
FALLS = 0.25  # from which power of the width on |g| / eps falls
SLOWED = 0.1  # difference of two exponents up to which they are one
FACTORS = 0.3, 30  # between which j lies: an Adam without a history has 1, with one of zeros more, clipping adds to it
CAUSES_BEFORE = frozenset({Cause.INIT, Cause.MULTIPLIER, Cause.ATTENTION_SCALE, Cause.FORWARD_SCALE})  # of gradients


class Updates(NamedTuple):
    """A parameter's first gradient and update in training, and the eps beside them, by width.

    >>> gradients = {64: 8e-3, 128: 4e-3, 256: 2e-3}
    >>> found = Updates(gradients, {w: g / (g + 1e-3) for w, g in gradients.items()}, dict.fromkeys(gradients, 1e-3))
    >>> round(found.slows, 3) == round(found.slows_by_eps, 3), round(found.apart), round(found.takes_over)
    (True, -1, 512)
    """

    gradients: Mapping[int, float]
    """The median over seeds, as of the others."""
    sizes: Mapping[int, float]
    """The update / learning rate."""
    eps: Mapping[int, float]

    @property
    def slows(self) -> float:
        """The exponent of update / learning rate, as measured."""
        return exponent_of(self.sizes)

    @property
    def slows_by_eps(self) -> float:
        """The same as eps alone would make it: 0 where the optimizer's eps does not stand beside the gradient."""
        k, j = self._fit
        if not FACTORS[0] < j < FACTORS[1]:
            return 0.0
        return exponent_of({width: 1 / (k + j * ratio) for width, ratio in self._ratios.items()})

    @property
    def apart(self) -> float:
        """The exponent of |g| / eps."""
        return -exponent_of(self._ratios)

    @property
    def noise(self) -> float:
        """The standard error of that exponent, as far as the ratios' distances to a power of the width tell it."""
        x, y = np.log2(list(self._ratios)), np.log2(list(self._ratios.values()))
        left = y - np.polyval(np.polyfit(x, y, 1), x)
        return float(np.sqrt((left**2).sum() / max(len(x) - 2, 1) / ((x - x.mean()) ** 2).sum()))

    @property
    def takes_over(self) -> float:
        """The width at which j eps is k |g|: by the exponent, from the nearest width; 0 where it is so everywhere."""
        k, j = self._fit
        ratios = {width: j * ratio / k for width, ratio in self._ratios.items()} if k else {}
        nearest = min(ratios, key=lambda width: abs(np.log(ratios[width])), default=0)
        return float(nearest * ratios[nearest] ** (1 / self.apart)) if nearest else 0.0

    @property
    def _ratios(self) -> dict[int, float]:
        return {width: self.eps[width] / gradient for width, gradient in self.gradients.items()}

    @property
    def _fit(self) -> tuple[float, float]:
        """The numbers k and j that are nearest to 1 / size = k + j eps / |g|, by least squares of relative errors."""
        sizes = np.array([self.sizes[width] for width in self.gradients])
        terms = np.stack([sizes, sizes * np.array(list(self._ratios.values()))], axis=1)
        k, j = np.linalg.lstsq(terms, np.ones(len(sizes)), rcond=None)[0]
        if k < 0:  # eps is all of it
            k, j = 0.0, terms[:, 1].sum() / (terms[:, 1] ** 2).sum()
        return float(k), float(j)


def updates_of(records: Sequence[RunRecord]) -> dict[str, Updates]:
    """By parameter, where they are known at several widths."""
    found: dict[str, dict[int, list[tuple[float, float, float]]]] = {}
    for record in records:
        for info in record.parameters:
            if info.gradient and info.update and info.eps and info.learning_rate:
                measured = info.gradient, info.update / info.learning_rate, info.eps
                found.setdefault(info.name, {}).setdefault(record.key.width, []).append(measured)
    return {
        name: Updates(*({w: float(np.median([one[i] for one in each])) for w, each in at.items()} for i in range(3)))
        for name, at in found.items()
        if len(at) >= MIN_WIDTHS
    }


def with_eps(findings: Sequence[Finding], records: Sequence[RunRecord], tolerance: float) -> list[Finding]:
    """The findings of one label, those that eps explains with it as their cause.

    Where an initialisation is off, it may be the cause of small gradients, and eps is not judged.
    """
    if any(finding.cause in CAUSES_BEFORE for finding in findings):
        return list(findings)
    updates = updates_of(records)
    return [
        _by_eps(finding, own, tolerance) if (own := _own(finding, updates)) is not None else finding
        for finding in findings
    ]


def _own(finding: Finding, updates: Mapping[str, Updates]) -> Updates | None:
    """What is known of a parameter whose gradients come nearer to eps the wider the model is, beyond chance."""
    use = finding.use
    own = updates.get(use.parameter) if use.trained and not use.tied and finding.exponents.moved else None
    return own if own is not None and own.apart + 2 * own.noise < -FALLS else None


def _by_eps(finding: Finding, own: Updates, tolerance: float) -> Finding:
    if own.slows >= -tolerance or abs(own.slows - own.slows_by_eps) > tolerance or not _alone(finding, own, tolerance):
        return finding
    first, last = min(own.gradients), max(own.gradients)
    why = (
        f"its gradient in training, {own.gradients[first]:.2g} at width {first} and {own.gradients[last]:.2g} at "
        f"{last}, falls as m^{own.apart:.2f} beside eps, {own.eps[last]:.2g}{_where(own)}: its first update is "
        f"m^{own.slows:.2f} times its learning rate"
    )
    return finding._replace(
        verdict=Verdict.LEARNS_TOO_SLOWLY,
        cause=Cause.EPS,
        learning_rate=0.0,
        eps=nearest_half(own.apart),
        explanation=f"{finding.explanation}; {why}" if finding.explanation else why,
    )


def _where(own: Updates) -> str:
    at = own.takes_over
    return ", which is the larger at every width" if at < min(own.sizes) else f", which is as large at width {at:.0f}"


def _alone(finding: Finding, own: Updates, tolerance: float) -> bool:
    """Whether nothing else is wrong: all is right without eps, or what a diagnosis with it saw is off by as much."""
    if finding.cause is Cause.LEARNING_RATE:
        return abs(finding.response.value - finding.response_target - own.slows) < tolerance
    return finding.cause is None and finding.verdict is not Verdict.NOT_VISIBLE


def soon(findings: Sequence[Finding], records: Sequence[RunRecord]) -> Iterator[str]:
    """Where eps takes over from the gradients, at the widths of the check or a little beyond, and slows no update yet.

    Yields:
        At most one note, on the parameter where it does so first.
    """
    if any(finding.cause in (*CAUSES_BEFORE, Cause.EPS) for finding in findings):
        return
    updates = updates_of(records)
    widest = max((width for own in updates.values() for width in own.gradients), default=0)
    reached = {
        finding.use.parameter: own
        for finding in findings
        if (own := _own(finding, updates)) is not None
        and own.slows_by_eps < 0
        and own.takes_over < SOON * widest
        and abs(own.slows - own.slows_by_eps) < SLOWED
    }
    if reached:
        name, own = min(reached.items(), key=lambda item: item[1].takes_over)
        more = f" and {len(reached) - 1} more" if len(reached) > 1 else ""
        yield (
            f"the first gradient of {name}{more} on the whole batch falls as m^{own.apart:.2f} beside eps, which is as "
            f"large at about width {own.takes_over:.0f}: wider models will move less. Multiply eps by "
            f"m^{nearest_half(own.apart):g}, or make it small (1e-12)"
        )
