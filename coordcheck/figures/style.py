"""What all figures share: the style, the names of quantities, and saving.

Nothing global is touched and no backend is chosen. Sizes are for print: the text width of a paper, read at 1:1.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from coordcheck.errors import CoordCheckError
from coordcheck.records import Quantity
from coordcheck.runfiles import replace_file

STYLE: dict[Any, Any] = {
    "font.size": 7.5,
    "axes.titlesize": 7.5,
    "axes.labelsize": 7.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "lines.solid_capstyle": "round",
    "figure.dpi": 100,
    "savefig.dpi": 300,
    "savefig.bbox": None,
    "text.parse_math": False,  # a layer's name may hold a dollar sign
    "svg.hashsalt": "coordcheck",  # the same data give the same file
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
}
NAME_LENGTH = 60  # characters of a name; some 4 inches
QUANTITY_NAMES = {
    Quantity.ACTIVATION: "RMS activation",
    Quantity.MEAN_ABS: "mean |activation|",
    Quantity.CHANGE: "RMS change from t = 0",
}


def rows_of(table: pd.DataFrame, quantity: Quantity) -> pd.DataFrame:
    """The rows of one quantity.

    Raises:
        CoordCheckError: there are none, so that there is nothing to draw.
    """
    rows = table[table["quantity"] == quantity.value]
    if rows.empty:
        raise CoordCheckError(f"{quantity.value} was not measured, so it cannot be drawn (change needs steps >= 1).")
    return rows


@contextmanager
def own_style() -> Iterator[None]:
    """The house style inside the block, the user's own before and after it."""
    with mpl.rc_context():
        mpl.rcdefaults()  # the user's own style must not mix with this one
        mpl.rcParams.update(STYLE)
        yield


def save_figure(figure: Figure, path: str | PathLike[str]) -> None:
    """Write the figure as its suffix says; the same data give the same bytes, and a failed write keeps the old file.

    Raises:
        CoordCheckError: a suffix other than .png, .svg and .pdf, or a path that cannot be written.
    """
    target = Path(path)
    suffix = check_suffix(target)
    buffer = io.BytesIO()
    with own_style():
        figure.savefig(buffer, format=suffix[1:], metadata=NO_DATE[suffix])
    replace_file(target, buffer.getvalue())


def check_suffix(path: Path) -> str:
    """How a figure of this name is written: its suffix, .png when it has none.

    Raises:
        CoordCheckError: a suffix other than .png, .svg and .pdf.
    """
    suffix = path.suffix.lower() or ".png"
    if suffix not in NO_DATE:
        raise CoordCheckError(f"cannot save a figure as {path.name!r}; known suffixes are {', '.join(NO_DATE)}.")
    return suffix


NO_DATE: dict[str, Any] = {".png": {}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
"""What a file of each suffix says of itself: not when it was made."""
