"""Run one call of ``Control`` for a command, show progress if the call takes long, and print text or JSON."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar

from asyncrunner.admin.control import Control
from asyncrunner.errors import ConfigurationError
from asyncrunner.text.escaping import counted, json_text, safe_text

T = TypeVar("T")
_PROGRESS_INTERVAL_SECONDS: Final = 0.5


def with_control(db: str, call: Callable[[Control], Awaitable[T]]) -> T:
    """Open *db*, await *call* with its ``Control`` and return the value. Raises AsyncRunnerError."""

    async def run() -> T:
        progress = _Progress()
        try:
            async with Control(db, progress=progress) as control:
                return await call(control)
        except asyncio.CancelledError:  # Ctrl-C cancels the call
            if progress.changed:
                progress.end()
                changed = counted(progress.changed, "item")
                print_note(f"interrupted after at least {changed}; run the same command again for the remaining items")
            raise
        finally:
            progress.end()

    return asyncio.run(run())


def print_json(value: Any) -> None:
    """Print *value* as one JSON document on stdout."""
    sys.stdout.write(json_text(value) + "\n")


def print_lines(lines: Sequence[str]) -> None:
    """Print lines of data on stdout."""
    sys.stdout.write("".join(f"{line}\n" for line in lines))


def print_note(line: str) -> None:
    """Print a note for the user on stderr."""
    print(line, file=sys.stderr)


def read_ids(arguments: Sequence[str] | None) -> list[str] | None:
    """Return the ids in the arguments, or one id per line of stdin for ``-``, or None if there are no arguments.

    Raises ConfigurationError if stdin has no ids.
    """
    if arguments is not None and list(arguments) == ["-"]:
        ids = [line.rstrip("\r\n") for line in sys.stdin if line.strip()]
        if not ids:
            raise ConfigurationError("stdin contains no ids; give one id per line")
        return ids
    return list(arguments) if arguments else None


class _Progress:
    """A line on the terminal with the number of changed items, drawn every 0.5 s while a command runs."""

    def __init__(self) -> None:
        self._is_shown = sys.stderr.isatty()
        self._next = time.monotonic() + _PROGRESS_INTERVAL_SECONDS
        self._width = 0
        self.changed = 0

    def __call__(self, changed: int) -> None:
        self.changed = changed
        if self._is_shown and time.monotonic() >= self._next:
            self._next = time.monotonic() + _PROGRESS_INTERVAL_SECONDS
            self._draw(safe_text(f"{changed:,} items ..."))

    def end(self) -> None:
        if self._width:
            self._draw("")
            sys.stderr.write("\r")
            sys.stderr.flush()
            self._width = 0

    def _draw(self, text: str) -> None:
        sys.stderr.write(f"\r{text:<{self._width}}")
        sys.stderr.flush()
        self._width = len(text)
