"""The commands of the command line and their options, without anything that they do."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from coordcheck.common.letters import recovered
from coordcheck.common.version import __version__

EXIT_CODES = (
    "exit codes: 0 width-invariant, 1 violated, 2 bad input, 3 runs missing or undecided, "
    "4 damaged or newer run file, 129 hung up, 130 interrupted, 143 terminated"
)
FORMATS = ("text", "json", "github", "junit")
FOLDER = "folders that save_to, --save-to or a Recorder wrote"
LOSS = "torch.nn.functional:cross_entropy"


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of a command; what stands after a list (`--widths 64 128 train.py:build`) is not taken for its own.

    The page that `report` writes is the last of its words, where it ends in .html.
    """
    options = parser().parse_args(arguments)
    if hasattr(options, "build"):
        for name in ("widths", "seeds"):
            places = [word for word in getattr(options, name) if ":" in word]
            options.build += places
            setattr(options, name, [word for word in getattr(options, name) if word not in places])
        if not options.build:
            parser().error(f"{options.command}: say what to build, such as train.py:build")
    for name in ("labels", "role", "fold", "set"):
        if getattr(options, name, None):
            setattr(options, name, [recovered(word) for word in getattr(options, name)])
    if options.command == "report" and options.runs[1:] and options.runs[-1].suffix.lower() in (".html", ".htm"):
        options.out = options.runs.pop()
    return options


