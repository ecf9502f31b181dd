"""Where a command's answer goes: to standard output, alone there when a machine reads it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from io import StringIO
from typing import Any, TextIO

from coordcheck.common.escaping import told
from coordcheck.common.letters import HANDLER
from coordcheck.common.redaction import redacted

TEXT_WIDTH = 100  # columns where no terminal sets another width


def plain_text(renderable: Any) -> str:
    """What rich renders, as it is printed where the output is no terminal."""
    from rich.console import Console

    file = StringIO()
    options: dict[str, Any] = {"force_terminal": False, "force_jupyter": False, "color_system": None}
    Console(file=file, width=TEXT_WIDTH, **options).print(renderable)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


class Output:
    """The stream of a command's answer.

    Attributes:
        lost: whether something could not be written, and nobody had left on purpose (as `| head -1` does).
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream  # None where standard output was closed
        self.lost = False

    def say(self, text: str) -> None:
        """Write a line, or several, of our own words, with names and paths in them."""
        self.hand(told(text))

    def hand(self, document: str) -> None:
        """Write a document as it is."""
        self._write(lambda stream: print(document, file=stream))

    def show(self, renderable: Any) -> None:
        """Write what rich renders, with colours on a terminal."""
        from rich.console import Console

        def render(stream: TextIO) -> None:
            console = Console(file=stream)
            if not console.is_terminal:
                console = Console(file=stream, width=max(console.width, TEXT_WIDTH))
            with console.capture() as rendered:  # rich itself ends the process with code 1 when the reader has left
                console.print(renderable)
            stream.write(rendered.get())

        self._write(render)

    def _write(self, write: Callable[[TextIO], object]) -> None:
        if self._stream is None:
            return
        try:
            write(self._stream)
            self._stream.flush()
        except BrokenPipeError:  # the reader has seen enough
            self._drop()
        except (OSError, ValueError) as error:  # a full disk, a terminal that is gone, a stream that was closed
            self.lost = True
            self._drop()
            tell(f"the report could not be written: {error}")

    def _drop(self) -> None:
        """Write nowhere from now on, what is in the stream's buffer included."""
        stream, self._stream = self._stream, None
        with suppress(OSError, ValueError, AttributeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # type: ignore[union-attr]  # it is open


def tell(message: str, *, start: str = "", who: str = "coordcheck: ") -> None:
    """A line on standard error, or several; a terminal that is gone must not change how a command ends."""
    with suppress(OSError, ValueError, AttributeError):
        print(f"{start}{who}{told(redacted(message))}", file=sys.stderr, flush=True)


@contextmanager
def answering(*, alone: bool) -> Iterator[Output]:
    """The output of a command.

    Args:
        alone: nothing else may stand on standard output: whatever is printed meanwhile, by Python, by C code or by
            a worker, goes to standard error.

    Yields:
        Where the command shows, says and hands over what it found.
    """
    open_standard_streams()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal that cannot print µ must not end the run
            stream.reconfigure(errors=HANDLER)
    if not alone:
        yield Output(sys.stdout)
        return
    with _kept_apart() as stream, redirect_stdout(sys.stderr):
        yield Output(stream)


@contextmanager
def _kept_apart() -> Iterator[TextIO]:
    """Standard output as it was, while its file descriptor is that of standard error, also for workers and C code."""
    _flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        if _is_descriptor(sys.stdout, 1):
            # what a machine reads is UTF-8 wherever it runs
            with open(kept, "w", encoding="utf-8", errors="backslashreplace", closefd=False) as stream:
                yield stream
        else:  # something that stands in for it, such as the capture of a test
            yield sys.stdout
    finally:
        _flush()
        os.dup2(kept, 1)
        os.close(kept)


def _is_descriptor(stream: Any, number: int) -> bool:
    try:
        return bool(stream.fileno() == number)
    except (OSError, ValueError, AttributeError):
        return False


def _flush() -> None:
    for stream in (sys.stdout, sys.__stdout__):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()  # type: ignore[union-attr]  # None where it was closed


def open_standard_streams() -> None:
    """Give closed standard streams a place that swallows all: else the next file opened would be one of them."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            with suppress(OSError):
                # the lowest number that is free; inherited, as standard streams are: workers need them, too
                os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


@contextmanager
def streams_that_flush() -> Iterator[None]:
    """No stream of Python's is None meanwhile: loky flushes both before it starts a worker, closed ones as well."""
    closed = [name for name in ("stdout", "stderr") if getattr(sys, name) is None]
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        for name in closed:
            setattr(sys, name, nowhere)
        try:
            yield
        finally:
            for name in closed:
                setattr(sys, name, None)


def close_standard_output() -> None:
    """Nothing more on standard output: what is printed while the process ends goes to standard error."""
    _flush()
    with suppress(OSError):
        os.dup2(2, 1)
