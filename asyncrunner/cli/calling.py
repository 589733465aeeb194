"""From a command to ``Control`` and back: one call, its answer as text or JSON, and progress while it takes long."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from asyncrunner.control import Control
from asyncrunner.errors import ConfigurationError
from asyncrunner.text import counted, json_text, safe_text

__all__ = ["ask", "ids_of", "print_json", "print_lines", "say"]

T = TypeVar("T")

_PROGRESS_SECONDS: Final = 0.5


def ask(db: Path, question: Callable[[Control], Awaitable[T]]) -> T:
    """What *question* finds out of the file. Raises AsyncRunnerError."""

    async def answer() -> T:
        progress = _Progress()
        try:
            async with Control(db, progress=progress) as control:
                return await question(control)
        except asyncio.CancelledError:  # by Ctrl-C
            if progress.changed:
                progress.end()
                say(f"at least {counted(progress.changed, 'item')} done by then; the same command does the rest")
            raise
        finally:
            progress.end()

    return asyncio.run(answer())


def print_json(value: Any) -> None:
    """One document on stdout."""
    sys.stdout.write(json_text(msgspec.to_builtins(value)) + "\n")


def print_lines(lines: Sequence[str]) -> None:
    """Data, on stdout."""
    sys.stdout.write("".join(f"{line}\n" for line in lines))


def say(line: str) -> None:
    """A word to the person, on stderr."""
    print(line, file=sys.stderr)


def ids_of(given: Sequence[str] | None) -> list[str] | None:
    """The ids of the arguments, or a line an id from stdin for ``-``; None for none. Raises ConfigurationError."""
    if given is not None and list(given) == ["-"]:
        ids = [line.rstrip("\r\n") for line in sys.stdin if line.strip()]
        if not ids:
            raise ConfigurationError("no ids came in on stdin; give a line an id")
        return ids
    return list(given) if given else None


class _Progress:
    """How many items are changed by now, on a terminal, once it takes long."""

    def __init__(self) -> None:
        self._is_shown = sys.stderr.isatty()
        self._next = time.monotonic() + _PROGRESS_SECONDS
        self._width = 0
        self.changed = 0

    def __call__(self, changed: int) -> None:
        self.changed = changed
        if self._is_shown and time.monotonic() >= self._next:
            self._next = time.monotonic() + _PROGRESS_SECONDS
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
