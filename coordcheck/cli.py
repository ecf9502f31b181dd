"""The command line. Heavy imports happen inside the commands, so that `--help` answers at once."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from coordcheck import __version__
from coordcheck.errors import CoordCheckError, SweepInterrupted

EXIT_CODES = (
    "exit codes: 0 width-invariant, 1 violated, 2 bad input, 3 runs missing or undecided, "
    "4 damaged or newer run file, 130 interrupted"
)
TEXT_WIDTH = 100  # columns when the output is no terminal


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = _parser().parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal that cannot print µ must not end the run
            stream.reconfigure(errors="replace")
    try:
        code: int = options.command(options)
        sys.stdout.flush()
        return code
    except CoordCheckError as error:
        print(f"coordcheck: {error}", file=sys.stderr)
        return error.exit_code
    except SweepInterrupted as stop:
        print(f"\ncoordcheck: {stop}", file=sys.stderr)
        return stop.exit_code
    except KeyboardInterrupt:
        print("\ncoordcheck: interrupted", file=sys.stderr)
        return SweepInterrupted.exit_code
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception:  # of the user's own code; Python's exit code for it, 1, means "violated" here
        traceback.print_exc()
        return CoordCheckError.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="coordcheck",
        description="Check whether a PyTorch model keeps its scale as it gets wider.",
        epilog=EXIT_CODES,
    )
    parser.add_argument("--version", action="version", version=f"coordcheck {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    demo = _command(
        commands, "demo", _demo, "SP against µP on a small Transformer: figure, table and run files", "coordcheck demo"
    )
    demo.add_argument(
        "--out", type=Path, default=Path("coordcheck-demo"), help="folder for the results (default: %(default)s)"
    )
    demo.add_argument("--jobs", type=int, default=1, help="runs side by side (default: %(default)s)")

    run = _command(
        commands,
        "run",
        _run,
        "train build(width) at several widths and judge it",
        "coordcheck run SP=train.py:build_sp µP=train.py:build_mup --batch train.py:batch "
        "--loss torch.nn.functional:cross_entropy --figure check.png",
    )
    _experiment_options(run, widths="64 128 256 512", seeds=3)
    run.add_argument("--steps", type=int, default=4, help="optimizer updates (default: %(default)s)")
    run.add_argument("--axis", default="width", help="what the widths count (default: %(default)s)")

    diagnosis = _command(
        commands,
        "diagnose",
        _diagnose,
        "say which parameter is to blame and what to multiply by which power of the width",
        "coordcheck diagnose train.py:build --batch train.py:batch --loss torch.nn.functional:cross_entropy",
    )
    _experiment_options(diagnosis, widths="64 128 256", seeds=2)

    show = _command(commands, "show", _show, "print the report of a folder of run files", "coordcheck show runs/")
    show.add_argument("runs", type=Path, help="folder that save_to, --save-to or a Recorder wrote")
    show.add_argument("--tolerance", type=float, help="of a slope (default: the check's own)")
    show.add_argument("--format", choices=("text", "json"), default="text", help="of the report (default: %(default)s)")

    figure = _command(commands, "figure", _figure, "draw a folder of run files", "coordcheck figure runs/ check.svg")
    figure.add_argument("runs", type=Path, help="folder that save_to, --save-to or a Recorder wrote")
    figure.add_argument("out", type=Path, help="file to write (.png, .svg, .pdf)")
    kinds = ("divergence", "slopes", "exponents")
    figure.add_argument("--kind", choices=kinds, default="divergence", help="(default: %(default)s)")
    figure.add_argument("--quantity", choices=("activation", "mean_abs", "change"), help="(default: the figure's own)")
    return parser


def _experiment_options(parser: argparse.ArgumentParser, *, widths: str, seeds: int) -> None:
    """The options of commands that train."""
    add = parser.add_argument
    add("build", nargs="+", metavar="[LABEL=]MODULE:FUNCTION", help="module or file.py, and its build(width)")
    add(
        "--batch",
        metavar="MODULE:NAME",
        help="a batch, several, or a function of the seed (or let build return a Trial)",
    )
    add("--loss", metavar="MODULE:NAME", help="loss(model, batch), or a criterion of torch.nn.functional")
    add("--widths", nargs="+", default=widths.split(), metavar="N", help=f"at least 3 (default: {widths})")
    add("--seeds", type=int, default=seeds, help="how many (default: %(default)s)")
    add("--expect", metavar="NAME", help="whose exponents: mup, sp, ntk or mean-field (default: mup)")
    add("--tolerance", type=float, default=0.25, help="of a slope (default: %(default)s)")
    add("--device", help="where to train (default: where build puts the model)")
    add("--jobs", type=int, default=1, help="runs side by side (default: %(default)s)")
    add("--save-to", type=Path, metavar="DIR", help="write run files; a second call resumes")
    add("--figure", type=Path, metavar="FILE", help="also draw it (.png, .svg, .pdf)")
    add("--format", choices=("text", "json"), default="text", help="of the report (default: %(default)s)")


def _command(
    commands: Any, name: str, handler: Callable[[Any], int], text: str, example: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog=f"example:\n  {example}\n\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=handler)
    return parser


def _demo(options: Any) -> int:
    from coordcheck.demo import MUP, SP, run_demo
    from coordcheck.verdicts import Verdict

    report = run_demo(options.out, jobs=options.jobs)
    _print(report)
    print(f"wrote {options.out / 'coordinate_check.png'}, slopes.png, exponents.png, verdicts.csv and the run files")
    # the demo is a check of this installation: SP must fail and µP must pass
    return 0 if report.status[SP].violated and report.status[MUP] is Verdict.OK else 1


def _run(options: Any) -> int:
    from coordcheck.checks import check

    report = check(**_experiment(options), steps=options.steps, axis=options.axis)
    return _finish(report, options)


def _diagnose(options: Any) -> int:
    from coordcheck.checks import diagnose

    return _finish(diagnose(**_experiment(options)), options, kind="exponents")


def _experiment(options: Any) -> dict[str, Any]:
    """The arguments that every command that trains hands on."""
    builds: dict[str, Any] = {}
    for label, build in map(_labelled, options.build):
        if label in builds:
            raise CoordCheckError(
                f"two factories are labelled {label!r}; write LABEL=MODULE:FUNCTION to tell them apart."
            )
        builds[label] = build
    if options.figure is not None:
        _check_suffix(options.figure)
    names = ("widths", "seeds", "expect", "tolerance", "device", "jobs", "save_to")
    return {
        "build": builds,
        "batch": _resolve(options.batch) if options.batch else None,
        "loss": _resolve(options.loss) if options.loss else None,
    } | {name: getattr(options, name) for name in names}


def _show(options: Any) -> int:
    from coordcheck.report import load

    return _finish(load(options.runs, tolerance=options.tolerance), options)


def _figure(options: Any) -> int:
    from coordcheck.report import load

    load(options.runs).figure(options.kind, quantity=options.quantity, path=options.out)
    print(f"wrote {options.out}")
    return 0


def _finish(report: Any, options: Any, kind: str = "divergence") -> int:
    if options.format == "json":
        print(report.to_json())
    else:
        _print(report)
    if getattr(options, "figure", None):
        report.figure(kind, path=options.figure)
    code: int = report.exit_code
    return code


def _check_suffix(path: Path) -> None:
    """Refuse a figure's file name before the training rather than after it."""
    from coordcheck.figures.style import check_suffix

    check_suffix(path)


