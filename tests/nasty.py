"""Reports that are hard to draw, and what every figure must be: all its texts whole, and none upon another."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from typing import Any

from conftest import power_law_records
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from coordcheck import Report
from coordcheck.analysis.criteria import Criteria
from coordcheck.runs.records import RunRecord
from coordcheck.runs.words import Status

FLAT = {"activation": 0.0, "change": 0.0}
FAST = {"activation": 0.0, "change": 1.0}
LARGE = {"activation": 0.5, "change": 0.5}
READOUT = {"activation": -0.5, "change": 0.0}
DEEP = {"activation": -1.0, "change": -0.5}
LEVELS = (0.0, -1.3, 1.7, -2.9, 0.4)
LONG = "transformer.decoder.layers.{}.self_attention.query_key_value_projection"


def apart(width: int, seed: int, layer: str) -> float:
    """Every layer at a height of its own, with a little noise over the seeds."""
    return LEVELS[sum(map(ord, layer)) % len(LEVELS)] + 0.02 * seed


def of(layer: str, width: int) -> tuple[int, ...]:
    """Shapes: what is called a head has a fixed number of outputs."""
    return (4, 10) if layer.startswith("head") else (4, width)


def made(exponents: dict[str, Any], criteria: Criteria | None = None, **options: Any) -> Report:
    usual: dict[str, Any] = {"noise": apart, "shape": of, "steps": 2, "seeds": 2}
    return Report(power_law_records(exponents, **(usual | options)), criteria)


def labels(count: int) -> Report:
    """So many labels: the odd ones are violated."""
    records = []
    for n in range(count):
        slopes = {"embedding": FLAT, "body.fc": FAST if n % 2 else FLAT, "head": READOUT}
        records += power_law_records(slopes, label=f"parametrization {n}", noise=apart, shape=of, seeds=2, steps=8)
    return Report(records)


def layers(count: int, steps: int = 4) -> Report:
    """Blocks of three layers each, of which every fifth blows up."""
    slopes: dict[str, Any] = {"embedding": FLAT}
    for n in range(count // 3):
        slopes |= {f"h.{n}.attn": FLAT, f"h.{n}.mlp": FAST if n % 5 == 4 else FLAT, f"h.{n}": FLAT}
    return made(slopes | {"head": READOUT}, steps=steps)


def zero_init() -> Report:
    report = made({"fc": FLAT, "head": FLAT})
    return Report([replace(record, rows=_zeroed(record)) for record in report.records])


def _zeroed(record: RunRecord) -> list[Any]:
    zero = {"value": 0.0, "status": Status.ZERO}
    return [
        row._replace(**zero) if record.sites[row.site].layer == "head" and not row.step else row for row in record.rows
    ]


def lost() -> Report:
    def noise(width: int, seed: int, layer: str) -> float:
        return math.nan if (width, layer) == (256, "fc") else apart(width, seed, layer)

    return made({"embedding": FLAT, "fc": FAST, "head": READOUT}, noise=noise)


REPORTS: dict[str, Callable[[], Report]] = {
    "one label": lambda: made({"embedding": FLAT, "fc": FAST, "out": LARGE, "head": READOUT}),
    "nothing violated": lambda: made({"embedding": FLAT, "fc": FLAT, "head": READOUT}),
    "one layer": lambda: made({"fc": FLAT}),
    "ten labels": lambda: labels(10),
    "three labels": lambda: labels(3),
    "long names": lambda: made({LONG.format(n): FAST for n in range(5)} | {f"head.{LONG}": READOUT}, label="x" * 200),
    "many by design": lambda: made({"fc": FLAT} | {f"head.{n}": READOUT for n in range(4)} | {"head": DEEP}),
    "128 steps": lambda: made({"embedding": FLAT, "fc": FAST, "head": READOUT}, steps=128),
    "60 layers": lambda: layers(60),
    "zero init": zero_init,
    "lost runs": lost,
    "depth": lambda: made({"fc": LARGE, "out": FLAT}, Criteria(axis="depth"), widths=(2, 4, 8, 16)),
    "wide widths": lambda: made({"fc": FAST, "out": FLAT}, widths=(1024, 4096, 16384, 65536, 262144)),
    "one width": lambda: made({"fc": FLAT, "out": FLAT}, widths=(64,)),
    "two widths": lambda: made({"fc": FLAT, "out": FLAT}, widths=(64, 128)),
    "no updates": lambda: made({"fc": LARGE, "head": READOUT}, steps=0),
    "one seed": lambda: made({"fc": LARGE, "head": READOUT}, seeds=1),
    "expected": lambda: made({"fc": LARGE, "out": FLAT}, Criteria(expect={"fc": 0.5})),
    "another parametrization": lambda: made({"fc": FAST, "out": FLAT}, Criteria(expect="sp")),
    "huge": lambda: made({"fc": {"activation": 0.0, "change": 30.0}, "out": FLAT}),
}


def texts_of(figure: Figure) -> dict[Text, Bbox]:
    """The texts that are seen, and where each is printed, in pixels."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    seen: dict[Text, Bbox] = {}
    for text in _shown(figure):
        if text.get_text().strip():
            seen[text] = Text.get_window_extent(text, renderer)  # of an annotation without its arrow
    return seen


def _shown(artist: Any) -> list[Text]:
    """The texts below an artist that it draws: not what is invisible, nor the labels of ticks outside of the limits."""
    if not artist.get_visible():
        return []
    if isinstance(artist, Text):
        return [artist]
    if hasattr(artist, "get_majorticklabels"):  # an axis
        low, high = sorted(artist.get_view_interval())
        ticks = [tick for tick in artist.get_major_ticks() if low <= tick.get_loc() <= high]
        return [*(t.label1 for t in ticks if t.label1.get_visible()), *_shown(artist.label)]
    if hasattr(artist, "axison") and not artist.axison:
        return []
    return [text for child in artist.get_children() for text in _shown(child)]


def faults(figure: Figure) -> list[str]:
    """What is wrong with the texts of a figure: cut off, or upon one another."""
    found = texts_of(figure)
    page = figure.bbox.padded(0.5)
    told = [f"{text.get_text()!r} leaves the page" for text, box in found.items() if not _inside(box, page)]
    for (one, box), (two, other) in combinations(found.items(), 2):
        meet = Bbox.intersection(box, other)
        if meet is not None and min(meet.width, meet.height) > 1.0:
            told.append(f"{one.get_text()!r} and {two.get_text()!r} overlap")
    return told


def _inside(box: Bbox, page: Bbox) -> bool:
    return page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1
