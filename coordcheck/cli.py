"""The command line. Heavy imports happen inside the commands, so that `--help` answers at once."""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from coordcheck.errors import CoordCheckError, IncompleteCheck, SweepInterrupted
from coordcheck.options import parsed

TEXT_WIDTH = 100  # columns when the output is no terminal
TERMINATED = 143
MIN_WIDTHS = 3  # slopes.MIN_WIDTHS, which would load numpy before anything was looked at


class _Terminated(KeyboardInterrupt):
    """SIGTERM, as from a scheduler that preempts the job: what is done is kept, as with Ctrl-C."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = parsed(arguments)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal that cannot print µ must not end the run
            stream.reconfigure(errors="replace")
    try:
        with _terminable():
            code = COMMANDS[options.command](options)
        sys.stdout.flush()
        return code
    except CoordCheckError as error:
        print(f"coordcheck: {in_flags(str(error))}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt as stop:  # Ctrl-C, or SIGTERM
        print(f"\ncoordcheck: {stop if isinstance(stop, SweepInterrupted) else 'interrupted'}", file=sys.stderr)
        return TERMINATED if _terminated(stop) else SweepInterrupted.exit_code
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception:  # of the user's own code; Python's exit code for it, 1, means "violated" here
        traceback.print_exc()
        return CoordCheckError.exit_code


def _terminated(error: BaseException | None) -> bool:
    """Whether SIGTERM is what an exception, or one that it replaced, came from."""
    return error is not None and (isinstance(error, _Terminated) or _terminated(error.__context__))


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends the command as Ctrl-C does."""

    def stop(number: int, frame: Any) -> None:
        raise _Terminated

    if threading.current_thread() is not threading.main_thread():  # only there can a handler be set
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


_ARGUMENTS = "loss|batch|widths|seeds|steps|expect|roles|tolerance|device|jobs|save_to|axis|probe|fold"


def in_flags(message: str) -> str:
    """A message about arguments of Python, told in the options of the command line.

    >>> in_flags("Pass widths=(64, 128, 256, ...).")
    'Pass --widths 64 128 256.'
    >>> in_flags("pass loss=torch.nn.functional.cross_entropy")
    'pass --loss torch.nn.functional:cross_entropy'
    """

    def flag(found: re.Match[str]) -> str:
        name, value = found["name"], found["value"].strip("()\"'")
        value = value if value.endswith(",") else value.replace(",", "").removesuffix(" ...")  # (0,) is a list of one
        dotted = re.fullmatch(r"([a-z_.]+)\.(\w+)", value)
        option = "--role" if name == "roles" else f"--{name.replace('_', '-')}"
        return f"{option} {dotted[1]}:{dotted[2]}" if dotted else f"{option} {value}".rstrip()

    message = re.sub(rf"^(?P<name>{_ARGUMENTS}) must", r"\g<name>= must", message)
    return re.sub(rf"\b(?P<name>{_ARGUMENTS})=(?P<value>\([^)]*\)|\"[^\"]*\"|[\w.]*\w|)", flag, message)


def _demo(options: Any) -> int:
    from coordcheck.demo import MUP, SP, run_demo
    from coordcheck.progress import silent
    from coordcheck.verdicts import Verdict

    with silent(options.quiet):
        report = run_demo(options.out, jobs=options.jobs)
    _print(report)
    print(f"wrote {options.out / 'report.html'}, and the figures, the table and the run files beside it")
    # the demo is a check of this installation: SP must fail and µP must pass
    return 0 if report.status[SP].violated and report.status[MUP] is Verdict.OK else 1


def _plan(options: Any) -> int:
    from coordcheck.plans import plan
    from coordcheck.targets import factories, keyword_values

    builds = factories(options.build, keyword_values(options.set))
    found = plan(builds, roles=_roles(options.role), steps=options.steps, axis=options.axis, **_grid(options))
    if options.format == "json":
        print(found.to_json())
    else:
        _print(found)
    code: int = found.exit_code
    return code


def _run(options: Any) -> int:
    from coordcheck.checks import check
    from coordcheck.progress import silent

    arguments = _experiment(options)
    fold = _pairs(options.fold, "PATH=HOW, such as blocks=last")
    with silent(options.quiet):
        report = check(**arguments, steps=options.steps, axis=options.axis, fold=fold)
    return _finish(report, options, arguments)


def _diagnose(options: Any) -> int:
    from coordcheck.checks import diagnose
    from coordcheck.progress import silent

    arguments = _experiment(options)
    with silent(options.quiet):
        report = diagnose(**arguments)
    return _finish(report, options, arguments, kind="exponents")


def _experiment(options: Any) -> dict[str, Any]:
    """The arguments that every command that trains hands on."""
    from coordcheck.targets import factories, keyword_values, resolve

    if options.figure is not None:
        _check_suffix(options.figure)
    for path in (options.figure, options.html):  # before the training rather than after it
        if path is not None and not os.access(next(p for p in path.absolute().parents if p.exists()), os.W_OK):
            raise CoordCheckError(f"cannot write {path}: its folder may not be written to.")
    given: dict[str, Any] = {name: getattr(options, name) for name in ("expect", "tolerance", "device", "jobs")}
    probe, grid = options.probe or "auto", _grid(options)
    if _folder(options) is None and _is_part(grid):
        listed = ", ".join(map(str, grid["widths"]))
        raise CoordCheckError(
            f"a verdict needs at least {MIN_WIDTHS} distinct widths, got {len(grid['widths'])} ({listed}). "
            "Pass widths=(64, 128, 256), or save_to=DIR to run a part of a check, such as one job's of a cluster."
        )
    given |= grid
    return given | {
        "build": factories(options.build, keyword_values(options.set)),
        "batch": _named("--batch", options.batch),
        "loss": _named("--loss", options.loss),
        "probe": {"auto": "auto", "none": None}[probe] if probe in ("auto", "none") else resolve(probe),
        "roles": _roles(options.role),
        "save_to": _folder(options),
    }


