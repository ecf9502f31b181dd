"""Where a bias is most of what its layer gives at t=0: the scale of that output is the bias's own, and so is its fault.

A bias may vanish with the width, as PyTorch's, drawn with fan-in ** -1/2, does: beside what its matrix gives it soon is
nothing. Where a matrix gives little, the output shrinks with its bias until then, and no matrix is to blame.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from coordcheck.analysis.deviations import nearest_half, size_verdict
from coordcheck.analysis.findings import Cause, Finding
from coordcheck.analysis.logs import Array, Exponent
from coordcheck.analysis.slopes import fit_logs
from coordcheck.analysis.verdicts import Answer, Verdict
from coordcheck.runs.words import Quantity, Role

MOST = 0.5  # of the mean square of an output
MORE = 1.5  # times the mean square of an output: no term of it, unless another one cancels it
ITSELF = 1e-3  # relative difference of a vector's size and its part of the output up to which it is added as it is
OF_SIZE = {Verdict.TOO_LARGE.value: Answer.GROWS, Verdict.TOO_SMALL.value: Answer.SHRINKS}


class Outputs(NamedTuple):
    """Of one layer at t=0 and the bias in it: RMS, (seed, width)."""

    widths: Array
    output: Array
    bias: Array

    @classmethod
    def of(cls, table: pd.DataFrame, layer: str, bias: str) -> Outputs | None:
        """What was measured of both; None where the bias is not added as it is."""
        start, found = table[table["step"] == 0], []
        for name, quantity in ((layer, Quantity.ACTIVATION), (bias, Quantity.OUTPUT), (bias, Quantity.WEIGHT)):
            rows = start[(start["layer"] == name) & (start["quantity"] == quantity.value)]
            found.append(rows.set_index(["seed", "width"])["value"])
        both = pd.concat(found, axis=1, join="inner", keys=["output", "bias", "size"]).unstack("seed")
        if both.empty or (both["bias"] / both["size"] - 1).abs().max(axis=None) > ITSELF:
            return None
        widths = both.index.to_numpy(dtype=float)
        return cls(widths, both["output"].to_numpy(dtype=float).T, both["bias"].to_numpy(dtype=float).T)

    @property
    def share(self) -> float:
        """Of the bias in the mean square of the output, in the middle of all runs."""
        return float(np.nanmedian((self.bias / self.output) ** 2))

    def were(self, exponent: float) -> float:
        """The slope that the output would have, had the bias at all widths the scale that it has at the narrowest."""
        of_one_scale = self.bias * (self.widths / self.widths[0]) ** -exponent
        squares = np.maximum(self.output**2 - self.bias**2, 0.0) + of_one_scale**2
        return float(fit_logs(np.log2(self.widths), np.log2(squares)[None] / 2)["slope"][0])


def with_biases(
    findings: Sequence[Finding], sites: pd.DataFrame, table: pd.DataFrame, tolerance: float
) -> list[Finding]:
    """Blame the biases that make the scale of their layer's output, where nothing else is to blame.

    Where a parameter is to blame already, its remedy comes first. A layer that is undecided tells nothing unless
    another one is violated for the same reason.

    Args:
        findings: of one label.
        sites: what was said of its layers.
        table: its measurements.
        tolerance: how far from a target counts as being it.

    Returns:
        The findings, in the same order.
    """
    at_start = sites[(sites["quantity"] == Quantity.ACTIVATION.value) & (sites["step"] == 0)].set_index("layer")
    if any(finding.culprit for finding in findings) or not at_start["verdict"].isin(OF_SIZE).any():
        return list(findings)
    last = {f.use.layer: f.use.name for f in findings if f.use.role in (Role.VECTOR, Role.CONSTANT)}
    judged: dict[str, tuple[Finding, bool]] = {}
    for finding in findings:
        layer = finding.use.layer
        if last.get(layer) == finding.use.name and layer in at_start.index:
            found = _judged(finding, at_start.loc[layer], table, tolerance)
            judged |= {} if found is None else {finding.use.name: (found, at_start.loc[layer, "verdict"] in OF_SIZE)}
    if not any(certain for _, certain in judged.values()):
        return list(findings)
    return [judged[finding.use.name][0] if finding.use.name in judged else finding for finding in findings]


def _judged(finding: Finding, site: pd.Series, table: pd.DataFrame, tolerance: float) -> Finding | None:
    """A bias as the cause of its layer's scale at t=0; None where it is not."""
    gain, beyond = finding.exponents.gain, site["slope"] - site["expected"]
    answer = OF_SIZE.get(site["verdict"], Answer.GROWS if beyond > tolerance else Answer.SHRINKS)
    undecided = site["verdict"] == Verdict.UNDECIDED.value and abs(beyond) > tolerance
    if not _goes(gain, answer, tolerance) or not (site["verdict"] in OF_SIZE or undecided):
        return None
    outputs = Outputs.of(table, finding.use.layer, finding.use.name)
    if outputs is None or not MOST < outputs.share < MORE:
        return None
    left = abs(outputs.were(gain.value) - site["expected"])
    if not left < min(tolerance, abs(beyond) / 2):
        return None
    why = f"gain ~ m^{gain.value:.2f} (should be 0), and it is {min(outputs.share, 1):.0%} of the mean square of what "
    return finding._replace(
        verdict=size_verdict(gain.value),
        cause=Cause.INIT,
        init=-nearest_half(gain.value),
        gain=gain,
        gain_target=0.0,
        explanation=f"{why}{finding.use.layer} gives at t=0",
    )


def _goes(gain: Exponent, answer: Answer, tolerance: float) -> bool:
    """Whether a bias grows or shrinks as its output does: of the multiples of 1/2, that 0 is not its power is enough.

    That the bias makes the scale of the output is told by the sizes of both, run by run.
    """
    if answer is Answer.GROWS:
        return gain.value > tolerance and gain.low > 0
    return gain.value < -tolerance and gain.high < 0