def parser() -> argparse.ArgumentParser:
    """The parser; `command` of what it parses is the command's name."""
    program = argparse.ArgumentParser(
        prog="coordcheck",
        description="Check whether a PyTorch model keeps its scale as it gets wider.",
        epilog=f"start with:\n  coordcheck demo\n  coordcheck run train.py:build --batch train.py:batch --loss {LOSS}"
        f"\n\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    program.add_argument("--version", action="version", version=f"coordcheck {__version__}")
    commands = program.add_subparsers(metavar="COMMAND", required=True)
    for add in (
        _demo_command,
        _plan_command,
        _run_command,
        _diagnose_command,
        _fix_command,
        _show_command,
        _drawing_commands,
        _explain_command,
    ):
        add(commands)
    return program


def _demo_command(commands: Any) -> None:
    told = "SP, SP fixed and µP of a small Transformer: figures, table, page, rules and run files"
    command = _command(commands, "demo", told, "coordcheck demo")
    add = command.add_argument
    add("--out", type=Path, default=Path("coordcheck-demo"), help="folder for the results (default: %(default)s)")
    add("--jobs", type=int, default=1, help="runs side by side (default: %(default)s)")
    _quiet_option(command)


def _plan_command(commands: Any) -> None:
    told = "what a check would train: parameters, roles, learning rates and cost, without any training"
    parser = _command(commands, "plan", told, "coordcheck plan train.py:build --set depth=4")
    _factory_options(parser, widths="64 128 256 512", seeds=3)
    parser.add_argument("--steps", type=int, default=4, help="optimizer updates (default: %(default)s)")
    parser.add_argument("--axis", default="width", help="what the widths count (default: %(default)s)")
    parser.add_argument("--base", type=int, metavar="N", help="powers are of m = width / N (default: the least width)")
    parser.add_argument("--time", action="store_true", help="train the two least widths once, and say what all take")
    for name, told in (("batch", "a batch"), ("loss", "a loss")):
        parser.add_argument(f"--{name}", metavar="MODULE:NAME", help=f"{told}, as for run; looked at with --time")
    parser.add_argument("--format", choices=FORMATS, default="text", help="json, or text for all others")
    _experiment_options(_Hidden(parser))  # so that the command of a run can be planned as it is
    parser.add_argument("--fold", action="append", help=argparse.SUPPRESS)
    parser.add_argument("--verify-repeat", action="store_true", help=argparse.SUPPRESS)


class _Hidden:
    """Adds to a parser what it does not have, and shows nothing of it."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self._parser = parser

    def add_argument(self, *names: str, **settings: Any) -> None:
        with suppress(argparse.ArgumentError):  # it has this one
            self._parser.add_argument(*names, **{**settings, "help": argparse.SUPPRESS})


def _run_command(commands: Any) -> None:
    example = (
        f"coordcheck run SP=train.py:build_sp µP=train.py:build_mup --batch train.py:batch \\\n      --loss {LOSS} "
        "--figure check.png --html check.html"
    )
    told = "train build(width) at several widths, judge it and say what to change"
    parser = _command(commands, "run", told, example)
    _factory_options(parser, widths="64 128 256 512", seeds=3)
    parser.add_argument("--steps", type=int, default=4, help="optimizer updates (default: %(default)s)")
    parser.add_argument("--axis", default="width", help="what the widths count (default: %(default)s)")
    parser.add_argument(
        "--fold",
        action="append",
        default=[],
        metavar="PATH=HOW",
        help="repeated blocks as one layer along another axis, such as blocks=last (or first, mean)",
    )
    parser.add_argument("--verify-repeat", action="store_true", help="train one run twice, and say how far it differs")
    parser.add_argument("--figure-steps", **_STEPS)
    _experiment_options(parser)


def _diagnose_command(commands: Any) -> None:
    told = "say which parameter is to blame and what to multiply by which power of the width, in one or two updates"
    example = f"coordcheck diagnose train.py:build --batch train.py:batch --loss {LOSS}"
    parser = _command(commands, "diagnose", told, example)
    _factory_options(parser, widths="64 128 256", seeds=2)
    _experiment_options(parser)


def _fix_command(commands: Any) -> None:
    told = "bring a model to µP from outside of its code, diagnose it before and after, and write what to apply"
    example = f"coordcheck fix train.py:build --batch train.py:batch --loss {LOSS} -o mup.json --code mup.py"
    parser = _command(commands, "fix", told, example)
    _factory_options(parser, widths="64 128 256", seeds=2)
    add = parser.add_argument
    add("--base", type=int, default=64, metavar="N", help="the width that stays as it is (default: %(default)s)")
    add(
        "--rounds",
        type=int,
        default=4,
        metavar="N",
        help="times that rules are applied, at most (default: %(default)s)",
    )
    decay = "what becomes of weight decay where the learning rate changes: keep it, or keep constant what it pulls by"
    add("--weight-decay", choices=("keep", "constant"), default="keep", help=f"{decay} (default: %(default)s)")
    add("-o", "--out", type=Path, metavar="FILE", help="write the rules, for coordcheck.Fix.load")
    add("--code", type=Path, metavar="FILE", help="write them as a Python function that needs torch alone")
    _training_options(parser)
    add("--figure", type=Path, metavar="FILE", help="also check the model before and after, and draw both")
    _view_options(parser)
    add("--html", type=Path, metavar="FILE", help="also write the page of that check")
    add("--format", choices=FORMATS[:3], default="text", help="of the answer (default: %(default)s)")
    _quiet_option(parser)
    parser.set_defaults(expect=None, save_to=None, resume=None)


def _show_command(commands: Any) -> None:
    told = "print the report of a folder of run files, or of several"
    parser = _command(commands, "show", told, "coordcheck show before/ after/")
    _folder_options(parser)
    parser.add_argument("--tolerance", type=float, help="of a slope (default: the check's own)")
    parser.add_argument("--expect", metavar="NAME", help="mup, sp, ntk or mean-field (default: the check's own)")
    parser.add_argument("--html", **_HTML)
    parser.add_argument("--format", choices=FORMATS, default="text", help="of the report (default: %(default)s)")
    _notes_option(parser)


def _drawing_commands(commands: Any) -> None:
    figure = _command(commands, "figure", "draw a folder of run files", "coordcheck figure runs/ check.svg")
    _folder_options(figure)
    figure.add_argument("out", type=Path, help="file to write (.png, .svg, .pdf)")
    kinds = ("divergence", "slopes", "exponents")
    figure.add_argument("--kind", choices=kinds, default="divergence", help="(default: %(default)s)")
    figure.add_argument("--quantity", choices=("activation", "mean_abs", "change"), help="(default: the figure's own)")
    figure.add_argument("--steps", dest="figure_steps", **_STEPS)
    _view_options(figure)

    told = "write the page of a folder of run files: verdicts, culprits, figures and every layer, in one HTML file"
    page = _command(commands, "report", told, "coordcheck report runs/ check.html")
    _folder_options(page, also=", and last the page to write (default: report.html)")
    page.set_defaults(out=Path("report.html"))


def _explain_command(commands: Any) -> None:
    told = "say what a word of a report means: a verdict, a cause, a column; without one, list them"
    parser = _command(commands, "explain", told, "coordcheck explain inherited")
    parser.add_argument("words", nargs="*", metavar="TERM", help="such as blows-up, multiplier, @linear")


def _folder_options(parser: argparse.ArgumentParser, also: str = "") -> None:
    """The options of commands that read run files."""
    parser.add_argument("runs", type=Path, nargs="+", metavar="DIR", help=FOLDER + also)
    told = "show these, in this order (default: all, in the order in which they were checked)"
    parser.add_argument("--labels", nargs="+", metavar="LABEL", help=told)


def _notes_option(parser: argparse.ArgumentParser | _Hidden) -> None:
    parser.add_argument("-v", "--notes", action="store_true", help="print every note, however many there are")


def _factory_options(parser: argparse.ArgumentParser, *, widths: str, seeds: int) -> None:
    """The options of commands that build models."""
    add = parser.add_argument
    add("build", nargs="*", metavar="[LABEL=]MODULE:FUNCTION", help="module or file.py, and its build(width)")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="a keyword argument for build; repeat for more")
    several = f"at least 3, or fewer with --save-to: a part of a check (default: {widths})"
    add("--widths", nargs="+", default=widths.split(), metavar="N", help=several)
    which = f"how many, or which: 0,3 or 0 3 or, for one alone, 0, (default: {seeds})"
    add("--seeds", nargs="+", default=[str(seeds)], metavar="N", help=which)
    add(
        "--role",
        action="append",
        default=[],
        metavar="GLOB=ROLE",
        help="role of a parameter where its shapes do not tell, such as 'head.*=readout'",
    )


def _experiment_options(parser: argparse.ArgumentParser | _Hidden) -> None:
    """The options of commands that report on what they trained."""
    _training_options(parser)
    add = parser.add_argument
    add("--expect", metavar="NAME", help="whose exponents: mup, sp, ntk or mean-field (default: mup)")
    add("--save-to", type=Path, metavar="DIR", help="write run files; the same command resumes")
    add("--resume", type=Path, metavar="DIR", help="the same, of a folder that must exist: finish what is missing")
    add("--figure", type=Path, metavar="FILE", help="also draw it (.png, .svg, .pdf)")
    _view_options(parser)
    add("--html", **_HTML)
    add("--format", choices=FORMATS, default="text", help="of the report (default: %(default)s)")
    _notes_option(parser)
    _quiet_option(parser)


def _training_options(parser: argparse.ArgumentParser | _Hidden) -> None:
    """The options of commands that train."""
    add = parser.add_argument
    add("--batch", metavar="MODULE:NAME", help="a batch, several, or a function of the seed (or build returns a Trial)")
    add("--loss", metavar="MODULE:NAME", help="loss(model, batch), or a criterion of torch.nn.functional")
    add("--probe", metavar="MODULE:NAME", help="the diagnosis's own tiny batch, or `none` for no diagnosis")
    add("--tolerance", type=float, default=0.25, help="of a slope (default: %(default)s)")
    add("--device", help="where to train (default: where build puts the model)")
    add("--jobs", type=int, default=1, help="runs side by side (default: %(default)s)")
    add("--timeout", type=float, metavar="SECONDS", help="that a run may take; then it is killed, and the others go on")


_HTML: Any = {"type": Path, "metavar": "FILE", "help": "also write the page"}
_STEPS: Any = {
    "nargs": "+",
    "metavar": "T",
    "help": "which steps the figure shows: 0,1,4 or 0 1 4 (default: six that tell most)",
}


def _view_options(parser: argparse.ArgumentParser | _Hidden) -> None:
    """What a figure shows, and how large it is."""
    told = "only these layers of the figure: names or globs, such as 'blocks.0.*'"
    parser.add_argument("--layers", nargs="+", metavar="GLOB", help=told)
    parser.add_argument("--figsize", type=_size, metavar="WxH", help="of the figure, in inches, such as 7x3")


def _size(text: str) -> tuple[float, float]:
    """Width and height, of 7x3, 7,3 or 7×3.

    Raises:
        ArgumentTypeError: anything else.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)[x×,](\d+(?:\.\d+)?)", text.strip())
    if found is None:
        raise argparse.ArgumentTypeError(f"must be width and height in inches, such as 7x3, got {text!r}")
    return float(found[1]), float(found[2])


def _quiet_option(parser: argparse.ArgumentParser | _Hidden) -> None:
    parser.add_argument("-q", "--quiet", action="store_true", help="do not say on stderr how far the runs are")


def _command(commands: Any, name: str, text: str, example: str) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog=f"example:\n  {example}\n\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.set_defaults(command=name)
    return made