def _grid(options: Any) -> dict[str, Any]:
    """Widths and seeds, as numbers."""
    from coordcheck.arguments import distinct_widths, seeds_of, words_of

    return {"widths": distinct_widths(words_of(options.widths)), "seeds": seeds_of(options.seeds)}


def _is_part(grid: Mapping[str, Any]) -> bool:
    """Whether these are too few widths for a verdict."""
    return len(grid["widths"]) < MIN_WIDTHS


def _named(option: str, target: str | None) -> Any:
    """The object that an option names."""
    from coordcheck.targets import resolve

    if target is not None and ":" not in target:
        raise CoordCheckError(f"{option} must be MODULE:NAME or FILE.py:NAME, such as {_SUCH[option]}, got {target!r}.")
    return None if target is None else resolve(target)


_SUCH = {"--batch": "train.py:batch", "--loss": "torch.nn.functional:cross_entropy"}


def _roles(pairs: Sequence[str]) -> dict[str, str] | None:
    return _pairs(pairs, "GLOB=ROLE, such as 'head.*=readout'")


def _pairs(pairs: Sequence[str], what: str) -> dict[str, str] | None:
    """`NAME=VALUE` texts; a name may hold `=` itself."""
    for pair in pairs:
        if "=" not in pair:
            raise CoordCheckError(f"{pair!r} must be {what}.")
    return {glob: role for glob, _, role in (pair.rpartition("=") for pair in pairs)} or None


def _folder(options: Any) -> Path | None:
    """Where the run files go: a folder to resume from must hold some."""
    if options.resume is None:
        found: Path | None = options.save_to
        return found
    resumed: Path = options.resume
    if options.save_to not in (None, resumed):
        raise CoordCheckError("give --save-to or --resume, not two folders.")
    if not any(resumed.glob("runs/*/*.json")):
        raise CoordCheckError(f"there is nothing to resume in {resumed}: it holds no run files. Start with --save-to.")
    return resumed


def _show(options: Any) -> int:
    return _finish(_loaded(options, tolerance=options.tolerance, expect=options.expect), options)


def _loaded(options: Any, **criteria: Any) -> Any:
    """The report of the folders that an option names, with the labels that are wanted."""
    from coordcheck.labels import typed
    from coordcheck.report import load

    report = load(options.runs, **criteria)
    return report if options.labels is None else report.select(typed(options.labels, report.labels))


def _figure(options: Any) -> int:
    _loaded(options).figure(options.kind, quantity=options.quantity, path=options.out)
    print(f"wrote {options.out}")
    return 0


def _report(options: Any) -> int:
    report = _loaded(options)
    report.save_html(options.out)
    print(f"wrote {options.out}")
    code: int = report.exit_code
    return code


def _finish(report: Any, options: Any, arguments: Mapping[str, Any] | None = None, kind: str = "divergence") -> int:
    """Print a report in the form that was asked for, draw what was asked for, and give its exit code."""
    if arguments and _is_part(arguments):
        return _saved_part(report, arguments["save_to"])
    if options.format == "json":
        print(report.to_json())
    elif options.format == "junit":
        from coordcheck.formats import junit

        print(junit(report))
    elif options.format == "github":
        _tell_github(report, (arguments or {}).get("build", {}))
    else:
        _print(report, every_note=options.notes)
    wanted = {name: getattr(options, name, None) for name in ("figure", "html")}
    if wanted["figure"]:
        report.figure(kind, path=wanted["figure"])
    if wanted["html"]:
        report.save_html(wanted["html"])
    if options.format == "text" and any(wanted.values()):
        print(f"wrote {', '.join(str(path) for path in wanted.values() if path)}")
    code: int = report.exit_code
    return code


def _saved_part(report: Any, folder: Path) -> int:
    """Say how far the whole is: too few widths for a verdict are no bad input where other jobs run the others."""
    from coordcheck.report import load

    whole, own = load(folder), {record.key for record in report.records}
    done = {record.key for record in whole.records if record.finished}
    for record in report.missing:
        print(f"{record.key}: {record.outcome.value}: {record.reason}", file=sys.stderr)
    saved = len(own & done)
    print(
        f"{saved} of the {len(own)} runs of this part are saved, and {len(done)} of the {len(whole.records)} runs that "
        f"{folder} is to hold so far.\nWhen all are: coordcheck show {shlex.quote(str(folder))}"
    )
    return 0 if saved == len(own) else IncompleteCheck.exit_code


def _tell_github(report: Any, builds: Mapping[str, Any]) -> None:
    """Annotations on standard output; the job summary in the file that GitHub names, where there is one."""
    from coordcheck.formats import github, markdown
    from coordcheck.targets import source_line

    places = {label: place for label, build in builds.items() if (place := source_line(build)) is not None}
    print(github(report, places))
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if summary:
        with open(summary, "a", encoding="utf-8") as file:
            file.write(markdown(report))


def _check_suffix(path: Path) -> None:
    """Refuse a figure's file name before the training rather than after it."""
    from coordcheck.figures.style import check_suffix

    check_suffix(path)


def _print(report: Any, *, every_note: bool = False) -> None:
    from rich.console import Console

    if every_note:
        from coordcheck.text import render

        report = render(report, len(report.notes))
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(console.width, TEXT_WIDTH))
    console.print(report)


COMMANDS: dict[str, Callable[[Any], int]] = {
    "demo": _demo,
    "plan": _plan,
    "run": _run,
    "diagnose": _diagnose,
    "show": _show,
    "figure": _figure,
    "report": _report,
}
