"""What a command answers: text, JSON, files, and the exit code."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from coordcheck.cli.experiments import is_part, places_of, view
from coordcheck.common.errors import IncompleteCheck
from coordcheck.common.output import tell
from coordcheck.runs.files import replace_file


def finish(report: Any, options: Any, arguments: Mapping[str, Any] | None = None, kind: str = "divergence") -> int:
    """Print a report in the form that was asked for, draw what was asked for, and give its exit code."""
    from coordcheck.reporting.ci import github, junit

    output = options.output
    if arguments and is_part(arguments):
        return _saved_part(report, arguments["save_to"], output)
    if options.format == "json":
        output.hand(report.to_json())
    elif options.format == "junit":
        output.hand(junit(report))
    elif options.format == "github":
        output.hand(github(report, places_of((arguments or {}).get("build", {}))))
    else:
        output.show(_with_all_notes(report) if options.notes else report)
    wanted: list[tuple[Path | None, Callable[[Path], object]]] = [
        (getattr(options, "figure", None), lambda path: report.figure(kind, path=path, **view(options))),
        (getattr(options, "html", None), report.save_html),
    ]
    if options.format == "github" and os.environ.get("GITHUB_STEP_SUMMARY"):
        wanted.append((Path(os.environ["GITHUB_STEP_SUMMARY"]), lambda path: _append_summary(report, path)))
    lacking = _write_all(wanted, options)
    code: int = report.exit_code
    return code or lacking


def finish_fix(fix: Any, options: Any, build: Any) -> int:
    """Print a fix in the form that was asked for, write what was asked for, and give its exit code."""
    from coordcheck.reporting.ci import github

    output = options.output
    if options.format == "json":
        output.hand(fix.to_json())
    elif options.format == "github":
        label = fix.after.labels[0]
        places = places_of({label: build})
        output.hand(github(fix.after, places, told=str(fix)))
    else:
        output.show(fix)
    wanted: list[tuple[Path | None, Callable[[Path], object]]] = [
        (options.out, fix.save),
        (options.code, lambda path: replace_file(path, fix.to_code().encode())),
        (options.figure, lambda path: fix.report.figure(path=path, **view(options))),
        (options.html, lambda path: fix.report.save_html(path)),
    ]
    lacking = _write_all(wanted, options)
    code: int = fix.exit_code
    return code or lacking


def _write_all(wanted: Sequence[tuple[Path | None, Callable[[Path], object]]], options: Any) -> int:
    """Write files; 0 when all were, since a file that was asked for and is missing is no success."""
    written = [(path, _written(write, path)) for path, write in wanted if path is not None]
    if options.format == "text" and any(whole for _, whole in written):
        options.output.say(f"wrote {', '.join(str(path) for path, whole in written if whole)}")
    return 0 if all(whole for _, whole in written) else IncompleteCheck.exit_code


def _saved_part(report: Any, folder: Path, output: Any) -> int:
    """Say how far the whole is: too few widths for a verdict are no bad input where other jobs run the others."""
    from coordcheck.checks.watching import WidthWatch
    from coordcheck.reporting.report import load

    whole, own = load(folder), {record.key for record in report.records}
    if report.criteria.axis == "width":
        watch = WidthWatch()
        for record in whole.records:  # a part of one width cannot tell by itself
            watch(record)
    done = {record.key for record in whole.records if record.finished}
    for record in report.missing:
        tell(f"{record.key}: {record.outcome.value}: {record.reason}")
    saved = len(own & done)
    output.say(
        f"{saved} of the {len(own)} runs of this part are saved, and {len(done)} of the {len(whole.records)} runs that "
        f"{folder} is to hold so far.\nWhen all are: coordcheck show {shlex.quote(str(folder))}"
    )
    return 0 if saved == len(own) else IncompleteCheck.exit_code


def _written(write: Callable[[Path], object], path: Path) -> bool:
    """Write a file; the check was judged before, so that its exit code says more than a disk that is full."""
    try:
        write(path)
    except Exception as error:  # of the disk, or of drawing
        tell(f"{path} was not written: {error}")
        return False
    return True


def _append_summary(report: Any, path: Path) -> None:
    """The job summary, in the file that GitHub names."""
    from coordcheck.reporting.ci import markdown

    with path.open("a", encoding="utf-8") as file:
        file.write(markdown(report))


def _with_all_notes(report: Any) -> Any:
    from coordcheck.reporting.text import render

    return render(report, len(report.notes))
