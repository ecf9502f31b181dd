"""What the lessons share: size, style, data to train on and training, and where figures and tables go.

    python gallery/plot_x.py                    # small size; the assertion; figures into gallery/_build/
    python gallery/plot_x.py --full             # the size of the committed figures
    python gallery/plot_x.py --quick            # less than small, in coarse figures: what the tests run
    python gallery/plot_x.py --out=FOLDER       # figures and tables into FOLDER/images and FOLDER/tables

`gallery/make.py` runs them all, and is what writes the committed files.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

os.environ.setdefault("MPLBACKEND", "Agg")

import matplotlib as mpl
import pandas as pd
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MultipleLocator, NullLocator
from PIL import Image
from torch import Tensor

from coordcheck import Report
from coordcheck.reporting.figures.style import STYLE, minus
from coordcheck.reporting.figures.style import shades as shades
from coordcheck.runs.files import replace_file

FULL, QUICK = "--full" in sys.argv, "--quick" in sys.argv
GRID: dict[str, Any] = {"widths": (64, 128, 256, 512), "seeds": 3} if FULL else {"widths": (64, 128, 256), "seeds": 2}
WIDTH = 6.3  # inches: the text width of a paper
DPI, COLOURS_IN_FILE = 50 if QUICK else 200, 192  # sharp at twice the column width of a README, and below 150 KB
HERE = Path(__file__).resolve().parent
BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, RED, PURPLE = (  # Okabe & Ito: told apart by all kinds of colour vision
    *("#000000", "#e69f00", "#56b4e9", "#009e73"),
    *("#f0e442", "#0072b2", "#d55e00", "#cc79a7"),
)
shown: list[Figure] = []  # figures saved since the site's scraper last looked

torch.set_num_threads(1)  # the same numbers wherever a lesson runs, and two lessons side by side


def output_folder() -> Path:
    """Where figures and tables go: the last --out=FOLDER, else gallery/_build."""
    given = [argument.removeprefix("--out=") for argument in sys.argv if argument.startswith("--out=")]
    return Path(given[-1]) if given else HERE / "_build"


def subplots(rows: int = 1, columns: int = 1, *, height: float = 2.3, width: float = WIDTH, **options: Any) -> Any:
    """(figure, axes) in the house style; `height` and `width` in inches, other options as of `Figure.subplots`."""
    mpl.rcdefaults()
    mpl.rcParams.update({**STYLE, "legend.frameon": False, "legend.fontsize": 7, "lines.linewidth": 1.2})
    mpl.rcParams.update({"lines.markersize": 3.5, "axes.titlelocation": "left"})
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, **options)


def log2_axes(axis: Axes, widths: Sequence[float] | None = None, *, y: bool = True) -> None:
    """Log2 scales, with the widths as ticks where they are given, and y at powers of two."""
    axis.set_xscale("log", base=2)
    if widths is not None:
        axis.xaxis.set_major_locator(FixedLocator(list(widths)))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda width, _: f"{width:g}"))
    axis.xaxis.set_minor_locator(NullLocator())
    if y:
        axis.set_yscale("log", base=2)
        axis.yaxis.set_major_locator(LogLocator(base=2, numticks=8))
        axis.yaxis.set_major_formatter(FuncFormatter(_power_of_two))
        axis.yaxis.set_minor_locator(NullLocator())


def _power_of_two(value: float, _: object) -> str:
    return f"{value:g}" if value >= 1 else f"1/{1 / value:g}"


def curves(axis: Axes, table: pd.DataFrame, looks: Mapping[str, Any], *, y: bool = True, **names: Any) -> None:
    """A curve per column of a table, whose index are widths, on log2 axes.

    Args:
        axis: where to draw.
        table: one curve per column, which is its name in a legend.
        looks: format string -> colour, in the order of the columns.
        y: whether the vertical axis is logarithmic, too.
        names: title, xlabel and whatever else `Axes.set` takes.
    """
    for (name, values), (look, colour) in zip(table.items(), looks.items(), strict=False):
        axis.plot(table.index, values, look, color=colour, label=name)
    log2_axes(axis, list(table.index), y=y)
    axis.set(**names)


def panels(tables: Mapping[str, Any], looks: Sequence[Mapping[str, Any]], *, height: float = 2.3, **names: Any) -> Any:
    """(figure, axes) of a row of panels: for each its title, its `curves` as a table or by name, and their looks."""
    figure, axes = subplots(1, len(tables), height=height)
    for axis, (title, table), own in zip(axes, tables.items(), looks, strict=True):
        curves(axis, pd.DataFrame(table), own, **{"title": title, **names})
        axis.legend()
    return figure, axes


def guide(axis: Axes, widths: Sequence[float], start: float, slope: float, text: str = "") -> None:
    """A grey line of known slope through (widths[0], start), named at its end."""
    ends = [widths[0], widths[-1]]
    heights = [start, start * (ends[1] / ends[0]) ** slope]
    axis.plot(ends, heights, color="0.65", linewidth=0.8, linestyle=(0, (4, 2)), zorder=1)
    axis.annotate(text, (ends[1], heights[1]), (3, 0), textcoords="offset points", va="center", color="0.4")


def over_input(report: Report, quantity: str, theory: pd.DataFrame) -> pd.DataFrame:
    """Measured exponents of a matrix's output or own update over its input: labels and layers as `theory` has them."""
    slopes = report.slopes.pivot_table(index=["label", "layer"], columns="quantity", values="slope")
    found = (slopes[quantity] - slopes["input"]).unstack().rename(columns=lambda name: name.removesuffix(".weight"))
    return found.loc[theory.index, theory.columns]


