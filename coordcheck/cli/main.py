"""The command line. Heavy imports happen inside the commands, so that `--help` answers at once."""

from __future__ import annotations

import importlib
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from os import _exit as leave
from typing import Any, NoReturn

from coordcheck.cli.answers import finish
from coordcheck.cli.experiments import experiment, grid_of, named, pairs_of, roles_of, view
from coordcheck.cli.options import parsed
from coordcheck.common.errors import CoordCheckError, IncompleteCheck, SweepInterrupted
from coordcheck.common.interrupts import Stopped, asked, deferred, look, stoppable
from coordcheck.common.interrupts import exit_code as stopped_code
from coordcheck.common.isolation import kept_alive, summary
from coordcheck.common.output import answering, close_standard_output, tell

_TRAINING, _READING = ("demo", "plan", "run", "diagnose", "fix"), ("show", "figure", "report")
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
    "base_width|base|loss|batch|widths|seeds|steps|expect|roles|tolerance|device|jobs|timeout|save_to|axis|probe|fold"
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
        option = {"roles": "--role", "base_width": "--base"}.get(name, f"--{name.replace('_', '-')}")
        return f"{option} {dotted[1]}:{dotted[2]}" if dotted else f"{option} {value}".rstrip()

    message = re.sub(rf"^(?P<name>{_ARGUMENTS}) must", r"\g<name>= must", message)
    return re.sub(rf"\b(?P<name>{_ARGUMENTS})=(?P<value>\([^)]*\)|\"[^\"]*\"|[\w.]*\w|)", flag, message)


def _demo(options: Any) -> int:
    from coordcheck.analysis.verdicts import Verdict
    from coordcheck.checks.demo import FIXED, MUP, SP, run_demo
    from coordcheck.training.progress import silent

    with silent(options.quiet):
        report = run_demo(options.out, jobs=options.jobs)
    options.output.show(report)
    options.output.say(f"wrote {options.out / 'report.html'}, and the figures, the table and the run files beside it")
    # the demo is a check of this installation: SP must fail, and µP pass, as SP does once it is fixed
    passes = all(report.status.get(label) is Verdict.OK for label in (FIXED, MUP))
    return 0 if report.status[SP].violated and passes else 1


def _plan(options: Any) -> int:
    from coordcheck.checks.plans import plan
    from coordcheck.cli.targets import factories, keyword_values

    builds = factories(options.build, keyword_values(options.set))
    settings: dict[str, Any] = {name: getattr(options, name) for name in ("steps", "axis", "base")}
    if options.time:
        settings |= {"timed": True, "batch": named("--batch", options.batch), "loss": named("--loss", options.loss)}
    found = plan(builds, roles=roles_of(options.role), **settings, **grid_of(options))
    if options.format == "json":
        options.output.hand(found.to_json())
    else:
        options.output.show(found)
    code: int = found.exit_code
    return code


def _run(options: Any) -> int:
    from coordcheck.checks.check import check
    from coordcheck.training.progress import silent

    arguments = experiment(options)
    fold = pairs_of(options.fold, "PATH=HOW, such as blocks=last")
    arguments |= {"steps": options.steps, "axis": options.axis, "fold": fold}
    with silent(options.quiet):
        report = check(**arguments)
        repeated = _repeated(report, arguments) if options.verify_repeat else ""
    code = finish(report, options, arguments)
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

    arguments = experiment(options)
    with silent(options.quiet):
        report = diagnose(**arguments)
    return finish(report, options, arguments, kind="exponents")


def _fix(options: Any) -> int:
    from coordcheck.checks.fixing.verb import fix
    from coordcheck.cli.answers import finish_fix
    from coordcheck.training.progress import silent

    arguments = experiment(options)
    if len(arguments["build"]) > 1:
        raise CoordCheckError(f"fix takes one model, got {len(arguments['build'])}: fix each by itself.")
    (build,) = arguments["build"].values()
    given = {name: value for name, value in arguments.items() if name not in ("build", "expect", "save_to")}
    settings = {name: getattr(options, name) for name in ("rounds", "weight_decay")}
    with silent(options.quiet):
        found = fix(build, **given, **settings, base_width=options.base)
        if options.figure is not None or options.html is not None:
            _ = found.report
    return finish_fix(found, options, build)


def _show(options: Any) -> int:
    return finish(_loaded(options, tolerance=options.tolerance, expect=options.expect), options)


def _loaded(options: Any, **criteria: Any) -> Any:
    """The report of the folders that an option names, with the labels that are wanted."""
    from coordcheck.reporting.report import load
    from coordcheck.runs.selection import typed

    report = load(options.runs, **criteria)
    return report if options.labels is None else report.select(typed(options.labels, report.labels))


def _figure(options: Any) -> int:
    _loaded(options).figure(options.kind, quantity=options.quantity, path=options.out, **view(options))
    options.output.say(f"wrote {options.out}")
    return 0


def _report(options: Any) -> int:
    report = _loaded(options)
    report.save_html(options.out)
    options.output.say(f"wrote {options.out}")
    code: int = report.exit_code
    return code


def _explain(options: Any) -> int:
    from coordcheck.reporting.glossary import explain, listing

    options.output.say(explain(options.words) if options.words else listing())
    return 0


COMMANDS: dict[str, Callable[[Any], int]] = {
    "demo": _demo,
    "plan": _plan,
    "run": _run,
    "diagnose": _diagnose,
    "fix": _fix,
    "show": _show,
    "figure": _figure,
    "report": _report,
    "explain": _explain,
}
