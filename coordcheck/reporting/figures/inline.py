"""Figures as SVG inside a page: several stand in one document, and none brings styles, links or names of its own."""

from __future__ import annotations

import io
import re
import warnings
from typing import NamedTuple
from xml.etree import ElementTree

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.figure import Figure

from coordcheck.analysis.result import Result
from coordcheck.common.errors import CoordCheckError
from coordcheck.reporting.figures.kinds import draw
from coordcheck.reporting.figures.style import NO_DATE, own_style

KINDS = {
    "divergence": (
        "Scale and change against width",
        "What verdicts are read from, label by label: the scale at t = 0, before training, and the change since then, "
        "after t updates. A line is a layer, dark early and light late in the data flow; the band is the range over "
        "seeds. A level line does not depend on the width. It is heavy where it is violated, and dashed where it is "
        "not level by design; the worst are named. The grey wedge shows slopes of ½ and 1.",
    ),
    "slopes": (
        "Slopes of each layer’s change",
        "The power of the width by which a layer’s change since t = 0 grows, layer by layer and step by step. A dot "
        "marks a slope that lies beyond the tolerance with its whole 95 % interval, in a layer that is violated.",
    ),
    "exponents": (
        "What the diagnosis measured",
        "Parameter by parameter. Left: the exponents of its own update and of the change that it inherits. Right: how "
        "far gain (initialisation) and response (learning rate) are from their targets; the band is the tolerance, and "
        "what is to blame is red. Bars are two standard errors.",
    ),
}
"""The figures of a page, with title and caption."""
MOST_LABELS = 16
CSS_PIXELS = 96  # per inch
DRAWN = frozenset({"svg", "g", "defs", "clipPath", "path", "rect", "use", "image", "text", "tspan"})
"""The elements that are kept: shapes and text. Nothing that links, runs, or styles the page around it."""
_REFERENCE = re.compile(r"url\(#([^)]+)\)")


class Drawing(NamedTuple):
    """One figure of the page, or the reason why it is not there."""

    title: str
    caption: str
    svg: Markup | None
    width: int
    """In CSS pixels, at 1:1."""
    reason: str


def drawings(report: Result) -> list[Drawing]:
    """The figures that can be drawn, and of the others why they cannot."""
    return [_drawing(report, kind) for kind in KINDS]


def _drawing(report: Result, kind: str) -> Drawing:
    title, caption = KINDS[kind]
    why = _why_not(report, kind)
    if why:
        return Drawing(title, caption, None, 0, why)
    try:
        with warnings.catch_warnings(), mpl.rc_context():
            mpl.rcdefaults()  # a page is the same whatever style its author has set
            warnings.simplefilter("ignore", UserWarning)  # glyphs that our font lacks: the reader's browser has others
            figure = draw(report, kind)
            width = figure.get_size_inches()[0]
            svg = Markup(inline_svg(figure, f"{kind}-"))
    except CoordCheckError as error:
        return Drawing(title, caption, None, 0, str(error))
    return Drawing(title, caption, svg, round(width * CSS_PIXELS), "")


def _why_not(report: Result, kind: str) -> str:
    """Why a figure would show nothing that can be read; empty when it does. Told before it is drawn."""
    if len(report.labels) > MOST_LABELS:
        return f"{len(report.labels)} labels are too many for one figure."
    if kind == "slopes" and report.slopes["slope"].isna().all() and len(report.slopes):
        return "no slope could be fitted."
    return ""


def inline_svg(figure: Figure, prefix: str) -> str:
    """The figure as an `<svg>` element for an HTML page; the same data give the same text.

    Text stays text, in whatever font the reader has.

    Args:
        figure: what to write.
        prefix: of all ids, so that those of two figures in one page do not clash.
    """
    buffer = io.BytesIO()
    with own_style():
        figure.savefig(buffer, format="svg", metadata=NO_DATE[".svg"])
    root = ElementTree.fromstring(buffer.getvalue())
    _reduce(root)
    used = {name for element in root.iter() for name in _references(element)}
    for element in root.iter():
        _rename(element, used, prefix)
    root.attrib = {"viewBox": root.attrib["viewBox"]}
    return ElementTree.tostring(root, encoding="unicode")


def _reduce(element: ElementTree.Element) -> None:
    """Drop what is not drawn, and the namespaces, which HTML knows."""
    element.tag = _local(element.tag)
    element.attrib = {_local(name): value for name, value in element.attrib.items()}
    element.text, element.tail = _text(element.text), _text(element.tail)
    for child in list(element):
        if isinstance(child.tag, str) and _local(child.tag) in DRAWN:
            _reduce(child)
        else:
            element.remove(child)


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _text(text: str | None) -> str | None:
    """No text where there is only indentation."""
    return text if text and text.strip() else None


def _references(element: ElementTree.Element) -> list[str]:
    """The ids that an element points at."""
    found = [name for value in element.attrib.values() for name in _REFERENCE.findall(value)]
    link = element.get("href", "")
    return [*found, link[1:]] if link.startswith("#") else found


def _rename(element: ElementTree.Element, used: set[str], prefix: str) -> None:
    """Ids that something points at get the prefix; the others are dropped."""
    for name, value in list(element.attrib.items()):
        if name == "id":
            if value not in used:
                del element.attrib[name]
            else:
                element.set(name, prefix + value)
        elif name == "href":
            if value.startswith("#"):
                element.set(name, f"#{prefix}{value[1:]}")
            elif not value.startswith("data:image/png;"):
                del element.attrib[name]
        else:
            element.set(name, _REFERENCE.sub(rf"url(#{prefix}\1)", value))
