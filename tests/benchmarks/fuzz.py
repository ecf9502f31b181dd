"""Files that are wrong in every way: how many of them crash what reads them, or are taken for what they are not.

    python tests/benchmarks/fuzz.py 20000

Two kinds of mutants of a real folder and a real baseline:

    structured   the content is changed (values of other kinds, missing and doubled fields, names of other layers, sizes
                 that no tensor has, halves of surrogate pairs, ...) and the checksum is right: each is loaded, and
                 what is loaded is judged, printed and written as JSON, every third in the forms of CI systems and
                 notebooks as well, and of some of them figures and pages are drawn
    raw          bytes are changed, and the checksum is that of before: every one must be refused
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import coordcheck
from coordcheck.common.errors import CoordCheckError
from coordcheck.common.escaping import printable
from coordcheck.pytest_plugin.baselines import compare
from coordcheck.pytest_plugin.baselines.files import read_baseline
from coordcheck.reporting.ci import github, junit, markdown
from coordcheck.runs.documents import LIMITS
from coordcheck.runs.files import slug
from coordcheck.runs.words import Kind, Outcome, Quantity, Status

Figures = dict[str, "int | float"]
WRITTEN = Path(__file__).parent.parent / "data" / "written_by_0_1"
SHOWN = 3  # of so many structured mutants that are accepted, one is shown in every form
DRAWN = 25  # of so many structured mutants that are accepted, one is drawn, and becomes a page
WORDS = [word.value for words in (Kind, Outcome, Quantity, Status) for word in words]
NASTY: list[Any] = [
    *(None, True, False, 0, -1, 1, 3, 2**31, 2**53, 2**53 + 2, 2**63 - 1, 2**63, 10**30, 10**400, -(10**400)),
    *(
        0.0,
        -0.0,
        -1.5,
        0.5,
        5e-324,
        1e-300,
        1e300,
        1.7e308,
        1e9,
        "",
        " ",
        "NaN",
        "null",
        "module",
        "ok",
        "1",
        "µP",
        "muP",
    ),
    *(
        "\udcff",
        "\x00",
        "a\nb",
        "\x1b[31m",
        "$\\frac{",
        "[/]",
        "<script>",
        "x" * 5000,
        "𐀀",
        "../..",
        "a#2",
        "a/forward",
    ),
    *([], {}, [[]], [None], [1, 2, 3], ["a"], {"a": 1}, {"": {}}, [[0, 0, "activation", 1.0, "ok"]], [[64, 0]]),
]


def base() -> dict[str, str]:
    """A folder of three runs (SP at three widths, one seed) with its experiment, as texts by path, and a baseline."""
    folder = WRITTEN / "folder"
    paths = [folder / "experiment.json", *sorted((folder / "runs" / "SP").glob("*-0.json"))]
    found = {str(path.relative_to(folder)): path.read_text(encoding="utf-8") for path in paths}
    return {**found, "baseline.json": (WRITTEN / "baseline.json").read_text(encoding="utf-8")}


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of everything inside nested lists and mappings."""
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*path, key)
        yield from places(item, (*path, key))


