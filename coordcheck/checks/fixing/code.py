"""Rules as a Python function that needs nothing but torch, to be pasted into a training script."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from fractions import Fraction
from typing import Any

from coordcheck.analysis.changes import Changes, changes
from coordcheck.common.errors import CoordCheckError
from coordcheck.recording.layers.activations import ROOT
from coordcheck.runs.repeats import PARTS, starred
from coordcheck.runs.rules import Linear, RuleBook
from coordcheck.runs.words import Side

WIDTH = 110  # columns of a line
LARGEST = 10**6  # denominator of a number of channels per unit of width
FIND = """
    def find(name):
        return next((powers for glob, powers in rules.items() if fnmatch.fnmatchcase(name, glob)), NONE)
"""
INIT = """
        for p, name in names.items():
            if find(name)[0]:
                p.mul_(m ** find(name)[0])
"""
ROWS = """
        for name, dim, places, e in rows:
            p = next(p for p in names if names[p] == name)
            factors = torch.ones(p.shape[dim], dtype=p.dtype, device=p.device)
            factors[list(places)] = m**e
            p.mul_(factors.view(-1, *[1] * (-1 - dim)))
"""
GROUPS = """
    for opt in optimizer if isinstance(optimizer, (list, tuple)) else [optimizer]:
        parts, groups = {}, opt.param_groups[:]
        for i, group in enumerate(groups):
            for p in group["params"]:
                parts.setdefault((i, *find(names.get(p, ""))[1:]), []).append(p)
        opt.param_groups[:] = [
            {**groups[i], "params": params, CHANGED}
            for (i, POWERS), params in parts.items()
        ]
"""
CHANNELS = """
    def times(axis, places, f, keeps=False):
        def hook(module, args, out):
            factors = torch.ones(out.shape[axis], dtype=out.dtype, device=out.device)
            factors[list(places)] = f
            factors = factors.view(-1, *[1] * (-1 - axis))
            return out * factors
        return hook
"""


def code_of(book: RuleBook, name: str) -> str:
    """The source of a function that applies the rules.

    Raises:
        CoordCheckError: the name is none of a function, or a rule is about channels that lie along several axes.
    """
    if not name.isidentifier():
        raise CoordCheckError(f"name must be that of a function, got {name!r}.")
    wanted = changes(book.rules)
    values = bool(wanted.init or wanted.rows)
    groups = bool(wanted.learning_rate or wanted.eps)
    by_name = bool(wanted.init) or groups
    uses_torch = values or any(at.channels for at in wanted.times)
    imports = [*(["fnmatch"] if by_name else []), *(["torch"] if uses_torch else [])]
    parts = [
        f"def {name}(model, optimizer, width, base_width={book.base_width}):",
        '    """muP for this model: call it once, before the first step, and before a scheduler is made."""',
        f"    import {', '.join(imports)}" if imports else "",
        "    m = width / base_width",
        _rules(wanted, book) if by_name else "",
        _rows(wanted),
        FIND.replace("NONE", repr((0,) * (3 if wanted.eps else 2))) if by_name else "",
        "    names = {p: name for name, p in model.named_parameters()}" if values or groups else "",
        "    with torch.no_grad():" if values else "",
        INIT if wanted.init else "",
        ROWS if wanted.rows else "",
        _splitting(wanted, book) if groups else "",
        *_hooks(wanted, book),
    ]
    return "\n".join(part.strip("\n") for part in parts if part) + "\n"


def _rules(wanted: Changes, book: RuleBook) -> str:
    """The table of powers by glob."""
    kinds = [wanted.init, wanted.learning_rate, *([wanted.eps] if wanted.eps else [])]
    powers = {name: tuple(kind.get(name, 0.0) for kind in kinds) for kind in kinds for name in kind}
    items = [f"{glob!r}: ({', '.join(f'{e:g}' for e in found)})" for glob, found in _globs(powers, book.names).items()]
    what = "powers of m of initial values and learning rates" + (", and of eps" if wanted.eps else "")
    return _wrapped("rules", "{", items, "}", what)


def _globs(powers: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Powers by glob, where a glob stands for all names of its kind and for no other, else by name."""
    kinds: dict[tuple[str, Any], list[str]] = {}
    for name, power in powers.items():
        kinds.setdefault((starred(name, PARTS), power), []).append(name)
    found = {}
    for (_, power), alike in kinds.items():
        columns = zip(*(name.split(".") for name in alike), strict=True)
        glob = ".".join(_escaped(column[0]) if len(set(column)) == 1 else "*" for column in columns)
        matched = {name for name in (*names, *powers) if fnmatchcase(name, glob)}
        several = len(alike) > 1 and matched == set(alike)
        found.update(dict.fromkeys([glob] if several else map(_escaped, alike), power))
    return _with_letters(found)


