"""The report as a page: one HTML file that needs nothing else, and a fragment of it for notebooks.

Names, notes and reasons come from the user's model and from run files: they are text, whatever they hold. The template
escapes them, control characters are written out, and the script is the only one that the page's policy lets run.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable
from functools import lru_cache
from importlib.resources import files
from itertools import chain, zip_longest
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from coordcheck.analysis.audits import LIMITS
from coordcheck.analysis.result import Result
from coordcheck.analysis.targets import PARAMETRIZATIONS
from coordcheck.analysis.verdicts import Verdict
from coordcheck.common.escaping import printable
from coordcheck.common.version import __version__
from coordcheck.reporting.pagedata import SYMBOLS, table_data, tone
from coordcheck.reporting.summaries import (
    Blame,
    Headline,
    blames,
    expected_text,
    growth_text,
    headline,
    measured,
    of_label,
    provisional,
    slope_text,
    worst,
)
from coordcheck.runs.files import versions

WORST = 10  # layers shown per label above the table of all
BLAMES = 40  # groups of culprits shown per label
FAILURES = 100  # runs that did not finish
FRAGMENT = 5  # layers shown per label in a notebook


class Section(NamedTuple):
    """What the page says of one label."""

    headline: Headline
    blames: list[Blame]
    provisional: bool
    diagnosed: bool
    worst: list[Any]
    """Rows of `report.verdicts`."""
    ailing: int
    """How many layers are violated or undecided, of which `worst` are the first."""
    undecided: list[tuple[str, str]]
    """The parameters of which the exponents do not decide, with what was measured."""
    widths: list[int]


class Runs(NamedTuple):
    """The runs of one label, as text."""

    label: str
    finished: str
    widths: str
    seeds: str
    steps: str
    seconds: str


def render_page(report: Result) -> str:
    """The whole report as one HTML document without references to anything outside it.

    The same report gives the same text.
    """
    from coordcheck.reporting.figures.inline import (
        drawings,  # here, not above: a notebook's fragment needs no matplotlib
    )

    script = _resource("detail.js") + _resource("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        _environment()
        .get_template("report.html")
        .render(
            sections=[_section(report, label, WORST) for label in report.labels],
            drawings=drawings(report),
            data=table_data(report),
            runs=_runs(report),
            settings=_settings(report),
            missing=report.missing[:FAILURES],
            missing_count=len(report.missing),
            notes=report.notes,
            limits=LIMITS,
            criteria=report.criteria,
            widths=_listed(report.widths),
            worst_shown=WORST,
            versions=versions(),
            version=__version__,
            blames_shown=BLAMES,
            style=Markup(_resource("report.css")),
            script=Markup(script),
            digest=digest,
        )
    )


def render_fragment(report: Result) -> str:
    """The report on one screen for a notebook: no script, and a style that touches nothing around it."""
    return (
        _environment()
        .get_template("fragment.html")
        .render(
            sections=[_section(report, label, FRAGMENT) for label in report.labels],
            notes=report.notes,
            blames_shown=BLAMES,
        )
    )


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("coordcheck.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    environment.filters |= {"measured": measured, "slope": slope_text, "growth": growth_text, "minus": _minus}
    environment.filters |= {"expected": expected_text}
    environment.filters |= {"powers": _powers, "sentence": _sentence, "breakable": _breakable}
    environment.filters |= {"tone": tone, "symbol": SYMBOLS.__getitem__, "verdict": Verdict}
    return environment


def _shown(value: Any) -> Any:
    """What an expression of the template becomes: text with control characters written out."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _powers(text: str) -> Markup:
    """The text with raised exponents of m and n: lr × m^-1 becomes lr × m⁻¹."""
    parts = re.split(r"(?<=\b[mn])\^(-?\d+(?:\.\d+)?)", printable(text))  # text, exponent, text, ..., text
    raised = [Markup("<sup>{}</sup>").format(_minus(part)) for part in parts[1::2]]
    return Markup("").join(chain.from_iterable(zip_longest(parts[::2], raised, fillvalue="")))


def _minus(number: str) -> str:
    """A number as it is set: a minus instead of a hyphen, and none before a zero."""
    return re.sub(r"-(?=0(?:\.0+)?(?![\d.]))", "", number).replace("-", "−")


def _sentence(text: str) -> Markup:
    """An explanation as a sentence of its own."""
    return _powers(f"{text[0].upper()}{text[1:]}.") if text else Markup("")


def _breakable(name: str) -> Markup:
    """A name with places to break a long one."""
    return Markup("<wbr>").join(re.split(r"(?<=[./])", printable(name)))


def _section(report: Result, label: str, most: int) -> Section:
    table, parameters = of_label(report, label)
    ailing = worst(table) if label not in report.too_few_widths else table.head(0)
    open_questions: list[Any] = list(parameters[parameters["verdict"] == Verdict.UNDECIDED.value].itertuples())
    return Section(
        headline=headline(report, label),
        blames=blames(parameters),
        provisional=provisional(parameters),
        diagnosed=bool(len(parameters)),
        worst=list(ailing.head(most).itertuples()),
        ailing=len(ailing),
        undecided=[(row.layer, row.explanation) for row in open_questions],
        widths=report.widths_of(label),
    )


def _runs(report: Result) -> list[Runs]:
    """One row per label: what was trained, and how much of it finished."""
    found = []
    for label in report.labels:
        own = [record for record in report.records if record.key.label == label]
        finished = [record for record in own if record.finished]
        found.append(
            Runs(
                label,
                f"{len(finished)} of {len(own)}",
                _listed(record.key.width for record in own),
                _listed(record.key.seed for record in own),
                _listed(len(record.losses) - 1 for record in finished if record.losses),
                f"{sum(record.seconds for record in own):.3g} s",
            )
        )
    return found


def _settings(report: Result) -> list[tuple[str, list[str]]]:
    """Every setting that changes numbers, with its value per label: one value where it is the same for all."""
    found: dict[str, dict[str, dict[str, None]]] = {}
    for record in report.records:
        for name, value in record.settings.items():
            found.setdefault(name, {}).setdefault(record.key.label, {})[value] = None
    table = []
    for name, by_label in found.items():
        values = [" | ".join(by_label.get(label, {"not set": None})) for label in report.labels]
        table.append((name, values[:1] if len(set(values)) == 1 else values))
    criteria = report.criteria
    table.append(("expected exponents", [f"those of {PARAMETRIZATIONS[criteria.parametrization].name}"]))
    table += [(f"expected of {glob}", [f"{power:g}"]) for glob, power in (criteria.exponents or {}).items()]
    table += [(f"role of {glob}", [role]) for glob, role in (criteria.roles or {}).items()]
    return [*table, ("tolerance", [f"{criteria.tolerance:g}"])]


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(set(numbers))))


def _resource(name: str) -> str:
    return (files("coordcheck.reporting") / "templates" / name).read_text(encoding="utf-8")
