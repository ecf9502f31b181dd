"""Which saved runs a report is of: of which folders and labels, in which order."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from coordcheck.common.errors import CoordCheckError
from coordcheck.runs.arguments import folder_path, suggestion
from coordcheck.runs.names import same_label
from coordcheck.runs.records import RunKey, RunRecord


def in_order(records: Iterable[RunRecord], labels: Iterable[str]) -> list[RunRecord]:
    """The runs with their labels in this order; those of other labels follow, in the order in which they come."""
    places = {same_label(label): place for place, label in enumerate(labels)}
    return sorted(records, key=lambda record: places.get(same_label(record.key.label), len(places)))


def selected(records: Sequence[RunRecord], labels: Iterable[str]) -> list[RunRecord]:
    """The runs of these labels alone, in this order.

    Raises:
        CoordCheckError: a label that no run has, one given twice, or none.
    """
    known = list(dict.fromkeys(record.key.label for record in records))
    spelled = {same_label(label): label for label in known}
    wanted = [labels] if isinstance(labels, str) else list(labels)
    for label in wanted:
        if not isinstance(label, str) or same_label(label) not in spelled:
            near = suggestion(label, known) if isinstance(label, str) else ""
            raise CoordCheckError(f"there is no label {label!r}{near}; known are {', '.join(map(repr, known))}.")
    forms = [same_label(label) for label in wanted]
    if not forms or len(set(forms)) < len(forms):
        raise CoordCheckError(f"labels must be one or more of {', '.join(map(repr, known))}, each once, got {wanted}.")
    return in_order([record for record in records if same_label(record.key.label) in forms], wanted)


def typed(words: Iterable[str], known: Iterable[str]) -> list[str]:
    """Labels as one types them: words that are labels, or several divided by commas.

    >>> typed(["SP,µP", "a, b"], ["SP", "µP", "a, b"])
    ['SP', 'µP', 'a, b']
    """
    forms = {same_label(label) for label in known}
    found: list[str] = []
    for word in words:
        parts = [word] if same_label(word) in forms else [part.strip() for part in word.split(",")]
        found += [part for part in parts if part]
    return found


def told_apart(folders: Mapping[Path, Sequence[RunRecord]]) -> list[RunRecord]:
    """The runs of several folders; a label that two of them have gets the name of its folder: `build (after)`.

    Raises:
        CoordCheckError: a folder has a label of that very name already.
    """
    owners: dict[str, set[Path]] = {}
    for folder, records in folders.items():
        for record in records:
            owners.setdefault(same_label(record.key.label), set()).add(folder)
    short = len({folder.name for folder in folders}) == len(folders) and all(folder.name for folder in folders)
    found, taken = [], dict[str, tuple[Path, str]]()
    for folder, records in folders.items():
        for record in records:
            label = record.key.label
            if len(owners[same_label(label)]) > 1:
                label = f"{label} ({folder.name if short else folder})"
            if taken.setdefault(same_label(label), (folder, record.key.label)) != (folder, record.key.label):
                raise CoordCheckError(f"two folders have runs of {label!r}. Load them one by one, or rename a folder.")
            found.append(replace(record, key=RunKey(label, record.key.width, record.key.seed)))
    return found


def folder_paths(folder: object) -> list[Path]:
    """One folder, or several that are distinct.

    Raises:
        CoordCheckError: none, or the same one twice.
    """
    given = [folder] if isinstance(folder, (str, os.PathLike)) else folder
    if not isinstance(given, Iterable):
        raise CoordCheckError(f"give the path of a folder of run files, or several, got {folder!r}.")
    paths = list[Path]()
    for one in given:
        folder_path("a folder of run files", one)
        paths.append(Path(one))
    if not paths:
        raise CoordCheckError("give a folder of run files: the one that save_to= wrote.")
    real = [os.path.realpath(path) for path in paths]
    twice = [path for path, place in zip(paths, real, strict=True) if real.count(place) > 1]
    if twice:
        raise CoordCheckError(f"the folder {twice[0]} is given twice.")
    return paths
