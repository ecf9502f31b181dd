"""What the pages of bugs share: a bug with its truth, what two checks say of it, one page of panels, one table.

The truth of a bug is written down from theory before any check runs. The *plain check* is the field's coordinate check:
the scale of every layer after a few updates, flagged where its slope lies beyond 1/4 (a readout may shrink). The
*diagnosis* is the one of `coordcheck.check`: the parameter, the cause, and the power of the width that mends it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from itertools import accumulate
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import coordcheck
import lesson
from coordcheck import Report
from coordcheck.analysis.verdicts import Verdict
from coordcheck.checks.demo import next_byte_loss
from coordcheck.reporting.summaries import blames

BASE, CONTEXT = 64, 16  # the width at which every power of m = width / BASE is 1; bytes of text
FLAT = 0.25
INNOCENT, FLAGGED = "0.7", lesson.BLUE
KEY = "dots: to blame in truth        heavy: flagged by the plain check        dashed: attention logits"
ROOM = 27, 60  # characters of a remedy above a panel, and in a table

Truth = Mapping[str, tuple[str, float]]


@dataclass(frozen=True, eq=False)
class Bug:
    """A broken factory; a healthy one when nothing is to blame."""

    title: str  # where it was reported, below https://github.com/, and perhaps a word more; or a name
    mechanism: str
    build: Callable[[int], Any]
    truth: Truth = field(default_factory=dict)  # glob of culprits -> (cause, the power of m that mends it)

    @property
    def name(self) -> str:
        """`repository#number`, where it was reported."""
        return re.sub(r"^\S+/(\S+)/(?:pull|issues)/(\d+)", r"\1#\2", self.title)

    @property
    def link(self) -> str:
        """The name, in Markdown."""
        return self.name if self.name == self.title else f"[{self.name}](https://github.com/{self.title.split()[0]})"


class Plain(NamedTuple):
    """What the plain check says of one label at the last step."""

    slopes: pd.Series  # by layer, in the order of the data flow
    flagged: list[str]
    guilty: list[str]  # the layers whose parameters are to blame in truth, flagged or not

    def __str__(self) -> str:
        if not self.flagged:
            return "flags nothing"
        right = len(set(self.flagged) & set(self.guilty))
        of_them = f", {right} of {len(self.guilty)} guilty" if self.guilty else ""
        return f"flags {len(self.flagged)} of {len(self.slopes)} layers{of_them}"


def zoo(*bugs: Bug) -> list[Bug]:
    """All of them; in a quick run every third one, of which the first is healthy."""
    return list(bugs[:: 3 if lesson.QUICK else 1])


def check(bugs: Iterable[Bug], **options: Any) -> Report:
    """`coordcheck.check` of all of them, on text where a bug brings no batch of its own."""
    factories = {bug.name: bug.build for bug in bugs}
    return coordcheck.check(factories, lesson.text_batch(8, CONTEXT), loss=next_byte_loss, **options)


@cache
def parameters(report: Report, bug: Bug) -> pd.DataFrame:
    """The diagnosis of one bug, a row per parameter."""
    return report.parameters[report.parameters["label"] == bug.name]


@cache
def truth(report: Report, bug: Bug) -> Truth:
    """The truth, with every glob spelled out as the parameters that it means."""
    names = parameters(report, bug)["layer"]
    found = {name: value for glob, value in bug.truth.items() for name in names if fnmatchcase(name, glob)}
    for glob in bug.truth:
        assert any(fnmatchcase(name, glob) for name in found), f"{bug.name}: {glob} is no parameter"
    return found


@cache
def plain(report: Report, bug: Bug) -> Plain:
    """The plain check: slopes of the activations at the last step."""
    slopes = _at_last_step(report.slopes, bug).sort_values("order").set_index("layer")["slope"]
    culprits = {layer_of(name) for name in truth(report, bug)}
    readout = slopes.index[-1]  # which may shrink
    flagged = [name for name, slope in slopes.items() if abs(slope) > FLAT and not (name == readout and slope < 0)]
    return Plain(slopes, flagged, [name for name in slopes.index if name in culprits])


def _at_last_step(table: pd.DataFrame, bug: Bug, quantity: str = "activation") -> pd.DataFrame:
    rows = table[(table["label"] == bug.name) & (table["quantity"] == quantity)]
    return rows[rows["step"] == rows["step"].max()]


def layer_of(name: str) -> str:
    """The layer that a parameter makes; attention logits are one of their own, a second use is the model's output."""
    return name if "/" in name else "(model)" if "@" in name else name.partition("[")[0].rpartition(".")[0]


def diagnosis(report: Report, bug: Bug, room: int = ROOM[1]) -> list[str]:
    """What to change, a line of `room` characters per change: `lr × m^-1: query, key + 4`."""
    lines: dict[str, list[str]] = {}
    for blame in blames(parameters(report, bug)):
        lines.setdefault(blame.change, []).extend(map(_short, blame.parameters))
    undecided = (parameters(report, bug)["verdict"] == Verdict.UNDECIDED.value).all()
    found = [f"{change}: {_listed(names, room - len(change))}" for change, names in lines.items()]
    return found or ["undecided" if undecided else "none to blame"]


def _short(name: str) -> str:
    """The part of a parameter's path that tells it from the others."""
    module, _, last = name.rpartition(".")
    parts = module.split(".")[-2 if module[-1:].isdecimal() else -1 :]
    return "logits" if "/" in name else ".".join([*parts, last] if last == "bias" else parts) or name