class Mutator:
    """Changes documents, the same way for the same seed."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)

    def place(self, document: Any) -> tuple[Any, ...]:
        """A place inside: a top field first, so that the many rows do not take all the turns."""
        top = self.chance.choice(list(document))
        inside = list(places(document[top], (top,)))
        return self.chance.choice([(top,), *inside]) if inside and self.chance.random() < 0.8 else (top,)

    def change(self, document: Any) -> None:
        """One change somewhere, in place."""
        *path, last = self.place(document)
        parent = document
        for key in path:
            parent = parent[key]
        kind = self.chance.randrange(9)
        if kind == 0:
            del parent[last]
        elif kind == 1 and isinstance(parent, list):
            parent.insert(last, copy.deepcopy(self.chance.choice(parent)))
        elif kind == 2 and isinstance(parent, dict):
            parent[self.chance.choice(["", "a", "\udcff", "\x1b[31m", "steps", "SP", "x" * 3000])] = parent.pop(last)
        elif kind == 3 and isinstance(parent[last], (int, float)) and not isinstance(parent[last], bool):
            parent[last] = parent[last] * self.chance.choice([-1, 0, 2, 10**9, 1e200, 1e-200, 0.5])
        elif kind == 4 and isinstance(parent[last], str):
            parent[last] = self.chance.choice([*WORDS, parent[last] + "\udcff", parent[last] * 3, parent[last][::-1]])
        elif kind == 5 and isinstance(parent, list):
            other = self.chance.randrange(len(parent))
            parent[last], parent[other] = parent[other], parent[last]
        elif kind == 6:
            other = self.place(document)
            value = document
            for key in other:
                value = value[key]
            parent[last] = copy.deepcopy(value)
        elif kind == 7 and isinstance(parent[last], list):
            parent[last] = parent[last] * self.chance.choice([0, 2, 3])
        else:
            parent[last] = copy.deepcopy(self.chance.choice(NASTY))


def sealed(document: dict[str, Any], doubled: str = "") -> bytes:
    """A document with a right checksum; `doubled` is a member that stands in its content once more."""
    body = json.dumps(document, separators=(",", ":"))[:-1].replace('"content":{', f'"content":{{{doubled}', 1).encode()
    return body + f',"sha256":"{hashlib.sha256(body).hexdigest()}"}}\n'.encode()


def structured(texts: dict[str, str], number: int) -> dict[str, bytes]:
    """A mutant whose checksums are right: the files that are changed, by the path that each says it belongs to.

    Now and then all runs are changed alike, so that they still go together.
    """
    chance = random.Random(number)
    runs = [path for path in texts if path.startswith("runs")]
    kind = chance.choice(["experiment", "experiment", "run", "run", "runs", "runs", "baseline"])
    chosen = {"run": [chance.choice(runs)], "runs": runs}.get(kind, [f"{kind}.json"])
    found = {}
    for path in chosen:
        document, mutator = json.loads(texts[path]), Mutator(number)
        document.pop("sha256", None)
        whole = kind == "baseline" or mutator.chance.random() < 0.03
        for _ in range(mutator.chance.choice((1, 1, 1, 2, 4))):
            with suppress(LookupError, TypeError, OverflowError):  # nothing is left to be changed, or not like this
                mutator.change(document if whole else document["content"])
        if kind == "baseline":
            return {path: json.dumps(document).encode()}
        doubled = mutator.chance.choice(['"label":"SP",', '"planned":{},', '"seconds":1,']) if number % 50 == 0 else ""
        found[_named(path, document)] = sealed(document, doubled)
    return found


def _named(path: str, document: dict[str, Any]) -> str:
    """Where a run of these contents lies, as far as they tell."""
    content = document.get("content")
    if not path.startswith("runs") or not isinstance(content, dict) or not isinstance(content.get("label"), str):
        return path
    numbers = [str(content.get(name))[:30].replace("\x00", "").replace("/", "") for name in ("width", "seed")]
    return f"runs/{slug(content['label'])}/{'-'.join(numbers)}.json".encode("ascii", "replace").decode()


def raw(texts: dict[str, str], number: int) -> dict[str, bytes]:
    """A mutant with some bytes changed."""
    chance = random.Random(number)
    path = chance.choice([path for path in texts if path != "baseline.json"])
    data = bytearray(texts[path].encode())
    for _ in range(chance.choice((1, 1, 2, 8))):
        if not data:
            break
        place = chance.randrange(len(data))
        kind = chance.randrange(4)
        if kind == 0:
            data[place] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del data[place]
        elif kind == 2:
            data.insert(place, chance.choice(b'0123456789{}[],:"- '))
        else:
            del data[place:]
            data += b"}"
    return {path: bytes(data)}


def use(folder: Path, shows: bool, draws: bool) -> None:
    """What a report of a folder is for: to be judged, printed and kept, and to be shown and drawn elsewhere.

    Raises:
        CoordCheckError: the folder is refused.
        Exception: what reads it has crashed.
    """
    report = coordcheck.load(folder)
    _ = report.exit_code, report.culprits, report.notes
    texts = [str(report), report.to_json()]
    if shows:
        texts += [github(report), markdown(report), junit(report), report._repr_html_()]
    for text in texts:
        text.encode()
        if any(printable(line) != line for line in text.split("\n")):
            raise ValueError(f"what is not printable was shown: {text[:200]!r}")
    if draws:
        report.save_html(folder / "page.html")
        for kind in ("divergence", "slopes", "exponents"):
            try:
                report.figure(kind, path=folder / f"{kind}.png")
            except CoordCheckError as error:  # nothing of this kind to draw
                str(error)


def attempt(folder: Path, texts: dict[str, str], mutant: dict[str, bytes], number: int, drawn: int) -> str:
    """Put a mutant into a folder and use it: "refused", "accepted", or the error that nobody meant to raise."""
    fill(folder, texts, mutant)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            if "baseline.json" in mutant:
                str(compare(read_baseline(folder / "baseline.json"), _report()))
            else:
                use(folder, shows=number % SHOWN == 0, draws=number % drawn == 0)
    except CoordCheckError as error:
        lines = str(error).split("\n")
        return "refused" if all(map(str.isprintable, lines)) else f"a message that is not printable: {lines!a:.80}"
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if "coordcheck" in Path(frame.filename).parts]
        where = f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else "the harness"
        return f"{type(error).__name__} at {where}: {str(error)[:80]!a}"
    return "accepted"


def fill(folder: Path, texts: dict[str, str], mutant: dict[str, bytes]) -> None:
    """The folder with the mutant's files in the place of those that they were made from."""
    shutil.rmtree(folder, ignore_errors=True)
    runs = sum(path.startswith("runs") for path in mutant)
    kept = [path for path in texts if path not in mutant]
    strangers = runs - sum(path in texts for path in mutant if path.startswith("runs"))
    dropped = [path for path in kept if path.startswith("runs")][:strangers]
    files = {path: texts[path].encode() for path in kept if path not in dropped} | mutant
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)


