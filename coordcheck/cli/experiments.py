"""Options of the command line -> the arguments of a check."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from coordcheck.common.errors import CoordCheckError

MIN_WIDTHS = 3  # slopes.MIN_WIDTHS, which would load numpy before anything was looked at


def experiment(options: Any) -> dict[str, Any]:
    """The arguments that every command that trains hands on."""
    from coordcheck.cli.targets import factories, keyword_values, resolve

    if options.figure is not None:
        _check_suffix(options.figure)
    late = [step for step in view(options)["steps"] or () if step > getattr(options, "steps", step)]
    if late:
        raise CoordCheckError(f"--figure-steps has {late[0]}, and {options.steps} updates are made: see --steps.")
    for path in (options.figure, options.html):  # before the training rather than after it
        if path is not None and not os.access(next(p for p in path.absolute().parents if p.exists()), os.W_OK):
            raise CoordCheckError(f"cannot write {path}: its folder may not be written to.")
    given: dict[str, Any] = {
        name: getattr(options, name) for name in ("expect", "tolerance", "device", "jobs", "timeout")
    }
    probe, grid = options.probe or "auto", grid_of(options)
    if _folder(options) is None and is_part(grid):
        listed = ", ".join(map(str, grid["widths"]))
        raise CoordCheckError(
            f"a verdict needs at least {MIN_WIDTHS} distinct widths, got {len(grid['widths'])} ({listed}). "
            "Pass widths=(64, 128, 256), or save_to=DIR to run a part of a check, such as one job's of a cluster."
        )
    given |= grid
    return given | {
        "build": factories(options.build, keyword_values(options.set)),
        "batch": named("--batch", options.batch),
        "loss": named("--loss", options.loss),
        "probe": {"auto": "auto", "none": None}[probe] if probe in ("auto", "none") else resolve(probe),
        "roles": roles_of(options.role),
        "save_to": _folder(options),
    }


def grid_of(options: Any) -> dict[str, Any]:
    """Widths and seeds, as numbers."""
    from coordcheck.runs.grids import distinct_widths, seeds_of, words_of

    return {"widths": distinct_widths(words_of(options.widths)), "seeds": seeds_of(options.seeds)}


def is_part(grid: Mapping[str, Any]) -> bool:
    """Whether these are too few widths for a verdict."""
    return len(grid["widths"]) < MIN_WIDTHS


def named(option: str, target: str | None) -> Any:
    """The object that an option names."""
    from coordcheck.cli.targets import resolve

    if target is not None and ":" not in target:
        raise CoordCheckError(f"{option} must be MODULE:NAME or FILE.py:NAME, such as {_SUCH[option]}, got {target!r}.")
    return None if target is None else resolve(target)


_SUCH = {"--batch": "train.py:batch", "--loss": "torch.nn.functional:cross_entropy"}


def roles_of(pairs: Sequence[str]) -> dict[str, str] | None:
    """The roles of parameters by glob."""
    return pairs_of(pairs, "GLOB=ROLE, such as 'head.*=readout'")


def pairs_of(pairs: Sequence[str], what: str) -> dict[str, str] | None:
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


def view(options: Any) -> dict[str, Any]:
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


def places_of(builds: Mapping[str, Any]) -> dict[str, tuple[str, int]]:
    """File and line of each factory, for annotations."""
    from coordcheck.cli.targets import source_line

    return {label: place for label, build in builds.items() if (place := source_line(build)) is not None}


def _check_suffix(path: Path) -> None:
    """Refuse a figure's file name before the training rather than after it."""
    from coordcheck.reporting.figures.style import check_suffix

    check_suffix(path)
