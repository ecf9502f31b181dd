"""Run files: one checksummed JSON file per finished run, and one for the experiment.

    folder/experiment.json                       what was run, with which versions, on which machine
    folder/runs/<ascii label>/<width>-<seed>.json

Every file is a single JSON object whose last member is the SHA-256 of all bytes before it. Files are
written to a temporary name, flushed to the disk and renamed, so that a kill or a full disk leaves
either the old file or the new one. Nothing here is ever executed or unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from uuid import uuid4

from coordcheck.common.errors import CoordCheckError, RunFileError
from coordcheck.common.version import __version__
from coordcheck.runs.documents import LIMITS, SCHEMA, read_document, refuse
from coordcheck.runs.names import same_label
from coordcheck.runs.records import RunKey, RunRecord
from coordcheck.runs.schemas import read_experiment, read_run

FILES = 100_000  # run files of a folder


def write_document(path: Path, kind: str, content: Mapping[str, Any]) -> None:
    """Write one file atomically: `kind` is "run", "experiment" or "rules".

    Raises:
        CoordCheckError: the folder cannot be written (the system's reason is given), or the content is too large.
    """
    body = {"format": f"coordcheck {kind}", "schema": SCHEMA, "content": content}
    text = json.dumps(body, separators=(",", ":"), allow_nan=False).encode()[:-1]
    if len(text) > LIMITS[kind] - 1000:
        raise CoordCheckError(
            f"cannot write {path}: its {len(text)} bytes are more than a file of this kind may have ({LIMITS[kind]}). "
            "Record fewer steps or layers, or use a folder for fewer runs."
        )
    checksum = hashlib.sha256(text).hexdigest()
    replace_file(path, text + f',"sha256":"{checksum}"}}\n'.encode())


def replace_file(path: Path, data: bytes) -> None:
    """Put `data` at `path` in one step; the old file stays until the new one is on the disk.

    Raises:
        CoordCheckError: the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        why = error.strerror or error
        raise CoordCheckError(f"cannot write {path}: {why}. Give a folder that can be written.") from error
    finally:
        with suppress(OSError):  # there only when the write failed, or was interrupted
            temporary.unlink()


def slug(label: str) -> str:
    r"""The ASCII folder name of a label; labels that are not plain words get a hash, so that none collide.

    >>> slug("\u00b5P"), slug("SP"), slug("my run/2")
    ('muP', 'SP', 'my-run-2-6ab76af4')
    """
    label = same_label(label)
    plain = label.replace("\u03bc", "mu")
    # "muP" spelled in letters must not share a folder with the one spelled with the sign
    if re.fullmatch(r"[A-Za-z0-9_]{1,40}", plain) and (plain != label or "mu" not in label):
        return plain
    words = re.sub(r"[^A-Za-z0-9]+", "-", plain).strip("-")[:40] or "label"
    return f"{words}-{hashlib.sha256(label.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"


class RunFolder:
    """A folder of run files.

    Several jobs may write into one folder at the same time: each run has a file of its own.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._given = Path(path)
        self.path = Path(os.path.abspath(path))
        """Stays the same when something of the user's changes the current folder."""

    def __str__(self) -> str:
        return str(self._given)

    def run_path(self, key: RunKey) -> Path:
        return self.path / "runs" / slug(key.label) / f"{key.width}-{key.seed}.json"

    def probe(self) -> None:
        """Make sure that the folder can be written, before any time is spent on training.

        Raises:
            CoordCheckError: it cannot.
        """
        probe = self.path / f".probe-{os.getpid()}"
        replace_file(probe, b"")
        probe.unlink(missing_ok=True)

    def save(self, record: RunRecord) -> None:
        """Write one run; an earlier file of the same run is replaced."""
        write_document(self.run_path(record.key), "run", record.to_json())

    def save_experiment(
        self, criteria: Mapping[str, Any], labels: Mapping[str, Mapping[str, str]], planned: Iterable[RunKey]
    ) -> None:
        """Write how the runs are judged, what was asked for and which runs are planned.

        Earlier checks' labels and plans stay: the jobs of a cluster plan a part each.
        """
        before = self.experiment()
        plans = {label: list(before.get("planned", {}).get(label, [])) for label in labels}
        for key in planned:
            if [key.width, key.seed] not in plans[key.label]:
                plans[key.label].append([key.width, key.seed])
        content = {
            "criteria": dict(criteria),
            "labels": {**before.get("labels", {}), **labels},
            "planned": {**before.get("planned", {}), **plans},
        }
        write_document(
            self.path / "experiment.json",
            "experiment",
            content | {"versions": versions(), "machine": machine()},
        )

    def experiment(self) -> dict[str, Any]:
        """What `save_experiment` wrote, or an empty mapping when the runs came from elsewhere."""
        path = self.path / "experiment.json"
        # also a link to nowhere is one that cannot be read, and not one that is not there
        return read_document(path, "experiment", read_experiment) if os.path.lexists(path) else {}

    def records_of(self, label: str) -> Iterator[RunRecord]:
        """The runs of one label that are in the folder."""
        for path in _files_in(self.path / "runs" / slug(label)):
            yield _read_run(path)

    def find(self, key: RunKey) -> RunRecord | None:
        """The saved run of this key, if there is one."""
        path = self.run_path(key)
        if not os.path.lexists(path):
            return None
        record = _read_run(path)
        record.key, record.found = key, True  # the label as it is spelled now: the two mu signs are one label
        return record

    def records(self) -> Iterator[RunRecord]:
        """All runs in the folder, by label, width and seed.

        Yields:
            The runs one by one, each read when it is asked for.

        Raises:
            CoordCheckError: there is no such folder, or no run in it.
            RunFileError: a file cannot be trusted.
        """
        if not _is_folder(self.path):
            raise CoordCheckError(f"there is no folder {self}. Give the folder that save_to= wrote.")
        paths = [path for folder in _entries(self.path / "runs") for path in _files_in(folder)]
        if len(paths) > FILES:
            raise CoordCheckError(
                f"{self._given / 'runs'} holds {len(paths)} run files, more than can be judged together ({FILES}). "
                "Divide them over several folders."
            )
        if not paths:
            raise CoordCheckError(
                f"{self._given} has no run files in its folder runs. Give the folder that save_to= wrote."
            )
        spelled: dict[str, str] = {}  # labels that are the same after NFKC are one, as first spelled
        records = []
        for path in paths:
            record = _read_run(path)
            label = spelled.setdefault(same_label(record.key.label), record.key.label)
            record.key = RunKey(label, record.key.width, record.key.seed)
            records.append(record)
        yield from sorted(records, key=lambda record: (record.key.label, record.key.width, record.key.seed))


def _is_folder(path: Path) -> bool:
    """Whether there is a folder; what cannot be looked at is told, and not taken for one that is not there.

    Raises:
        RunFileError: its own folder may not be read, or it is a link to itself.
    """
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a NUL in its name
        return False
    except OSError as error:
        raise RunFileError(
            f"cannot read {path}: {error.strerror}. Make it readable, or give another folder."
        ) from error


def _entries(folder: Path) -> list[Path]:
    """What is in a folder, in order; nothing where there is no such folder. Hidden files are none of ours.

    Raises:
        RunFileError: it cannot be listed.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(folder / entry.name for entry in entries if not entry.name.startswith("."))
    except OSError as error:
        if isinstance(error, (FileNotFoundError, NotADirectoryError)) and not os.path.islink(folder):
            return []
        raise RunFileError(f"cannot list {folder}: {error.strerror}. Make it readable, or remove it.") from error


def _files_in(folder: Path) -> list[Path]:
    """The run files of one label's folder."""
    return [path for path in _entries(folder) if path.suffix == ".json"]


def _read_run(path: Path) -> RunRecord:
    record = read_document(path, "run", read_run)
    key = record.key
    if (path.parent.name, path.name) != (slug(key.label), f"{key.width}-{key.seed}.json"):
        refuse(path, f"holds the run of {key}, which its name does not say")
    return record


def versions() -> dict[str, str]:
    """Versions of the packages that change numbers or drawings."""
    return {"coordcheck": __version__, "python": platform.python_version()} | {
        name: _version(name) for name in ("torch", "numpy", "scipy", "pandas", "matplotlib")
    }


@cache  # reading the metadata takes some 6 ms a package
def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def machine() -> dict[str, str]:
    """The machine, for the reader of a report; never part of a run's key."""
    return {"system": platform.platform(), "processors": str(os.cpu_count())}
