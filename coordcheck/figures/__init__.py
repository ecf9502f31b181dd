"""Figures of a report, as `matplotlib.figure.Figure`."""

from coordcheck.figures.kinds import KINDS, draw
from coordcheck.figures.style import save_figure
from coordcheck.figures.views import View, view_of

__all__ = ["KINDS", "View", "draw", "save_figure", "view_of"]
