"""The command line. Heavy imports happen inside the commands, so that `--help` answers at once."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from os import _exit as leave
from pathlib import Path
from typing import Any, NoReturn

from coordcheck.cli.options import parsed
from coordcheck.common.errors import CoordCheckError, IncompleteCheck, SweepInterrupted
from coordcheck.common.interrupts import Stopped, asked, deferred, look, stoppable
from coordcheck.common.interrupts import exit_code as stopped_code
from coordcheck.common.isolation import kept_alive, summary
from coordcheck.common.output import answering, close_standard_output, tell

MIN_WIDTHS = 3  # slopes.MIN_WIDTHS, which would load numpy before anything was looked at
_TRAINING, _READING = ("demo", "plan", "run", "diagnose"), ("show", "figure", "report")
PATIENCE = 5.0  # seconds for threads that user code has left running


def entry() -> NoReturn:
    """The program: `main`, and an end that nothing which user code left behind can put off, or change."""
    alive = kept_alive()
    alive.__enter__()  # to the very end: a function that user code registered with atexit must not end it by os._exit
    code = main()
    close_standard_output()
    ends = time.monotonic() + PATIENCE
    others = [t for t in threading.enumerate() if t is not threading.main_thread() and not t.daemon]
    for thread in others:
        thread.join(max(0.0, ends - time.monotonic()))
    running = [thread.name for thread in others if thread.is_alive()]
    if running:  # Python would wait for them for ever
        tell(f"ended while threads that were started by the code under check still ran: {', '.join(running)}")
        leave(code)
    sys.exit(code)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    try:
        with stoppable():  # before anything heavy is imported
            options = parsed(arguments)
            with answering(alone=getattr(options, "format", "text") != "text") as output, kept_alive():
                options.output = output
                code = _exit_code(options)
            return code or (IncompleteCheck.exit_code if output.lost else 0)
    except Stopped as stop:  # in the midst of telling how it ended
        return stop.exit_code


def _exit_code(options: Any) -> int:
    """Run the command, and tell how it ended. Exit code 0 is what a command has returned, and nothing else."""
    try:
        _import_for(options.command)
        code = COMMANDS[options.command](options)
        look()
        return code
    except BaseException as error:  # of user code as well: SystemExit would be taken for an answer
        if asked() or isinstance(error, KeyboardInterrupt):
            tell(str(error) if isinstance(error, SweepInterrupted) else "interrupted", start="\n")
            return stopped_code()
        if isinstance(error, CoordCheckError):
            tell(in_flags(str(error)))
            return error.exit_code
        if isinstance(error, SystemExit):
            tell(f"the code under check left by {summary(error)}")
        else:
            tell(traceback.format_exc().rstrip(), who="")
        return CoordCheckError.exit_code  # Python's own exit code for it, 1, means "violated" here


def _import_for(command: str) -> None:
    """Import what a command needs all at once: an import that is interrupted midway fails in other words."""
    with deferred():
        if command in _TRAINING:
            importlib.import_module("coordcheck.checks.check")
        elif command in _READING:
            importlib.import_module("coordcheck.reporting.report")


_ARGUMENTS = (
    "base|loss|batch|widths|seeds|steps|expect|roles|tolerance|device|jobs|timeout|save_to|axis|probe|fold"
    "|layers|figsize"
)


def in_flags(message: str) -> str:
    """A message about arguments of Python, told in the options of the command line.

    >>> in_flags("Pass widths=(64, 128, 256, ...).")
    'Pass --widths 64 128 256.'
    >>> in_flags("pass loss=torch.nn.functional.cross_entropy")
    'pass --loss torch.nn.functional:cross_entropy'
    """

    def flag(found: re.Match[str]) -> str:
        name, value = found["name"], found["value"].strip("()\"'")
        value = value.replace(", ", "x") if name == "figsize" else value
        value = value if value.endswith(",") else value.replace(",", "").removesuffix(" ...")  # (0,) is a list of one
        dotted = re.fullmatch(r"([a-z_.]+)\.(\w+)", value)
        option = "--role" if name == "roles" else f"--{name.replace('_', '-')}"
        return f"{option} {dotted[1]}:{dotted[2]}" if dotted else f"{option} {value}".rstrip()

    message = re.sub(rf"^(?P<name>{_ARGUMENTS}) must", r"\g<name>= must", message)
    return re.sub(rf"\b(?P<name>{_ARGUMENTS})=(?P<value>\([^)]*\)|\"[^\"]*\"|[\w.]*\w|)", flag, message)


def _demo(options: Any) -> int:
    from coordcheck.analysis.verdicts import Verdict
    from coordcheck.checks.demo import MUP, SP, run_demo
    from coordcheck.training.progress import silent

    with silent(options.quiet):
        report = run_demo(options.out, jobs=options.jobs)
    options.output.show(report)
    options.output.say(f"wrote {options.out / 'report.html'}, and the figures, the table and the run files beside it")
    # the demo is a check of this installation: SP must fail and µP must pass
    return 0 if report.status[SP].violated and report.status[MUP] is Verdict.OK else 1


def _plan(options: Any) -> int:
    from coordcheck.checks.plans import plan
    from coordcheck.cli.targets import factories, keyword_values

    builds = factories(options.build, keyword_values(options.set))
    settings: dict[str, Any] = {name: getattr(options, name) for name in ("steps", "axis", "base")}
    if options.time:
        settings |= {"timed": True, "batch": _named("--batch", options.batch), "loss": _named("--loss", options.loss)}
    found = plan(builds, roles=_roles(options.role), **settings, **_grid(options))
    if options.format == "json":
        options.output.hand(found.to_json())
    else:
        options.output.show(found)
    code: int = found.exit_code
    return code


def _run(options: Any) -> int:
    from coordcheck.checks.check import check
    from coordcheck.training.progress import silent

    arguments = _experiment(options)
    fold = _pairs(options.fold, "PATH=HOW, such as blocks=last")
    arguments |= {"steps": options.steps, "axis": options.axis, "fold": fold}
    with silent(options.quiet):
        report = check(**arguments)
        repeated = _repeated(report, arguments) if options.verify_repeat else ""
    code = _finish(report, options, arguments)
    if repeated:
        (options.output.say if options.format == "text" else tell)(repeated)
    return code


def _repeated(report: Any, arguments: Mapping[str, Any]) -> str:
    """Train the first run of the least width once more, and say whether it gives the same numbers."""
    from coordcheck.checks.check import check
    from coordcheck.runs.agreement import largest_difference

    first = next((r for r in report.records if r.finished and r.key.width == min(report.widths)), None)
    if first is None:
        return "no run finished that could be repeated"
    again = {"build": {first.key.label: arguments["build"][first.key.label]}, "save_to": None}
    try:
        (record,) = check(**{**arguments, **again, "widths": (first.key.width,), "seeds": (first.key.seed,)}).records
    except CoordCheckError as error:  # the report is there, and must not be lost
        return f"repeated {first.key}: {error}"
    return f"repeated {first.key}: {largest_difference(first, record)}"


def _diagnose(options: Any) -> int:
    from coordcheck.checks.check import diagnose
    from coordcheck.training.progress import silent

    arguments = _experiment(options)
    with silent(options.quiet):
        report = diagnose(**arguments)
    return _finish(report, options, arguments, kind="exponents")


def _experiment(options: Any) -> dict[str, Any]:
    """The arguments that every command that trains hands on."""
    from coordcheck.cli.targets import factories, keyword_values, resolve

    if options.figure is not None:
        _check_suffix(options.figure)
    late = [step for step in _view(options)["steps"] or () if step > getattr(options, "steps", step)]
    if late:
        raise CoordCheckError(f"--figure-steps has {late[0]}, and {options.steps} updates are made: see --steps.")
    for path in (options.figure, options.html):  # before the training rather than after it
        if path is not None and not os.access(next(p for p in path.absolute().parents if p.exists()), os.W_OK):
            raise CoordCheckError(f"cannot write {path}: its folder may not be written to.")
    given: dict[str, Any] = {
        name: getattr(options, name) for name in ("expect", "tolerance", "device", "jobs", "timeout")
    }
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
    from coordcheck.runs.arguments import distinct_widths, seeds_of, words_of

    return {"widths": distinct_widths(words_of(options.widths)), "seeds": seeds_of(options.seeds)}


def _is_part(grid: Mapping[str, Any]) -> bool:
    """Whether these are too few widths for a verdict."""
    return len(grid["widths"]) < MIN_WIDTHS


def _named(option: str, target: str | None) -> Any:
    """The object that an option names."""
    from coordcheck.cli.targets import resolve

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
    from coordcheck.reporting.report import load
    from coordcheck.runs.labels import typed

    report = load(options.runs, **criteria)
    return report if options.labels is None else report.select(typed(options.labels, report.labels))


def _figure(options: Any) -> int:
    _loaded(options).figure(options.kind, quantity=options.quantity, path=options.out, **_view(options))
    options.output.say(f"wrote {options.out}")
    return 0


def _view(options: Any) -> dict[str, Any]:
    """What the figure that was asked for shows.

    Raises:
        CoordCheckError: steps that are no numbers.
    """
    told: list[str] = getattr(options, "figure_steps", None) or []
    words = [word for given in told for word in given.split(",") if word]
    if not all(word.isdecimal() for word in words):
        raise CoordCheckError(f"the steps of a figure are numbers of updates, such as 0,1,4, got {' '.join(told)!r}.")
    layers = [glob for given in options.layers or [] for glob in given.split(",") if glob]
    steps = tuple(map(int, words)) if told else None
    return {"steps": steps, "layers": layers or None, "figsize": options.figsize}


def _report(options: Any) -> int:
    report = _loaded(options)
    report.save_html(options.out)
    options.output.say(f"wrote {options.out}")
    code: int = report.exit_code
    return code


def _finish(report: Any, options: Any, arguments: Mapping[str, Any] | None = None, kind: str = "divergence") -> int:
    """Print a report in the form that was asked for, draw what was asked for, and give its exit code."""
    from coordcheck.reporting.ci import github, junit

    output = options.output
    if arguments and _is_part(arguments):
        return _saved_part(report, arguments["save_to"], output)
    if options.format == "json":
        output.hand(report.to_json())
    elif options.format == "junit":
        output.hand(junit(report))
    elif options.format == "github":
        output.hand(github(report, _places((arguments or {}).get("build", {}))))
    else:
        output.show(_with_all_notes(report) if options.notes else report)
    wanted: list[tuple[Path | None, Callable[[Path], object]]] = [
        (getattr(options, "figure", None), lambda path: report.figure(kind, path=path, **_view(options))),
        (getattr(options, "html", None), report.save_html),
    ]
    if options.format == "github" and os.environ.get("GITHUB_STEP_SUMMARY"):
        wanted.append((Path(os.environ["GITHUB_STEP_SUMMARY"]), lambda path: _append_summary(report, path)))
    written = [(path, _written(write, path)) for path, write in wanted if path is not None]
    if options.format == "text" and any(whole for _, whole in written):
        output.say(f"wrote {', '.join(str(path) for path, whole in written if whole)}")
    code: int = report.exit_code
    # a file that was asked for and is missing is no success
    return code or (0 if all(whole for _, whole in written) else IncompleteCheck.exit_code)


def _saved_part(report: Any, folder: Path, output: Any) -> int:
    """Say how far the whole is: too few widths for a verdict are no bad input where other jobs run the others."""
    from coordcheck.checks.check import WidthWatch
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


def _places(builds: Mapping[str, Any]) -> dict[str, tuple[str, int]]:
    """File and line of each factory, for annotations."""
    from coordcheck.cli.targets import source_line

    return {label: place for label, build in builds.items() if (place := source_line(build)) is not None}


def _append_summary(report: Any, path: Path) -> None:
    """The job summary, in the file that GitHub names."""
    from coordcheck.reporting.ci import markdown

    with path.open("a", encoding="utf-8") as file:
        file.write(markdown(report))


def _check_suffix(path: Path) -> None:
    """Refuse a figure's file name before the training rather than after it."""
    from coordcheck.reporting.figures.style import check_suffix

    check_suffix(path)


def _with_all_notes(report: Any) -> Any:
    from coordcheck.reporting.text import render

    return render(report, len(report.notes))


def _explain(options: Any) -> int:
    from coordcheck.reporting.glossary import explain, listing

    options.output.say(explain(options.words) if options.words else listing())
    return 0


COMMANDS: dict[str, Callable[[Any], int]] = {
    "demo": _demo,
    "plan": _plan,
    "run": _run,
    "diagnose": _diagnose,
    "show": _show,
    "figure": _figure,
    "report": _report,
    "explain": _explain,
}
