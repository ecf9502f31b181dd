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
POWER = """
    def power(table, name):
        return next((e for glob, e in table.items() if fnmatch.fnmatchcase(name, glob)), 0)
"""
INIT = """
        for p, name in names.items():
            if power(init, name):
                p.mul_(m ** power(init, name))
"""
ROWS = """
        for name, dim, places, e in rows:
            p = next(p for p in names if names[p] == name)
            factors = torch.ones(p.shape[dim], dtype=p.dtype, device=p.device)
            factors[list(places)] = m**e
            p.mul_(factors.view([-1 if d == p.dim() + dim else 1 for d in range(p.dim())]))
"""
GROUPS = """
    for opt in optimizer if isinstance(optimizer, (list, tuple)) else [optimizer]:
        groups = []
        for group in opt.param_groups:
            parts = {}
            for p in group["params"]:
                parts.setdefault(KEY, []).append(p)
            for e, params in parts.items():
                groups.append({**group, "params": params, CHANGED})
        opt.param_groups[:] = groups
"""
CHANNELS = """
    for path, axis, places, e in channels:
        def times(module, args, out, axis=axis, places=list(places), f=m**e):
            factors = torch.ones(out.shape[axis], dtype=out.dtype, device=out.device)
            factors[places] = f
            factors = factors.view([-1 if d == out.dim() + axis else 1 for d in range(out.dim())])
            return out * factors
        modules[path].register_forward_hook(times)
"""
INPUTS = """
    for path, e in inputs.items():
        modules[path].register_forward_pre_hook(lambda module, args, f=m**e: (args[0] * f, *args[1:]))
"""
OUTPUTS = """
    for path, e in outputs.items():
        modules[path].register_forward_hook(lambda module, args, out, f=m**e: out * f)
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
    uses_torch = values or any(at.channels for at in wanted.times)
    imports = [*(["fnmatch"] if wanted.init or groups else []), *(["torch"] if uses_torch else [])]
    parts = [
        f"def {name}(model, optimizer, width, base_width={book.base_width}):",
        '    """muP for this model: call it once, before the first step, and before a scheduler is made."""',
        f"    import {', '.join(imports)}" if imports else "",
        "    m = width / base_width",
        _table("init", _globs(wanted.init, book.names), "powers of m of initial values"),
        _table("lr", _globs(wanted.learning_rate, book.names), "of learning rates"),
        _table("eps", _globs(wanted.eps, book.names), "of eps"),
        _rows(wanted),
        POWER if wanted.init or groups else "",
        "    names = {p: name for name, p in model.named_parameters()}" if values or groups else "",
        "    with torch.no_grad():" if values else "",
        INIT if wanted.init else "",
        ROWS if wanted.rows else "",
        _splitting(wanted, book) if groups else "",
        *_hooks(wanted, book),
    ]
    return "\n".join(part.strip("\n") for part in parts if part) + "\n"


def _globs(powers: Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
    """Powers by glob, where a glob stands for all names of its kind and for no other, else by name."""
    kinds: dict[tuple[str, float], list[str]] = {}
    for name, power in powers.items():
        kinds.setdefault((starred(name, PARTS), power), []).append(name)
    found = {}
    for (_, power), alike in kinds.items():
        columns = zip(*(name.split(".") for name in alike), strict=True)
        glob = ".".join(_escaped(column[0]) if len(set(column)) == 1 else "*" for column in columns)
        matched = {name for name in (*names, *powers) if fnmatchcase(name, glob)}
        several = len(alike) > 1 and matched == set(alike)
        found.update(dict.fromkeys([glob] if several else map(_escaped, alike), power))
    return found


def _escaped(name: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", name)


def _table(name: str, powers: Mapping[str, float], comment: str) -> str:
    items = [f"{key!r}: {power:g}" for key, power in powers.items()]
    return _wrapped(name, "{", items, "}", comment) if items else ""


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
    both = bool(wanted.learning_rate and wanted.eps)
    table = "lr" if wanted.learning_rate else "eps"
    key = f'power({table}, names.get(p, ""))'
    changed = f'"{table}": group["{table}"] * m**e'
    if both:
        key = '(power(lr, names.get(p, "")), power(eps, names.get(p, "")))'
        changed = '"lr": group["lr"] * m**e[0], "eps": group["eps"] * m**e[1]'
    if wanted.learning_rate and book.weight_decay == "constant":
        changed += f', "weight_decay": group["weight_decay"] * m**-{"e[0]" if both else "e"}'
    return GROUPS.replace("KEY", key).replace("CHANGED", changed)


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
    plain: dict[Side, dict[str, float]] = {Side.INPUT: {}, Side.OUTPUT: {}}
    items = []
    keeps: list[bool] = []
    for at, power in wanted.times.items():
        path = "" if at.module == ROOT else at.module
        if at.channels:
            _one_axis(at.channels)
            keeps.append(bool(at.without) and f"{path}.bias" in book.names)
            items.append(f"({path!r}, -{round(at.channels[1].start)}, {_places(at.channels)}, {power:g}")
        else:
            plain[at.side][path] = power
    channels, ends = CHANNELS, [")"] * len(items)
    if any(keeps):  # a bias that is not multiplied
        channels = channels.replace("places, e in", "places, e, keeps in").replace("f=m**e", "f=m**e, keeps=keeps")
        channels = channels.replace("* factors\n", "* factors + (module.bias * (1 - factors) if keeps else 0)\n")
        ends = [f", {keep})" for keep in keeps]
    items = [item + end for item, end in zip(items, ends, strict=True)]
    return [
        "    modules = dict(model.named_modules())",
        *([_table("inputs", plain[Side.INPUT], "of what modules take"), INPUTS] if plain[Side.INPUT] else []),
        *([_table("outputs", plain[Side.OUTPUT], "of what modules give"), OUTPUTS] if plain[Side.OUTPUT] else []),
        *([_wrapped("channels", "[", items, "]", "of some channels of that"), channels] if items else []),
    ]


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
