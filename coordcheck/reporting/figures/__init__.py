"""Figures of a report, as `matplotlib.figure.Figure`."""

from coordcheck.reporting.figures.kinds import KINDS, draw
from coordcheck.reporting.figures.style import save_figure
from coordcheck.reporting.figures.views import View, view_of

__all__ = ["KINDS", "View", "draw", "save_figure", "view_of"]