def _listed(names: Sequence[str], room: int) -> str:
    """As many names as there is room for, one at least, and how many more there are."""
    fitting = sum(end <= room for end in accumulate(len(name) + 2 for name in names)) or 1
    return ", ".join(names[:fitting]) + (f" + {len(names) - fitting}" if fitting < len(names) else "")


def wrong(report: Report, bugs: Iterable[Bug]) -> list[str]:
    """Where the diagnosis does not say the truth, neither more nor less, or a healthy model does not pass."""
    found = []
    for bug in bugs:
        own, expected, status = parameters(report, bug), truth(report, bug), report.status[bug.name]
        culprits = own[own["culprit"].astype(bool)].to_dict("records")
        says = {row["layer"]: (row["cause"], row["exponent"]) for row in culprits}
        if says != expected:
            found.append(f"{bug.name}: the diagnosis says {says}, the truth is {expected}")
        elif not bug.truth and status is not Verdict.OK:
            found.append(f"{bug.name}: nothing is wrong, and it is {status.value}")
    print(*found, sep="\n")
    return found


def page(report: Report, bugs: Sequence[Bug], quantity: str = "activation", *, row: float = 1.5) -> Figure:
    """Three panels in a row, one per bug: every layer after the last step, against the width.

    `quantity` is "activation", "change", or "logits": activations, and the attention logits of innocents, too.
    """
    rows = math.ceil(len(bugs) / 3)
    figure, axes = lesson.subplots(rows, 3, height=row * rows, sharex=True, sharey=True, squeeze=False)
    for start, line in zip(range(0, len(bugs), 3), axes, strict=True):
        some = bugs[start : start + 3]
        above = [_headlines(report, bug) for bug in some]
        longest = max(map(len, above))
        for axis, bug, texts in zip(line, some, above, strict=False):
            _panel(axis, report, bug, quantity)
            text = "\n".join([" ", *texts, *[" "] * (longest - len(texts))])
            axis.set_title(text, fontsize=6, linespacing=1.25, color="0.25", pad=3)
            place = (0, 1), (0, 4 + 7.5 * longest), "axes fraction", "offset points"
            axis.annotate(bug.name, *place, fontweight="bold").set_in_layout(False)
        line[0].set_ylabel("RMS change" if quantity == "change" else "RMS activation")
    lesson.log2_axes(axes[0, 0], report.widths)  # all share its scales
    for axis in axes[-1]:
        axis.set_xlabel("width")
    for axis in axes.flat[len(bugs) :]:
        axis.set_axis_off()
    figure.supxlabel(KEY, fontsize=6.5, color="0.25")
    return figure


def _headlines(report: Report, bug: Bug) -> list[str]:
    """What both checks say, as it stands above a panel."""
    first, *more = diagnosis(report, bug, ROOM[0])[:2]
    return [f"plain: {plain(report, bug)}", f"diagnosis: {first}", *more]


def _style(guilty: bool, flagged: bool) -> dict[str, Any]:
    colour = lesson.RED if guilty else FLAGGED if flagged else INNOCENT
    marks = {"marker": "o" if guilty else "", "markersize": 2.6, "zorder": 1 + flagged + 2 * guilty}
    return {"color": colour, "linewidth": 1.3 if flagged else 0.7, **marks}


def _panel(axis: Axes, report: Report, bug: Bug, quantity: str) -> None:
    """Guilty layers with markers, layers that the plain check flags heavy, the others thin; logits dashed."""
    seen = plain(report, bug)
    rows = _at_last_step(report.measurements, bug, "change" if quantity == "change" else "activation")
    rows = rows[rows["value"] > 0]  # what never moved has no place on a logarithmic axis
    for layer, values in rows.groupby("layer", sort=False):
        medians = values.groupby("width")["value"].median()
        axis.plot(medians.index, medians, **_style(layer in seen.guilty, layer in seen.flagged))
    for layer, logits in _logits(report, bug):
        if layer in truth(report, bug) or quantity == "logits":
            axis.plot(logits.index, logits, "--", **_style(layer in truth(report, bug), False))
    axis.tick_params(labelsize=6)


def _logits(report: Report, bug: Bug) -> Iterator[tuple[str, pd.Series]]:
    """The scale of attention logits by width, as the diagnosis saw it last."""
    rows = _at_last_step(report.measurements, bug, "logits")
    for layer, own in rows[rows["layer"].isin(parameters(report, bug)["layer"])].groupby("layer"):
        yield str(layer), own.groupby("width")["value"].median()


def summary(report: Report, bugs: Iterable[Bug], *, remedy: bool = False) -> pd.DataFrame:
    """The table of a page: what broke, what the plain check sees, what the diagnosis says."""
    rows = []
    for bug in bugs:
        seen = plain(report, bug)
        guilty = seen.slopes[seen.guilty]
        row = {"bug": bug.link, "what was wrong": bug.mechanism, "plain check": str(seen)}
        steepest = f"{guilty[guilty.abs().idxmax()]:+.2f}" if len(guilty) else "not seen"
        row |= {
            "slope of a guilty layer": steepest if bug.truth else "",
            "diagnosis": "; ".join(diagnosis(report, bug)),
        }
        rows.append(row | ({"remedy": blames(parameters(report, bug))[0].remedy} if remedy else {}))
    return pd.DataFrame(rows)
