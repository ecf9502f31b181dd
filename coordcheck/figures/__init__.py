"""Figures of a report, as `matplotlib.figure.Figure`."""

from coordcheck.figures.divergence import draw_divergence
from coordcheck.figures.exponents import draw_exponents
from coordcheck.figures.slope_map import draw_slope_map
from coordcheck.figures.style import save_figure
from coordcheck.figures.views import View, view_of

__all__ = ["View", "draw_divergence", "draw_exponents", "draw_slope_map", "save_figure", "view_of"]