def _with_letters(powers: Mapping[str, Any]) -> dict[str, Any]:
    """Globs of one power that differ in a part of one letter are one: `attention.[kqv].weight`."""
    alike: dict[tuple[str, Any], list[tuple[str, str]]] = {}
    for glob, power in powers.items():
        parts = glob.split(".")
        place = next((at for at, part in enumerate(parts) if len(part) == 1 and part.isalpha()), None)
        letter = "" if place is None else parts[place]
        without = glob if place is None else ".".join([*parts[:place], "{}", *parts[place + 1 :]])
        alike.setdefault((without, power), []).append((glob, letter))
    found = {}
    for (without, power), globs in alike.items():
        letters = "".join(letter for _, letter in globs)
        found[without.replace("{}", f"[{letters}]") if len(letters) > 1 else globs[0][0]] = power
    return found


def _escaped(name: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", name)


def _wrapped(name: str, opening: str, items: Sequence[str], closing: str, comment: str = "") -> str:
    """An assignment on one line, or on as few as hold it; items are not broken."""
    remark = f"  # {comment}" if comment else ""
    line = f"    {name} = {opening}{', '.join(items)}{closing}{remark}"
    if len(line) <= WIDTH:
        return line
    glued = [item.replace(" ", "\0") for item in items]
    body = textwrap.fill(", ".join(glued), WIDTH, initial_indent=" " * 8, subsequent_indent=" " * 8,
                         break_long_words=False, break_on_hyphens=False)  # fmt: skip
    return f"    {name} = {opening}{remark}\n{body}\n    {closing}".replace("\0", " ")


def _splitting(wanted: Changes, book: RuleBook) -> str:
    """The lines that split groups."""
    changed = ['"lr": groups[i]["lr"] * m**lr'] if wanted.learning_rate else []
    changed += ['"eps": groups[i]["eps"] * m**eps'] if wanted.eps else []
    if wanted.learning_rate and book.weight_decay == "constant":
        changed.append('"weight_decay": groups[i]["weight_decay"] * m**-lr')
    return GROUPS.replace("CHANGED", ", ".join(changed)).replace("POWERS", "lr, eps" if wanted.eps else "lr")


def _rows(wanted: Changes) -> str:
    items = [
        f"({at.parameter!r}, -{_one_axis(at.channels)}, {_places(at.channels)}, {power:g})"
        for at, power in wanted.rows.items()
    ]
    return _wrapped("rows", "[", items, "]", "parameter, axis, places along it, power of m") if items else ""


def _hooks(wanted: Changes, book: RuleBook) -> list[str]:
    """The lines that put hooks on modules."""
    if not wanted.times:
        return []
    calls: dict[str, list[str]] = {}
    keeps = False
    for at, power in wanted.times.items():
        path = "" if at.module == ROOT else at.module
        if at.channels:
            _one_axis(at.channels)
            own = bool(at.without) and f"{path}.bias" in book.names
            keeps = keeps or own
            axis, last = round(at.channels[1].start), ", True" if own else ""
            call = f"register_forward_hook(times(-{axis}, {_places(at.channels)}, m**{power:g}{last}))"
        elif at.side is Side.INPUT:
            call = f"register_forward_pre_hook(lambda module, args: (args[0] * m**{power:g}, *args[1:]))"
        else:
            call = f"register_forward_hook(lambda module, args, out: out * m**{power:g})"
        calls.setdefault(call, []).append(path)
    channels = CHANNELS if keeps else CHANNELS.replace(", keeps=False", "")
    if keeps:
        channels = channels.replace("* factors\n", "* factors + (module.bias * (1 - factors) if keeps else 0)\n")
    lines = [channels] if any(at.channels for at in wanted.times) else []
    for call, paths in calls.items():
        for together in _paths(paths):
            lines.append(f"    for path in {together}:\n        model.get_submodule(path).{call}")
    return lines


def _paths(paths: Sequence[str]) -> list[str]:
    """Paths as lists: those that count one number from 0 on are one that is written as such."""
    found, counted = [], dict[str, list[str]]()
    for path in paths:
        counted.setdefault(starred(path, PARTS), []).append(path)
    rest: list[str] = []
    for alike in counted.values():
        numbers = [PARTS.findall(path) for path in alike]
        varying = [place for place, column in enumerate(zip(*numbers, strict=True)) if len(set(column)) > 1]
        if len(varying) == 1 and [row[varying[0]] for row in numbers] == [str(n) for n in range(len(alike))]:
            found.append(f"[f{_counting(alike[0], varying[0])!r} for i in range({len(alike)})]")
        else:
            rest += alike
    return [*found, *([repr(rest)] if rest else [])]


def _counting(path: str, which: int) -> str:
    """A path with `{i}` in the place of one of its numbers."""
    start, end = list(PARTS.finditer(path))[which].span()
    return f"{path[:start]}{{i}}{path[end:]}"


def _one_axis(channels: Sequence[Linear]) -> int:
    """The axis of a parameter, counted from the end, that channels lie along.

    Raises:
        CoordCheckError: they lie along several.
    """
    if channels[2].start != 1:
        raise CoordCheckError("a rule is about channels that lie along several axes: use fix.apply, or a rules file.")
    return round(channels[0].start)


def _places(channels: Sequence[Linear]) -> str:
    """The channels of a block as an expression of the width."""
    first, *runs = channels[4:]
    pairs = [(size, step) for size, step in zip(runs[::2], runs[1::2], strict=True)]
    if len(pairs) == 1 and pairs[0][1] == Linear(1.0, 0.0):
        end = Linear(first.start + pairs[0][0].start, first.slope + pairs[0][0].slope)
        return f"range({_number(end)})" if first == Linear(0.0, 0.0) else f"range({_number(first)}, {_number(end)})"
    letters = "ijklmn"[: len(pairs)]
    terms = [letter if step == Linear(1.0, 0.0) else f"{letter} * ({_number(step)})" for letter, (_, step) in zip(letters, pairs, strict=True)]  # fmt: skip  # noqa: E501
    loops = " ".join(
        f"for {letter} in range({_number(size)})" for letter, (size, _) in zip(letters, pairs, strict=True)
    )
    return f"[{' + '.join([_number(first), *terms])} {loops}]"


def _number(linear: Linear) -> str:
    start, slope = Fraction(linear.start).limit_denominator(LARGEST), Fraction(linear.slope).limit_denominator(LARGEST)
    if not slope:
        return str(round(linear.start))
    times: Any = "" if slope.numerator == 1 else f"{slope.numerator} * "
    grown = f"{times}width" if slope.denominator == 1 else f"{times}width // {slope.denominator}"
    if not start:
        return grown
    return (
        f"{grown} + {start}"
        if start.denominator == 1
        else f"({slope.numerator} * width + {start * slope.denominator}) // {slope.denominator}"
    )
