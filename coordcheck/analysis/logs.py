"""The diagnosis' rows as arrays of logarithms, and the exponents that are fitted to them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from coordcheck.analysis.roles import UseAcrossWidths
from coordcheck.analysis.slopes import fit_logs
from coordcheck.runs.words import Quantity, Status

Array = NDArray[np.float64]


class Exponent(NamedTuple):
    """A fitted exponent with its 95 % interval; NaN where it could not be measured."""

    value: float
    stderr: float
    low: float
    high: float
    last_pair: float = math.nan
    """The slope between the two widest widths."""

    @property
    def known(self) -> bool:
        return not math.isnan(self.value)

    def shifted(self, by: float) -> Exponent:
        return Exponent(self.value + by, self.stderr, self.low + by, self.high + by, self.last_pair + by)


UNKNOWN = Exponent(math.nan, math.nan, math.nan, math.nan)


class Logs:
    """log2 of the diagnosis' rows of one label: (use, seed, width) per quantity and step."""

    def __init__(self, table: pd.DataFrame, uses: Sequence[UseAcrossWidths]) -> None:
        rows = table[table["layer"].isin([use.name for use in uses])]
        # where nothing was measured of any part: every scale at its widths is NaN
        self.widths = np.array(sorted({*rows["width"].unique()} or {width for use in uses for width in use.sizes}))
        self.seeds = sorted(rows["seed"].unique()) or [0]
        self.steps = sorted(rows["step"].unique())
        self._index = {use.name: number for number, use in enumerate(uses)}
        place = (
            rows["layer"].map(self._index).to_numpy(),
            rows["seed"].map({seed: i for i, seed in enumerate(self.seeds)}).to_numpy(),
            np.searchsorted(self.widths, rows["width"].to_numpy()),
        )
        values = rows["value"].to_numpy(dtype=float)
        self._shape = len(uses), len(self.seeds), len(self.widths)
        self._values: dict[tuple[str, int], Array] = {}
        for (quantity, step), chosen in rows.groupby(["quantity", "step"], sort=False).indices.items():
            array = np.full(self._shape, np.nan)
            array[tuple(axis[chosen] for axis in place)] = values[chosen]
            self._values[str(quantity), int(step)] = array
        bad = rows[rows["status"].isin([Status.NAN.value, Status.INF.value])]
        self.not_finite = {str(layer) for layer in bad["layer"].unique()}

    def values(self, quantity: Quantity, step: int = 0) -> Array:
        """(use, seed, width) scales, NaN where there is none."""
        return self._values.get((quantity.value, step), np.full(self._shape, np.nan))

    def at(self, quantity: Quantity, steps: NDArray[np.int_]) -> Array:
        """log2 of the scales, each use at its own step; NaN for zeros."""
        result = np.full(self._shape, np.nan)
        for step in np.unique(steps):
            chosen = steps == step
            result[chosen] = self.values(quantity, int(step))[chosen]
        with np.errstate(divide="ignore"):
            logs = np.log2(result)
        return np.where(np.isfinite(logs), logs, np.nan)

    def first_or_last(self, quantity: Quantity, last: NDArray[np.bool_]) -> Array:
        """log2 of the scales at the first step that has some, or at the last one of these uses."""
        known = [step for step in self.steps if (quantity.value, step) in self._values] or [0]
        return self.at(quantity, np.where(last, known[-1], known[0]))

    def of(self, sizes: Sequence[Mapping[int, float]]) -> Array:
        """log2 of something known per use and width: (use, 1, width)."""
        rows = [[abs(by_width.get(int(width), math.nan)) for width in self.widths] for by_width in sizes]
        with np.errstate(divide="ignore"):
            logs = np.log2(np.array(rows, dtype=float))[:, None, :]
        return np.where(np.isfinite(logs), logs, np.nan)

    def fit(self, logs: Array) -> list[Exponent]:
        """One exponent per use."""
        found = fit_logs(np.log2(self.widths.astype(float)), np.broadcast_to(logs, self._shape))
        columns = [found[name] for name in ("slope", "stderr", "low", "high", "last_pair")]
        return [Exponent(*map(float, row)) for row in zip(*columns, strict=True)]