_LOADED: list[coordcheck.Report] = []


def _report() -> coordcheck.Report:
    if not _LOADED:
        _LOADED.append(coordcheck.load(WRITTEN / "folder"))
    return _LOADED[0]


def outcomes(count: int, raws: int, *, first: int = 0, drawn: int = DRAWN) -> tuple[Figures, dict[str, list[int]]]:
    """Try mutants; the figures, and the numbers of those that each unmeant error came of.

    Args:
        count: structured mutants.
        raws: raw ones.
        first: the number of the first mutant.
        drawn: one of so many mutants is drawn, and becomes a page.
    """
    texts, crashes, found = base(), dict[str, list[int]](), Counter[str]()
    slowest, changed = 0.0, 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "folder"
        for number in range(first, first + count):
            start = time.perf_counter()
            result = attempt(folder, texts, structured(texts, number), number, drawn)
            if result == "refused":
                slowest = max(slowest, time.perf_counter() - start)
            _note(result, number, found, crashes)
        for number in range(first, first + raws):
            mutant = raw(texts, number)
            result = attempt(folder, texts, mutant, number, drawn)
            changed += result == "accepted" and any(data != texts[path].encode() for path, data in mutant.items())
            if result not in ("refused", "accepted"):
                _note(result, number, found, crashes)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "structured mutants": count,
        "refused": found["refused"],
        "accepted": found["accepted"],
        "crashes": found["crashed"],
        "raw mutants": raws,
        "silent changes": changed,
        "slowest refusal, s": round(slowest, 3),
        "peak memory above the start, MB": round((after - before) / 1024, 1),
    }, crashes


def _note(result: str, number: int, found: Counter[str], crashes: dict[str, list[int]]) -> None:
    if result in ("refused", "accepted"):
        found[result] += 1
    else:
        found["crashed"] += 1
        crashes.setdefault(result, []).append(number)


def _document(content: bytes, kind: str = "run") -> bytes:
    body = b'{"format":"coordcheck ' + kind.encode() + b'","schema":1,"content":' + content
    return body + b',"sha256":"' + hashlib.sha256(body).hexdigest().encode() + b'"}\n'


