"""Baselines as files that read well in a review: one line per layer and per parameter, sorted, 3 digits.

    {"settings": {...}, "labels": {"gpt": {"layers": {...}, "parameters": {...}}}}

The same exponents always give the same bytes. There is no checksum: a baseline is under version control, is merged
there, and may be corrected by hand; whatever it holds is looked at before it is used.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from coordcheck.analysis.verdicts import Verdict
from coordcheck.common.errors import RunFileError
from coordcheck.common.escaping import json_text
from coordcheck.pytest_plugin.baselines import KINDS, Baseline, Entry, Name, Reading
from coordcheck.runs.documents import Unreadable, read_bytes, too_dense
from coordcheck.runs.files import replace_file

FORMAT, SCHEMA = "coordcheck baseline", 1
NUMBERS = "[exponent, half of its 95 % interval]"
SIZE_LIMIT = 8 * 2**20  # bytes; 5000 layers are about 1 MB


class NewerBaseline(RunFileError):
    """A baseline that a newer version wrote, and this one must not write over."""


class _Line(NamedTuple):
    """A value that is written on one line."""

    value: Any


def baseline_text(baseline: Baseline) -> str:
    """A baseline as JSON text.

    >>> entry = Entry("ok", {"change at t=1": Reading(0.01, 0.04)})
    >>> print(baseline_text(Baseline({"seeds": [0, 1]}, {Name("gpt", "layers", "fc"): entry})), end="")
    {
      "format": "coordcheck baseline",
      "schema": 1,
      "numbers": "[exponent, half of its 95 % interval]",
      "settings": {
        "seeds": [0, 1]
      },
      "labels": {
        "gpt": {
          "layers": {
            "fc": {"verdict": "ok", "change at t=1": [0.01, 0.04]}
          },
          "parameters": {}
        }
      }
    }
    """
    labels = sorted({name.label for name in baseline.entries})
    tree = {label: {kind: _lines(baseline, label, kind) for kind in KINDS} for label in labels}
    head = {"format": FORMAT, "schema": SCHEMA, "numbers": NUMBERS}
    settings = {name: _Line(baseline.settings[name]) for name in sorted(baseline.settings)}
    return _text({**head, "settings": settings, "labels": tree}) + "\n"


def _lines(baseline: Baseline, label: str, kind: str) -> dict[str, _Line]:
    own = {n.name: entry for n, entry in baseline.entries.items() if (n.label, n.kind) == (label, kind)}
    return {
        name: _Line({"verdict": own[name].verdict, **{key: list(r) for key, r in own[name].readings.items()}})
        for name in sorted(own)
    }


def _text(value: Any, indent: str = "") -> str:
    """JSON, indented down to the values that stand on one line."""
    if not isinstance(value, dict):
        return json_text(value.value if isinstance(value, _Line) else value)
    lines = [f"{indent}  {json_text(key)}: {_text(v, indent + '  ')}" for key, v in value.items()]
    return "{\n" + ",\n".join(lines) + f"\n{indent}}}" if lines else "{}"


def write_baseline(path: Path, baseline: Baseline) -> None:
    """Put a baseline into a file, in one step.

    Raises:
        CoordCheckError: the folder cannot be written.
    """
    replace_file(path, baseline_text(baseline).encode())


def read_baseline(path: Path) -> Baseline:
    """The baseline in a file.

    Raises:
        RunFileError: it cannot be read, is damaged, or holds something else than `write_baseline` writes.
        NewerBaseline: (a RunFileError) a newer version wrote it.
    """
    document = _document(path)
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        _refuse(path, f"is no baseline: its format is not {FORMAT!r}")
    schema = document.get("schema")
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
        _refuse(path, f"has the schema {schema!r}, which is none")
    if schema > SCHEMA:
        raise NewerBaseline(
            f"the baseline {path} has schema {schema}; this version reads up to {SCHEMA}. Upgrade coordcheck."
        )
    try:
        return Baseline(dict(document["settings"].items()), dict(_entries(document["labels"])))
    except KeyError as error:
        _refuse(path, f"lacks {error}")
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        _refuse(path, f"holds what no check writes: {error}")


def _document(path: Path) -> Any:
    try:
        data = read_bytes(path, SIZE_LIMIT)
    except Unreadable as reason:
        _refuse(path, str(reason))
    if too_dense(data):
        _refuse(path, "is damaged: it holds more lists than values")
    try:
        return json.loads(data.decode(), parse_constant=_no_constant, object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:
        _refuse(path, f"is damaged, or not merged: {error}")


def _entries(labels: Any) -> Iterator[tuple[Name, Entry]]:
    """The entries of a document, each value looked at."""
    for label, kinds in labels.items():
        for kind in KINDS:
            for name, line in kinds[kind].items():
                readings = {key: _reading(key, value) for key, value in line.items() if key != "verdict"}
                yield Name(label, kind, name), Entry(Verdict(line["verdict"]).value, readings)


def _reading(key: str, value: Any) -> Reading:
    if not isinstance(value, list) or len(value) != 2 or not _finite(value[0]):
        raise ValueError(f"{key!r} must be {NUMBERS}, got {value!r:.60}")
    if value[1] is not None and not (_finite(value[1]) and value[1] >= 0):
        raise ValueError(f"{key!r} must be {NUMBERS}, got {value!r:.60}")
    return Reading(float(value[0]), None if value[1] is None else float(value[1]))


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _distinct(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose names differ: a merge that kept both sides must not pass for one of them."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is there twice")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _refuse(path: Path, why: str) -> NoReturn:
    raise RunFileError(f"the baseline {path} {why}. Restore it from version control, or write it anew.")