def _print(report: Any) -> None:
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=TEXT_WIDTH)
    console.print(report)


def _labelled(target: str) -> tuple[str, Callable[[int], Any]]:
    """`LABEL=module:function`, or `module:function` labelled by the function's name."""
    label, equals, rest = target.partition("=")
    place = rest if equals else target
    build = _resolve(place)
    return (label if equals else place.rpartition(":")[2]), build


def _resolve(target: str) -> Any:
    """The object that `module:name` or `path/file.py:name` means; it runs that module, as an import does.

    Raises:
        CoordCheckError: no such module, file or name, or the module itself raised.
    """
    place, colon, name = target.rpartition(":")
    if not colon or not place or not name:
        raise CoordCheckError(f"{target!r} must be MODULE:NAME or FILE.py:NAME, such as train.py:build.")
    found = _module(place)
    for attribute in name.split("."):
        if not hasattr(found, attribute):
            raise CoordCheckError(f"{place!r} has no {attribute!r}; it must define what {target!r} names.")
        found = getattr(found, attribute)
    return found


def _module(place: str) -> Any:
    """Import a module by name or by file, with the current folder on the path, as `python -m` has it."""
    is_file = place.endswith(".py")
    folder = os.path.dirname(os.path.abspath(place)) if is_file else os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)
    if is_file and not os.path.isfile(place):
        raise CoordCheckError(f"there is no file {place!r}.")
    name = Path(place).stem if is_file else place
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise CoordCheckError(f"cannot import {place!r}: {error}.") from error
    except Exception as error:  # the user's own module
        last = "".join(traceback.format_exception(error)).strip().splitlines()[-3:]
        raise CoordCheckError(f"{place!r} raised when it was imported:\n" + "\n".join(last)) from error
    found = getattr(module, "__file__", None)
    if is_file and (found is None or os.path.realpath(found) != os.path.realpath(place)):
        raise CoordCheckError(f"{place!r} has the name of another module ({found}). Rename the file.")
    if not (found or "").startswith(sys.prefix):
        import cloudpickle

        cloudpickle.register_pickle_by_value(module)  # workers need not find the user's file
    return module
