"""Files of JSON with a checksum, read so that what is wrong with one costs little.

    {"format":"coordcheck run","schema":1,"content":{...},"sha256":"..."}

A file is looked at from outside first: what it is, its size, its first bytes, its checksum, how densely its brackets
stand. Its content is then taken apart piece by piece, and refused at the first piece that is wrong. So a file of
64 MiB that is no run takes its own size in memory, and some tenths of a second.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from coordcheck.common.errors import RunFileError
from coordcheck.runs.reading import Wrong, distinct, no_constant

T = TypeVar("T")
Members = Iterator[tuple[str, Any]]
SCHEMA = 1
LIMITS = {"run": 64 * 2**20, "experiment": 4 * 2**20, "rules": 16 * 2**20}
"""Bytes; a run of 5000 layers and 4 steps has about 10 MB, one of 64 steps 50 MB."""
DENSITY = 10  # bytes per bracket at least: a row of a run has 18 and more
WINDOW = 2**16  # characters that are looked at together
PIECE = 2**22  # characters of one item of a list, or of one member that is no list
HEAD = b'{"format":"coordcheck '
TAIL = re.compile(rb',"sha256":"([0-9a-f]{64})"}\n\Z')
TAIL_BYTES = len(',"sha256":""}\n') + 64
_SPACE = re.compile(r"[ \t\n\r]*")
_SCAN = json.JSONDecoder(parse_constant=no_constant, object_pairs_hook=distinct).scan_once  # type: ignore[attr-defined]  # Python's own, in C


def read_document(path: Path, kind: str, read: Callable[[Members], T]) -> T:
    """What a reader makes of the content of a document.

    Args:
        path: the file.
        kind: "run", "experiment" or "rules".
        read: takes the content's members as they come, each name with its value; a list is an iterator of its items,
            which is used up before the next member is asked for.

    Returns:
        What `read` returned.

    Raises:
        RunFileError: not a regular file, too large, changed while it was read, damaged, truncated, not written by
            coordcheck, of another kind, written by a newer version, or refused by the reader.
    """
    data = _checked_bytes(path, LIMITS[kind])
    try:
        return read(_content(path, kind, Pieces(data)))
    except Wrong as error:
        refuse(path, f"is not a coordcheck {kind} file: {error}")
    except (ValueError, RecursionError) as error:
        refuse(path, f"is not strict JSON: {error}")


def _content(path: Path, kind: str, pieces: Pieces) -> Members:
    seen = set()
    for name in pieces.names():
        seen.add(name)
        if name == "content" and pieces.next() == "{":
            for member in pieces.names():
                yield member, pieces.items() if pieces.next() == "[" else pieces.value()
            continue
        value = pieces.value()
        if name == "schema" and (type(value) is not int or not 1 <= value <= SCHEMA):
            refuse(path, f"has schema {value!r:.40}; this version reads up to {SCHEMA}. Upgrade coordcheck")
        if (name == "format" and value != f"coordcheck {kind}") or name == "content":
            refuse(path, f"is not a coordcheck {kind} file")
    if not {"format", "schema", "content"} <= seen:
        refuse(path, f"is not a coordcheck {kind} file: it lacks its schema, or its content")
    pieces.end()


class Pieces:
    """A JSON text, taken apart in order; what is decoded at a time is a window of it.

    Raises:
        ValueError: what follows is no JSON, or a piece is too large.
    """

    def __init__(self, data: bytes) -> None:
        self._data, self._base, self._at = data, 0, 0
        self._text = ""
        self._look(WINDOW)

    def _look(self, size: int) -> bool:
        """Have the next characters, at least so many, in the window; whether there are more than before."""
        before = len(self._text) - self._at
        self._base += self._at
        # what is written is ASCII: other characters are escaped
        self._text, self._at = self._data[self._base : self._base + size].decode("ascii"), 0
        return len(self._text) > before

    def next(self) -> str:
        """The next character that is no space; empty at the end."""
        while True:
            if self._at < len(self._text) and self._text[self._at] > " ":
                return self._text[self._at]
            space = _SPACE.match(self._text, self._at)
            self._at = space.end() if space else self._at
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._look(WINDOW):
                return ""

    def _take(self, expected: str) -> None:
        if self.next() != expected:
            raise ValueError(f"expected {expected!r} at byte {self._base + self._at}")
        self._at += 1

    def names(self) -> Iterator[str]:
        """The names of the object that is next; the value of each must be taken before the next name."""
        self._take("{")
        while self.next() != "}":
            self.next()
            name = self._scanned()
            if not isinstance(name, str):
                raise ValueError(f"expected a name at byte {self._base + self._at}")
            self._take(":")
            yield name
            if self.next() != ",":
                break
            self._at += 1
            if self.next() != '"':
                raise ValueError(f"expected a name at byte {self._base + self._at}")
        self._take("}")

    def items(self) -> Iterator[Any]:
        """The items of the list that is next."""
        self._take("[")
        if self.next() == "]":
            self._at += 1
            return
        while True:
            yield self.value()
            if self.next() != ",":
                break
            self._at += 1
        self._take("]")

    def value(self) -> Any:
        """The value that is next."""
        self.next()
        return self._scanned()

    def _scanned(self) -> Any:
        size = WINDOW
        while True:
            try:
                value, end = _SCAN(self._text, self._at)
            except (ValueError, StopIteration) as error:  # the window may end inside of the value
                failure = error
            else:
                # a number that ends with the window may go on behind it
                if end < len(self._text) or not self._more():
                    self._at = end
                    return value
                failure = ValueError("a number without an end")
            if size == PIECE and self._more():
                raise ValueError(f"a piece at byte {self._base + self._at} has more than {PIECE} characters")
            size = min(8 * size, PIECE)
            if not self._look(size):
                why = f": {failure}" if isinstance(failure, ValueError) else ""
                raise ValueError(f"no value at byte {self._base + self._at}{why}") from None

    def _more(self) -> bool:
        return self._base + len(self._text) < len(self._data)

    def end(self) -> None:
        """Make sure that nothing follows."""
        if self.next():
            raise ValueError(f"expected the end at byte {self._base + self._at}")


def _checked_bytes(path: Path, limit: int) -> bytes:
    """The bytes of a file whose checksum is right."""
    try:
        data = read_bytes(path, limit, HEAD)
    except Unreadable as reason:
        refuse(path, str(reason))
    if not data:
        refuse(path, "is not a coordcheck file")
    tail = TAIL.search(data, max(0, len(data) - TAIL_BYTES))
    if tail is None:
        refuse(path, "is truncated: its checksum is missing")
    if hashlib.sha256(memoryview(data)[: tail.start()]).hexdigest() != tail[1].decode():
        refuse(path, "is damaged: its checksum does not match its content")
    if too_dense(data):
        refuse(path, "is nothing that coordcheck writes: it holds more lists than values")
    return data


def too_dense(data: bytes) -> bool:
    """Whether a JSON text has so many lists and mappings for its size that it would fill the memory."""
    return data.count(b"[") + data.count(b"{") > 1000 + len(data) // DENSITY


class Unreadable(Exception):
    """Why the bytes of a file are not there: what it is, or what it does."""


def read_bytes(path: Path, limit: int, head: bytes = b"") -> bytes:
    """The bytes of a regular file that is not larger than `limit`; none where it does not begin with `head`.

    Raises:
        Unreadable: it cannot be read, is no regular file, is too large, or changes while it is read.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # before it is opened: some devices act when they are
            raise Unreadable("is not a regular file")
        if found.st_size > limit:
            raise Unreadable(f"has {found.st_size} bytes, more than any such file ({limit})")
        # without waiting: a FIFO may have taken its place, whose writer never comes
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(descriptor, "rb") as file:
            before = os.fstat(descriptor)
            if not stat.S_ISREG(before.st_mode):
                raise Unreadable("is not a regular file")
            if file.read(len(head)) != head:
                return b""
            file.seek(0)
            data = file.read(min(before.st_size, limit) + 1)
            after = os.fstat(descriptor)
    except (OSError, ValueError) as error:  # ValueError: a NUL in its name
        raise Unreadable(f"cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns) or len(data) != after.st_size:
        raise Unreadable("was written to while it was read")
    return data


def refuse(path: Path, why: str) -> NoReturn:
    """Say why a file is not read.

    Raises:
        RunFileError: always.
    """
    raise RunFileError(f"{path} {why}. Remove it or restore it from a copy; the other run files are not affected.")
