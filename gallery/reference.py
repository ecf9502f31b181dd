"""The pages of the guide that are made of the package itself: words, columns, commands.

python gallery/reference.py     # writes them into gallery/guide/; tests say when one is stale
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

from coordcheck.cli.options import EXIT_CODES, parser
from coordcheck.reporting.glossary import FRAMES, KINDS, TERMS
from coordcheck.runs.files import replace_file

GUIDE = Path(__file__).resolve().parent / "guide"
GLOSSARY = """# Glossary

What the words of reports, figures and tables mean. `coordcheck explain TERM` says the same in a terminal: `coordcheck
explain inherited`, `coordcheck explain blows-up`.
"""
FRAMES_PAGE = """# Columns of the tables

`report.measurements`, `report.slopes` and `report.verdicts` are pandas frames; `report.culprits`, `report.layers` and
`report.parameters` are rows of `verdicts`, with the same columns. `plan` is what `coordcheck.plan` returns, `sweep`
what `coordcheck.transfer_sweep` returns, `fix` what `coordcheck.fix` returns. A column of numbers is NaN where there is no number, and a text is missing
(`isna`) where there is none. *Exponent of the width* is d log(scale) / d log(width); *power of m* is what a remedy
multiplies by, m = width / base width.

```python
import coordcheck, torch
from coordcheck.models import mlp

batch = torch.randn(16, 64), torch.randint(10, (16,))
report = coordcheck.check({"SP": mlp("SP")}, batch, loss=torch.nn.functional.cross_entropy, widths=(32, 64, 128))
culprits = report.culprits[["parameter", "cause", "lr_exponent", "init_exponent", "multiplier_exponent"]]
change = report.slopes.query("quantity == 'change' and step == 1").set_index("layer")["slope"]
final = report.measurements.query("quantity == 'activation' and step == 4").groupby(["layer", "width"])["value"].mean()
```

A baseline, which `--coordcheck-update` writes beside a test, is a JSON file and no frame: per label the *layers*, each
with its verdict and the slope that decided it (`"change at t=1": [slope, half of its 95 % interval]`), and the
*parameters*, each with its verdict, `gain` and `response`.
"""
COMMANDS = """# The command line

`coordcheck COMMAND --help` shows the same, with an example. Lists are written with commas, blanks or both: `--widths
64,128,256`, `--widths 64 128 256`. `--seeds 3` is how many; `--seeds 0,3` is which, and `--seeds 0,` seed 0 alone.

```sh
coordcheck plan train.py:build                     # parameters, roles, learning rates and cost, before any training
coordcheck run SP=train.py:build_sp µP=train.py:build_mup --batch train.py:batch --loss train.py:loss --figure check.png
coordcheck run train.py:build --set depth=4 --save-to runs/ --jobs 4 --html check.html
coordcheck diagnose train.py:build --batch train.py:batch --loss torch.nn.functional:cross_entropy
coordcheck fix train.py:build --batch train.py:batch --loss torch.nn.functional:cross_entropy -o mup.json --code mup.py
coordcheck show runs/
coordcheck show before/ after/                     # checks side by side
coordcheck figure runs/ slopes.pdf --kind slopes
coordcheck report runs/ check.html
coordcheck explain inherited                       # what a word means
```

The third is resumed by the same command when it was interrupted (seed your batch). `--timeout 600` ends a run that
hangs. Jobs of a cluster run [a part each](loop.md#clusters). [In CI](ci.md): exit codes, formats and a workflow.
[When things go wrong](faults.md): what then happens.
"""


def pages() -> dict[str, str]:
    """File name -> text of every page that is made here."""
    return {"glossary.md": glossary(), "frames.md": frames(), "commands.md": commands()}


def glossary() -> str:
    """The terms, a table per kind."""
    parts = [GLOSSARY]
    for kind, title in KINDS.items():
        parts.append(f"## {title[0].upper()}{title[1:]}\n\n| term | meaning |\n|---|---|")
        parts += [f"| `{term.name}` | {_cell(term.meaning)} |" for term in TERMS if term.kind == kind]
        parts.append("")
    return "\n".join(parts)


def frames() -> str:
    """The columns, a table per frame."""
    parts = [FRAMES_PAGE]
    for frame, columns in FRAMES.items():
        parts.append(f"## `{frame}`\n\n| column | holds | meaning |\n|---|---|---|")
        parts += [f"| `{column.name}` | {column.holds} | {_cell(column.meaning)} |" for column in columns]
        parts.append("")
    return "\n".join(parts)


def commands() -> str:
    """Every command with its options, and the exit codes."""
    parts = [COMMANDS]
    (choices,) = [action for action in parser()._actions if isinstance(action, argparse._SubParsersAction)]
    for name, command in choices.choices.items():
        parts.append(f"## `{name}`\n\n{_cell(command.description or '')}\n\n| option | meaning |\n|---|---|")
        parts += [f"| {option} | {_cell(told)} |" for option, told in _options(command)]
        parts.append("")
    codes = re.sub(r"^exit codes: ", "", EXIT_CODES).split(", ")
    parts.append("## Exit codes\n\n| code | meaning |\n|---|---|")
    parts += [f"| {code.partition(' ')[0]} | {_cell(code.partition(' ')[2])} |" for code in codes]
    return "\n".join([*parts, ""])


def _options(command: argparse.ArgumentParser) -> Iterator[tuple[str, str]]:
    """The arguments of one command, as typed, and what its help says of them."""
    for action in command._actions:
        if action.help in (None, argparse.SUPPRESS) or action.dest == "help":
            continue
        value = "" if action.nargs == 0 else action.metavar or "/".join(map(str, action.choices or ())) or "VALUE"
        several = " ..." if action.nargs in ("+", "*") else ""
        typed = ", ".join(action.option_strings) + (f" {value}" if action.option_strings and value else "")
        told = str(action.help) % {"default": action.default, "prog": command.prog}
        yield f"`{(typed or str(value)) + several}`", told


def _cell(text: str) -> str:
    """Plain text in a cell of a Markdown table."""
    return re.sub(r"([|*_<>`\[\]$~])", r"\\\1", text)


if __name__ == "__main__":
    for file, text in pages().items():
        replace_file(GUIDE / file, text.encode())