def _many(start: bytes, piece: bytes, end: bytes) -> Callable[[int], bytes]:
    """A run whose content is a start, a piece over and over, and an end that is wrong."""
    return lambda size: _document(start + piece * (size // len(piece)) + end)


CRAFTED: dict[str, Callable[[int], bytes]] = {
    "nothing": lambda size: _document(b" " * size + b"{}"),
    "lists": _many(b'{"rows":[', b"[],", b"[]]}"),
    "lists in a list": _many(b'{"rows":[[', b"[]," + b" " * 18, b"[]]]}"),
    "many lists in a list": _many(b'{"rows":[[', b"[],", b"[]]]}"),
    "numbers": _many(b'{"losses":[', b"1.5,", b'"x"]}'),
    "numbers in a row": _many(b'{"rows":[[', b"1.5,", b"1]]}"),
    "texts": _many(b'{"notes":[', b'"ab",', b"3]}"),
    "a long text": _many(b'{"label":"', b"x", b'"}'),
    "long numbers": _many(b'{"losses":[', b"9" * 4000 + b",", b"1]}"),
    "names": _many(b'{"outside":{', b'"ab":1,', b'"b":1}}'),
    "unknown members": _many(b'{"x":[', b"1,", b"1]}"),
    "deep": lambda size: _document(b'{"rows":' + b"[" * (size // 24) + b" " * (size // 2) + b"}"),
    "spaces": _many(b'{"rows":[', b" ", b"3]}"),
    "one row over and over": _many(b'{"rows":[', b'[0,0,"activation",1.5,"ok"],', b"3]}"),
    "rows, and a wrong one": lambda size: _document(
        b'{"rows":['
        + b",".join(b'[0,%d,"activation",1.5,"ok"]' % step for step in range(min(size // 35, 1_000_000)))
        + b",3]}"
    ),
    "too large": lambda size: _document(b'{"rows":[' + b"1" * LIMITS["run"] + b"]}"),
}
"""Files whose checksum is right, of about so many bytes."""


class Cost(NamedTuple):
    """What it takes to refuse a file."""

    seconds: float
    """Of the processor."""
    megabytes: float
    """Of memory above the process's before."""
    why: str


def cost_of(data: bytes) -> Cost:
    """Refuse a run file, in a process of its own."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "folder" / "runs" / "SP" / "64-0.json"
        path.parent.mkdir(parents=True)
        path.write_bytes(data)
        del data
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            start, before = time.process_time(), _resident()
            try:
                coordcheck.load(Path(name) / "folder")
                why = ""
            except CoordCheckError as error:
                why = str(error)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            os.write(writer, json.dumps([time.process_time() - start, peak - before, why]).encode())
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as answer:
            found = Cost(*json.loads(answer.read()))
        os.waitpid(child, 0)
    return found


def _resident() -> float:
    """Memory of this process, in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise OSError("the system does not tell the memory of a process")


def figures(count: int = 20_000) -> Figures:
    """How files that are wrong are taken: crashes and silent changes must be 0."""
    return {**outcomes(count, count // 2)[0], **costs()}


def costs(size: int = 60 * 2**20) -> Figures:
    """The largest cost of refusing any of the crafted files."""
    found = [cost_of(make(size)) for make in CRAFTED.values()]
    return {
        f"slowest refusal of {size >> 20} MiB, s": round(max(cost.seconds for cost in found), 2),
        f"largest memory of a refusal of {size >> 20} MiB, MB": round(max(cost.megabytes for cost in found)),
    }


if __name__ == "__main__":
    given = [int(word) for word in sys.argv[1:3]]
    count, first = [*given, *(2000, 0)[len(given) :]]
    told, crashes = outcomes(count, count // 2, first=first)
    for name, value in {**told, **costs()}.items():
        print(f"{name:44} {value}")
    for crash, numbers in sorted(crashes.items(), key=lambda item: -len(item[1])):
        print(f"  {len(numbers):5} {crash} (mutants {', '.join(map(str, numbers[:3]))})")
