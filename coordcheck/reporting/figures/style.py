"""What all figures share: the style, how numbers and names are written, how large a text is, and saving.

Nothing global is touched and no backend is chosen. Sizes are for print: the text width of a paper, read at 1:1. What
the user has set in matplotlib's rcParams (fonts, sizes, a style, a theme of seaborn) goes before the house's own.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from os import PathLike
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties

from coordcheck.common.errors import CoordCheckError
from coordcheck.common.escaping import legible
from coordcheck.runs.files import replace_file
from coordcheck.runs.words import Quantity

SIZES: dict[Any, float] = {
    **{"font.size": 7.5, "axes.titlesize": 7.5, "axes.labelsize": 7.5},
    **{"xtick.labelsize": 7.0, "ytick.labelsize": 7.0},
}
"""Of texts, in points."""
STYLE: dict[Any, Any] = {
    **SIZES,
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
    "svg.fonttype": "none",  # text stays text: small, searchable, and in the reader's font
    "pdf.fonttype": 42,  # whole TrueType fonts, as publishers ask for
    "ps.fonttype": 42,
}
OURS: dict[Any, Any] = {
    "text.parse_math": False,  # a layer's name may hold a dollar sign
    "text.usetex": False,  # and an underscore, which TeX does not take
    "svg.hashsalt": "coordcheck",  # the same data give the same file
    "figure.autolayout": False,  # places are computed here
    "figure.constrained_layout.use": False,
}
"""What no style of a user changes."""
QUANTITY_NAMES = {
    Quantity.ACTIVATION: "RMS activation",
    Quantity.MEAN_ABS: "mean |activation|",
    Quantity.CHANGE: "RMS change from t = 0",
}
NAME_LENGTH = 60  # characters of a name; some 4 inches
SMALL, TINY, LARGE = 6.5, 5.5, 9.0  # points where text is `SIZES`
DPI = 300  # at which texts are measured
HALVES = {0.0: "0", 0.5: "½", 1.0: "1", 1.5: "1½", 2.0: "2"}


@contextmanager
def own_style() -> Iterator[None]:
    """The house style inside the block, under whatever the user has changed; the user's own before and after it."""
    users = _changed()
    ratio = users.get("font.size", SIZES["font.size"]) / SIZES["font.size"]
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update({**STYLE, **{name: size * ratio for name, size in SIZES.items()}, **users, **OURS})
        yield


def _changed() -> dict[Any, Any]:
    """The settings that are not matplotlib's defaults; reading that of the backend would choose one."""
    now: Any = mpl.rcParams
    default: Any = mpl.rcParamsDefault
    return {name: now[name] for name in now if not name.startswith("backend") and now[name] != default[name]}


def scale() -> float:
    """How much larger than the house's the texts are, and with them everything that makes room for them."""
    return max(points(name) / size for name, size in SIZES.items())


def size(usual: float) -> float:
    """What a font size of the house's style is in the style that is in force, in points.

    >>> with own_style():
    ...     size(SMALL)
    6.5
    """
    return usual * float(mpl.rcParams["font.size"]) / SIZES["font.size"]


def points(name: Any) -> float:
    """The font size of a setting, which may be a word such as "medium", in points."""
    return float(FontProperties(size=mpl.rcParams[name]).get_size_in_points())


def ink(strength: float = 1.0) -> tuple[float, float, float]:
    """The colour of texts, mixed with that of the paper: as dark as `strength`, from 0 to 1."""
    text, paper = (np.array(to_rgb(_colour(name))) for name in ("text.color", "axes.facecolor"))
    red, green, blue = paper + strength * (text - paper)
    return float(red), float(green), float(blue)


def _colour(name: Any) -> Any:
    found = mpl.rcParams[name]
    return "white" if found == "none" else found


def shades(count: int) -> list[tuple[float, ...]]:
    """So many colours, first to last, that are readable on the paper, and in grey."""
    dark = sum(to_rgb(_colour("axes.facecolor"))) < 1.5
    first, last = (0.3, 1.0) if dark else (0.0, 0.82)  # of the map
    return [tuple(map(float, colour)) for colour in mpl.colormaps["viridis"](np.linspace(first, last, max(count, 2)))][
        :count
    ]


def minus(text: str) -> str:
    """The text with true minus signs, unless the user's font has none.

    >>> minus("-0.5 to +1")
    '−0.5 to +1'
    """
    return text.replace("-", "\N{MINUS SIGN}") if mpl.rcParams["axes.unicode_minus"] else text


def power(exponent: float) -> str:
    """An exponent as it is read: −½, 1, −0.33.

    >>> power(-0.5), power(1.0), power(0.3333)
    ('−½', '1', '0.33')
    """
    if not math.isfinite(exponent):
        return "zero"
    text = HALVES.get(abs(exponent), f"{abs(exponent):.2g}")
    return minus(f"-{text}") if exponent < 0 else text


@lru_cache(maxsize=1)
def _renderer() -> RendererAgg:
    return RendererAgg(1, 1, DPI)  # type: ignore[no-untyped-call]  # matplotlib's own has no annotations


def text_width(text: str, size: float, weight: str | None = None) -> float:
    """The width of the longest line of a text, in inches."""
    font = FontProperties(size=size, weight=weight)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # glyphs that the font lacks: told when they are drawn
        width: Any = _renderer().get_text_width_height_descent
        lines = [width(line, font, False)[0] for line in text.split("\n")]
    return float(max(lines)) / DPI


def wrapped(text: str, size: float, inches: float, first: float | None = None) -> list[str]:
    """The text in lines that are no wider, broken at blanks; a word that is wider is cut.

    Args:
        text: one paragraph.
        size: its, in points.
        inches: the width.
        first: the width of the first line, where it is another one.
    """
    lines, room = [""], inches if first is None else first
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}".lstrip()
        if text_width(longer, size) <= room:
            lines[-1] = longer
            continue
        if lines[-1] or (first is not None and len(lines) == 1):
            lines.append("")
            room = inches
        lines[-1] = shortened(word, size, inches)
    return lines


def shortened(text: str, size: float, inches: float) -> str:
    """The text, or as much of its end as fits: the end tells a layer from others."""
    if text_width(text, size) <= inches:
        return text
    low, high = 0, len(text)  # of characters kept: the first fits, the second does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if text_width(f"…{text[-middle:]}", size) <= inches else (low, middle)
    return f"…{text[len(text) - low :]}"


def short(layer: str, limit: int = 26) -> str:
    """A layer's name fit for a margin: its end, from the number that tells it from its repeats.

    >>> short("transformer.blocks.3.attention.query_projection")
    '…3.…ntion.query_projection'
    """
    layer = legible(layer)
    if len(layer) <= limit:
        return layer
    parts = layer.split(".")
    numbered = [index for index, part in enumerate(parts) if part.isdecimal()]
    tail = ".".join(parts[numbered[-1] :]) if numbered else layer
    if len(tail) < limit:
        return f"…{tail}"
    head = f"…{parts[numbered[-1]]}." if numbered else ""
    return f"{head}…{tail[len(head) - limit + 1 :]}"


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
