"""Run the lessons, each in its own process, and write what is committed of them.

    python gallery/make.py --check              # small size, nothing in the tree touched: what CI runs
    python gallery/make.py                      # small size, figures and tables into gallery/_build/, and README.md
    python gallery/make.py --full               # full size: gallery/images/, gallery/tables/ and README.md
    python gallery/make.py --full plot_limits   # these lessons alone, and README.md
    python gallery/make.py --page               # README.md alone

The exit code is 1 when a lesson fails: its assertion does not hold, it raises, warns, or leaves out a figure it names.
What a lesson made is kept only if it passed. README.md is made of docstrings; --check says when it is stale.
"""

from __future__ import annotations

import argparse
import ast
import io
import os
import re
import subprocess
import sys
import tempfile
import time
import tokenize
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path

from coordcheck.runs.files import replace_file

HERE = Path(__file__).resolve().parent
CAPTION = "What to see: "
TIME_LIMIT = 7200.0  # seconds for one lesson; the ablations train for most of an hour
CHAPTERS = (
    ("What the check shows", ("plot_sp_versus_mup_*", "plot_square_root_*", "plot_parametrizations*", "plot_muon_*")),
    ("What the plain check does not see", ("plot_ntk_*", "plot_bug_zoo*", "plot_found_in_the_wild*")),
    ("What it is good for", ("plot_transfer*", "plot_rules*", "plot_fix_*", "plot_ablations*")),
    ("Other axes, real models", ("plot_beyond_*", "plot_real_models*")),
    ("What no check of this kind can see", ("plot_limits*",)),
)
INTRODUCTION = """# Gallery

What the check shows, and what it cannot show: one lesson per script. Each states a claim, draws it, and ends with an
assertion of it, so a claim that stops being true fails in CI.

```sh
python gallery/plot_limits.py                          # one lesson, small: seconds
python gallery/make.py --check                         # all of them, small: minutes
python gallery/make.py --full                          # all of them, as shown here; writes this page, too
```

As a site, with the code of every lesson beside its output:

```sh
pip install ".[docs]" && sphinx-build -W gallery gallery/_build/site
```
"""


@dataclass(frozen=True)
class Lesson:
    """One script, read but not run."""

    path: Path

    @property
    def stem(self) -> str:
        return self.path.stem

    @cached_property
    def source(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.source)

    @cached_property
    def paragraphs(self) -> list[str]:
        """The docstring's paragraphs as Markdown, each on one line; the first is the title."""
        title, _, rest = (ast.get_docstring(self.tree) or "").partition("\n")
        return [title, *(_markdown(paragraph) for paragraph in re.split(r"\n\s*\n", rest.lstrip("=\n")))]

    @property
    def caption(self) -> str:
        """What to see in the figure; empty where the docstring does not say."""
        found = [text.removeprefix(CAPTION) for text in self.paragraphs if text.startswith(CAPTION)]
        return found[0] if found else ""

    def names(self, verb: str) -> list[str]:
        """The figures ("save") or tables ("table") that the script names, in order."""
        calls = [node for node in ast.walk(self.tree) if isinstance(node, ast.Call)]
        own = [node for node in calls if ast.unparse(node.func) == f"lesson.{verb}"]
        own.sort(key=lambda node: node.lineno)
        return [str(ast.literal_eval(node.args[1])) for node in own]

    @cached_property
    def files(self) -> list[str]:
        """What a run writes, relative to its folder."""
        return [f"images/{name}.png" for name in self.names("save")] + [
            f"tables/{name}.md" for name in self.names("table")
        ]

    @cached_property
    def code_lines(self) -> int:
        """Lines that hold code: no blank line, no comment, no docstring of the page."""
        idle = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
        lines: set[int] = set()
        for token in tokenize.generate_tokens(io.StringIO(self.source).readline):
            if token.type not in idle:
                lines.update(range(token.start[0], token.end[0] + 1))
        docstring = self.tree.body[0]
        return len(lines - set(range(docstring.lineno, (docstring.end_lineno or 0) + 1)))

    @property
    def cells(self) -> int:
        return len(re.findall(r"^# %%", self.source, re.MULTILINE))


def _markdown(text: str) -> str:
    """A paragraph of reStructuredText, of links, literals and plain text, as one line of Markdown."""
    text = re.sub(r"`([^`<]+?)\s*<([^>]+)>`_+", r"[\1](\2)", " ".join(text.split()))
    return text.replace("``", "`")


