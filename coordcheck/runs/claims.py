"""Who writes into a folder of run files, with which settings: several may, where one label has one setting.

folder/.writers/lock             held for a moment, by whoever compares and writes
folder/.writers/<id>.lock        held by a sweep as long as it is at work; a crash releases it
folder/.writers/<id>.json        its settings, for the others to compare with theirs

The last one to leave removes them all.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from coordcheck.common.errors import CoordCheckError
from coordcheck.common.escaping import printable
from coordcheck.runs.agreement import differences
from coordcheck.runs.documents import Unreadable, read_bytes
from coordcheck.runs.files import replace_file
from coordcheck.runs.names import same_label

FOLDER = ".writers"
SIZE_LIMIT = 2**20  # bytes of a claim
TRIES = 100  # to lock a file that others remove: without success, the file system does not tell one file from another
PATIENCE = 10.0  # seconds to wait for another process that compares or writes
NO_LOCKS = (
    "the file system of {} has no locks: start no two checks with different settings at once into this folder ({})"
)


class Claims:
    """The writers of one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / FOLDER
        self.problem = ""
        """Why there are no locks here; empty where there are."""

    @contextmanager
    def locked(self) -> Iterator[None]:
        """A block that one process at a time is in; without locks, any.

        Raises:
            CoordCheckError: another process is in it for longer than `PATIENCE`.
        """
        with ExitStack() as stack:
            if not self._enter(stack, "lock", PATIENCE):
                who = "; ".join(_who(found) for found, _ in self._others()) or "an unknown process"
                raise CoordCheckError(
                    f"{self._folder.parent} is locked for {PATIENCE:g} s by another process: {who}. Wait for it to end."
                )
            yield

    @contextmanager
    def claimed(self, settings: Mapping[str, Mapping[str, str]]) -> Iterator[None]:
        """A block during which nobody else may write one of these labels with other settings.

        Args:
            settings: label -> settings, as in run files.

        Raises:
            CoordCheckError: another process is at work on one of the labels, with other settings.
        """
        name, own = uuid4().hex, {same_label(label): dict(found) for label, found in settings.items()}
        with ExitStack() as stack:
            stack.callback(self._tidy)
            with self.locked():
                for theirs, path in self._others():
                    self._compare(theirs, path, own)
                if self._enter(stack, f"{name}.lock", 0.0):
                    claim = self._folder / f"{name}.json"
                    about = {"process": os.getpid(), "host": platform.node(), "labels": own}
                    if not self.problem:
                        replace_file(claim, json.dumps(about).encode())
                        stack.callback(_remove, claim.with_suffix(".lock"))
                        stack.callback(_remove, claim)
            yield

    def _tidy(self) -> None:
        """Leave nothing behind where nobody else is at work."""
        with suppress(CoordCheckError, OSError):
            with self.locked():
                if not self.problem and not self._others():
                    _remove(self._folder / "lock")
            self._folder.rmdir()

    def _compare(self, claim: Mapping[str, Any], path: Path, own: Mapping[str, Mapping[str, str]]) -> None:
        for label, theirs in claim.get("labels", {}).items():
            differing = differences(theirs, own.get(label, theirs))
            if differing:
                raise CoordCheckError(
                    f"{self._folder.parent} is being written by {_who(claim)}, with other settings for {label!r}: "
                    f"{printable('; '.join(differing))}. Wait for it to end ({path} is its claim), or give another "
                    "folder."
                )

    def _enter(self, stack: ExitStack, name: str, patience: float) -> bool:
        """Take a lock until the stack is closed; False when another process has it."""
        from filelock import Timeout

        if self.problem:
            return True
        try:
            lock = self._acquired(name, patience)
        except Timeout:
            return False
        except (OSError, NotImplementedError) as error:  # of network file systems, mostly
            self.problem = NO_LOCKS.format(self._folder.parent, getattr(error, "strerror", None) or error)
            return True
        stack.callback(lock.release)
        return True

    def _acquired(self, name: str, patience: float) -> Any:
        """A lock on the file that the name stands for, whoever may have removed one of that name meanwhile."""
        from filelock import FileLock

        path = self._folder / name
        for _ in range(TRIES):
            self._folder.mkdir(exist_ok=True)
            with suppress(FileNotFoundError), path.open("ab") as before:  # held: no other file gets its number
                lock = FileLock(path, timeout=patience)
                lock.acquire()
                with suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(before.fileno()), path.stat()):
                        return lock
                lock.release()
        raise OSError(f"{path} is another file each time")

    def _others(self) -> list[tuple[dict[str, Any], Path]]:
        """The claims of sweeps at work; those of processes that crashed are removed."""
        found = []
        for claim in sorted(self._folder.glob("*.json")):
            with ExitStack() as stack:
                free = self._enter(stack, f"{claim.stem}.lock", 0.0)
            if self.problem:
                return []
            if free:
                _remove(claim)
                _remove(claim.with_suffix(".lock"))
            else:
                found.append((_read(claim), claim))
        return found


def _read(path: Path) -> dict[str, Any]:
    """A claim; empty when it is gone, or is none: a folder may come from anywhere."""
    with suppress(Unreadable, ValueError, RecursionError):
        content = json.loads(read_bytes(path, SIZE_LIMIT))
        labels = content.get("labels") if isinstance(content, dict) else None
        if isinstance(labels, dict) and all(isinstance(found, dict) for found in labels.values()):
            return dict(content)
    return {}


def _who(claim: Mapping[str, Any]) -> str:
    return printable(f"process {claim.get('process', 'unknown')} on {claim.get('host', 'an unknown host')}")


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()