def beside_theory(axis: Axes, theory: pd.DataFrame, measured: pd.DataFrame, title: str) -> None:
    """Exponents, a row per index and a marker per column: theory as a grey bar, what was measured as a marker on it."""
    looks = zip("osD^", (BLUE, ORANGE, GREEN, PURPLE), strict=True)
    for number, (column, (marker, colour)) in enumerate(zip(theory.columns, looks, strict=False)):
        heights = [row + 0.26 * (number - (len(theory.columns) - 1) / 2) for row in range(len(theory))]
        axis.plot(theory[column], heights, "|", color="0.75", markersize=8, markeredgewidth=4)
        axis.plot(measured[column], heights, marker, color=colour, markersize=4, label=column, zorder=3)
    axis.set_yticks(range(len(theory)), list(theory.index))
    axis.set_ylim(len(theory) - 0.4, -0.6)  # the first row on top
    axis.xaxis.set_major_locator(MultipleLocator(0.5))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: minus(f"{value:+.1f}".replace("+0.0", "0"))))
    axis.grid(axis="y", visible=False)
    for row in range(1, len(theory)):
        axis.axhline(row - 0.5, color="0.93", linewidth=0.5, zorder=0)
    axis.axvline(0, color="black", linewidth=0.6, zorder=0)
    axis.set(title=title, xlabel="exponent of the width")


def save(figure: Figure, name: str) -> None:
    """Write images/`name`.png in one step: the same figure gives the same bytes; no date, no version."""
    shown.append(figure)
    raw, packed = io.BytesIO(), io.BytesIO()
    figure.savefig(raw, format="png", dpi=DPI, metadata={"Software": None})
    picture = Image.open(raw).convert("RGB").quantize(COLOURS_IN_FILE, dither=Image.Dither.NONE)
    picture.save(packed, format="png", optimize=True, dpi=(DPI, DPI))
    _write(output_folder() / "images" / f"{name}.png", packed.getvalue())


def table(frame: pd.DataFrame, name: str) -> None:
    """Write tables/`name`.md: the columns of a frame (not its index), floats with a sign and two digits."""
    cells = [[f"{cell:+.2f}" if isinstance(cell, float) else str(cell) for cell in row] for row in frame.to_numpy()]
    rows = [[str(column) for column in frame.columns], ["---"] * len(frame.columns), *cells]
    text = "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |\n" for row in rows)
    print(text)
    _write(output_folder() / "tables" / f"{name}.md", text.encode())


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, content)


def points(examples: int) -> tuple[Tensor, Tensor]:
    """Random inputs, (examples, 64), with classes that mean nothing, (examples,)."""
    return torch.randn(examples, 64, generator=torch.Generator().manual_seed(0)), torch.arange(examples) % 10


def taught(seed: int, examples: int = 64) -> tuple[Tensor, Tensor]:
    """Random inputs, (examples, 64), and the classes that a fixed random network gives them, (examples,)."""
    first, second = (torch.randn(64, n, generator=torch.Generator().manual_seed(n)) for n in (64, 10))
    x = torch.randn(examples, 64, generator=torch.Generator().manual_seed(seed))
    return x, ((x @ first / 8).relu() @ second).argmax(1)


def class_loss(model: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The cross-entropy of the classes of a batch."""
    return F.cross_entropy(model(batch[0]), batch[1])


def train(
    build: Callable[[int], Any],
    width: int,
    batches: Iterable[Any],
    *,
    loss: Callable[[Any, Any], Tensor] = class_loss,
    seed: int = 0,
    schedule: Callable[[Any, int], None] = lambda optimizer, step: None,
) -> tuple[Any, list[float]]:
    """(model, the loss of every batch before its update); `schedule` may set learning rates before each."""
    torch.manual_seed(seed)
    (model, optimizer), losses = build(width), []
    for step, batch in enumerate(batches):
        schedule(optimizer, step)
        optimizer.zero_grad()
        value = loss(model, batch)
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return model, losses


@lru_cache(maxsize=1)
def text() -> tuple[Tensor, Tensor]:
    """Real English of about 460 KB, on every machine with Python: (training, validation) bytes, each 1-d, 9 to 1.

    It is the reference of the Python language, as the standard library carries it for `help()`.
    """
    from pydoc_data.topics import topics

    source = "\n".join(topics[name] for name in sorted(topics)).encode()
    tokens, cut = torch.tensor(list(source)), len(source) * 9 // 10
    return tokens[:cut], tokens[cut:]


def text_batch(sequences: int = 8, context: int = 32, *, seed: int = 0, validation: bool = False) -> Tensor:
    """(sequences, context + 1) bytes of the text, from places that the seed draws; for `demo.next_byte_loss`."""
    tokens = text()[int(validation)]
    starts = torch.randint(len(tokens) - context - 1, (sequences,), generator=torch.Generator().manual_seed(seed))
    return tokens[starts[:, None] + torch.arange(context + 1)]  # (sequences, 1) + (time,) -> (sequences, time)
