"""The figures of a check, by the names that users give them."""

from __future__ import annotations

from matplotlib.figure import Figure

from coordcheck.analysis.result import Result
from coordcheck.common.errors import CoordCheckError
from coordcheck.reporting.figures.divergence import draw_divergence
from coordcheck.reporting.figures.exponents import draw_exponents
from coordcheck.reporting.figures.slope_map import draw_slope_map
from coordcheck.reporting.figures.views import View

_DRAWERS = {"divergence": draw_divergence, "slopes": draw_slope_map, "exponents": draw_exponents}
KINDS = tuple(_DRAWERS)
_WHOLE = View()


def draw(result: Result, kind: str, view: View = _WHOLE) -> Figure:
    """Draw one kind of figure.

    Raises:
        CoordCheckError: another kind, or a view of what is not there.
    """
    if kind not in _DRAWERS:
        raise CoordCheckError(f"there is no figure {kind!r}; known are {', '.join(map(repr, KINDS))}.")
    return _DRAWERS[kind](result, view)
