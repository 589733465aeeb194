"""Make stdin, stdout and stderr harmless: a stream that is closed or cannot be written ends no run and fails no item."""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class LossyFile(io.FileIO):
    """A file that drops data that cannot be written, for example on a full disk; ``failure`` is the first error."""

    failure: OSError | None = None

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            written = super().write(data)
        except OSError as error:
            self.failure = self.failure or error
            written = None
        return memoryview(data).nbytes if written is None else written  # None: a full pipe that does not block


class LossyStream(io.TextIOWrapper):
    """A text stream on an open descriptor whose output is dropped once the stream is broken; no call raises OSError."""

    def __init__(self, descriptor: int, encoding: str | None = None) -> None:
        self._file = LossyFile(descriptor, "w", closefd=False)
        super().__init__(
            io.BufferedWriter(self._file), encoding=encoding or "utf-8", errors="backslashreplace", line_buffering=True
        )

    @property
    def failure(self) -> OSError | None:
        """The first error while writing, or None."""
        return self._file.failure


def open_closed_streams() -> None:
    """Open the null device for each of the descriptors 0, 1 and 2 that is closed.

    Otherwise the next file that the program opens would get the descriptor, and output would be written to that file.
    ``sys.stdin`` stays None, so that a command that needs its input can report that stdin is closed.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free descriptor, which is this one


def make_stderr_lossy() -> None:
    """Drop text for stderr that cannot be written, in the whole program."""
    sys.stderr = _lossy(sys.stderr, 2)


def make_stdout_lossy() -> None:
    """Drop text for stdout that cannot be written. Otherwise a handler that prints would fail after the reader has ended."""
    sys.stdout = _lossy(sys.stdout, 1)


def stdout_failure() -> OSError | None:
    """Return the error with which a lossy stdout dropped text, or None."""
    return sys.stdout.failure if isinstance(sys.stdout, LossyStream) else None


def _lossy(stream: TextIO | None, descriptor: int) -> TextIO:
    if stream is None:  # the descriptor was closed when the program started
        return LossyStream(descriptor)
    if type(stream) is not io.TextIOWrapper:
        return stream  # a program that calls the command line has replaced the stream
    stream.flush()
    return LossyStream(stream.fileno(), stream.encoding)