def lessons(folder: Path = HERE, names: Sequence[str] = ()) -> list[Lesson]:
    """The lessons of a folder in the order of the chapters, or those that are named."""
    scripts = {path.stem: Lesson(path) for path in sorted(folder.glob("plot_*.py"))}
    unknown = sorted({Path(name).stem for name in names} - set(scripts))
    if unknown:
        raise SystemExit(f"there is no lesson {', '.join(unknown)}; known are {', '.join(scripts)}.")
    ordered = [lesson for _, globs in CHAPTERS for lesson in matching(scripts.values(), globs)]
    ordered += [lesson for stem, lesson in scripts.items() if lesson not in ordered]
    return [lesson for lesson in ordered if not names or lesson.stem in {Path(name).stem for name in names}]


def matching(found: Iterable[Lesson], globs: Sequence[str]) -> list[Lesson]:
    """The lessons of a chapter, in the order of its globs."""
    every = list(found)
    return [lesson for glob in globs for lesson in every if fnmatchcase(lesson.stem, glob)]


def run(lesson: Lesson, folder: Path, *, full: bool = False) -> tuple[float, str]:
    """(seconds, what went wrong or "") of one lesson, whose files reach `folder` if nothing did."""
    started = time.perf_counter()
    threads = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error", "MPLBACKEND": "Agg"}
    with tempfile.TemporaryDirectory() as made:
        command = [sys.executable, str(lesson.path), f"--out={made}", *(["--full"] if full else [])]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=TIME_LIMIT, env=os.environ | threads, check=False
            )
        except subprocess.TimeoutExpired:
            return time.perf_counter() - started, f"not finished after {TIME_LIMIT:g} s"
        missing = [name for name in lesson.files if not (Path(made) / name).exists()]
        failure = f"{done.stdout}{done.stderr}".strip() if done.returncode else ""
        failure = failure or (f"it did not write {', '.join(missing)}" if missing else "")
        if not failure:
            for name in lesson.files:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                replace_file(folder / name, (Path(made) / name).read_bytes())
    return time.perf_counter() - started, failure


def readme(found: Sequence[Lesson], folder: Path = HERE) -> str:
    """The text of README.md: per chapter every lesson's title, claim, figures, caption, tables and script."""
    parts = [INTRODUCTION]
    for title, globs in CHAPTERS:
        chapter = matching(found, globs)
        parts += [f"## {title}\n"] if chapter else []
        parts += [_section(lesson, folder) for lesson in chapter]
    return "\n".join(parts)


def _section(lesson: Lesson, folder: Path) -> str:
    title, claim = lesson.paragraphs[:2]
    parts = [f"### {title}", claim]
    parts += [f"![{title}](images/{name}.png)" for name in lesson.names("save")]
    parts += [f"*What to see:* {lesson.caption}"]
    for name in lesson.names("table"):
        table = folder / "tables" / f"{name}.md"
        parts += [table.read_text(encoding="utf-8").rstrip()] if table.exists() else []
    return "\n\n".join([*parts, f"[{lesson.path.name}]({lesson.path.name})"]) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print the times and what failed, write README.md; 1 when anything failed."""
    parser = argparse.ArgumentParser(description="Run the lessons of the gallery and write what is committed of them.")
    parser.add_argument("names", nargs="*", help="lessons, such as plot_limits; all when none is named")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--full", action="store_true", help="full size, into gallery/images and gallery/tables")
    size.add_argument("--check", action="store_true", help="small size, into a temporary folder; is README.md stale?")
    size.add_argument("--page", action="store_true", help="run nothing: write README.md alone")
    parser.add_argument("--jobs", type=int, default=2, help="lessons side by side (2)")
    parser.add_argument("--folder", type=Path, default=HERE, help="where the lessons are (this script's folder)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        target = Path(temporary) if options.check else options.folder if options.full else options.folder / "_build"
        chosen = [] if options.page else lessons(options.folder, options.names)
        failures = _run_all(chosen, target, options)
    page, text = options.folder / "README.md", readme(lessons(options.folder), options.folder)
    if not options.check:
        replace_file(page, text.encode())
    elif not options.names and (not page.exists() or page.read_text(encoding="utf-8") != text):
        failures["README.md"] = "it is stale: run python gallery/make.py --page, look at it, and commit it"
    for name, failure in failures.items():
        print(f"\nFAILED {name}\n{failure}", file=sys.stderr)
    return 1 if failures else 0


def _run_all(chosen: Sequence[Lesson], target: Path, options: argparse.Namespace) -> dict[str, str]:
    failures = {}
    with ThreadPoolExecutor(max(1, options.jobs)) as pool:
        waiting = [(lesson, pool.submit(run, lesson, target, full=options.full)) for lesson in chosen]
        for lesson, outcome in waiting:
            seconds, failure = outcome.result()
            print(f"{seconds:7.1f} s  {'FAILED' if failure else 'ok':6}  {lesson.stem}", flush=True)
            if failure:
                failures[lesson.path.name] = failure
    return failures


if __name__ == "__main__":
    sys.exit(main())
