"""Run one call of ``Control`` for a command, show progress if the call takes long, and print text or JSON."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

from asyncrunner.admin.inspection.inspection import Inspection
from asyncrunner.admin.opened_file import OnProgress
from asyncrunner.admin.read_models import Progress
from asyncrunner.cli.command import EXIT_FAILED, Exit
from asyncrunner.errors import ConfigurationError
from asyncrunner.text.escaping import counted, json_text, safe_text

if TYPE_CHECKING:
    from asyncrunner.admin.control import Control

T = TypeVar("T")
_PROGRESS_INTERVAL_SECONDS: Final = 0.5


def with_inspection(db: str, call: Callable[[Inspection], Awaitable[T]]) -> T:
    """Open *db* for reading only, await *call* with its ``Inspection`` and return the value. Raises AsyncRunnerError."""

    async def run() -> T:
        async with Inspection(db) as inspection:
            return await call(inspection)

    return asyncio.run(run())


def with_control(db: str, call: Callable[[Control], Awaitable[T]]) -> T:
    """Open *db*, await *call* with its ``Control`` and return the value. Raises AsyncRunnerError."""
    return with_progress(db, lambda control, _: call(control))


def with_progress(db: str, call: Callable[[Control, OnProgress], Awaitable[T]]) -> T:
    """Do the same for a *call* with many steps: it also gets the function that shows its progress on a terminal."""
    from asyncrunner.admin.control import Control  # a command that only reads starts faster without it

    async def run() -> T:
        progress = _Progress()
        try:
            async with Control(db, progress=progress) as control:
                return await call(control, progress.step)
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


def print_ids(ids: Iterable[str]) -> None:
    """Print ids on stdout, one a line, for ``read_ids`` of another command; on a terminal they are escaped.

    Exits with EXIT_FAILED, after the other ids, if an id cannot be a line: it has a line break, or only spaces.
    """
    is_terminal = sys.stdout.isatty()
    omitted = 0
    for key in ids:
        if is_terminal:
            sys.stdout.write(f"{safe_text(key, limit=1000)}\n")
        elif not key.strip() or "\n" in key or "\r" in key:
            omitted += 1
        else:
            sys.stdout.write(f"{key}\n")
    if omitted:
        print_note(
            f"{counted(omitted, 'id')} with a line break or only spaces omitted; `asyncrunner export --fields id` has all ids"
        )
        raise Exit(EXIT_FAILED)


async def all_ids(ids: AsyncIterator[str]) -> list[str]:
    """Return the ids as a list."""
    return [key async for key in ids]


async def require_batch(inspection: Inspection, batch: str | None) -> None:
    """Raise ConfigurationError if the file has several batches and none is given: an id does not name its batch."""
    if batch is None and len(await inspection.batches()) > 1:
        raise ConfigurationError("there are several batches, and an id alone does not name its batch; give one with --batch")


def read_ids(arguments: Sequence[str] | None) -> list[str] | None:
    """Return the ids in the arguments, or one id per line of stdin for ``-``, or None if there are no arguments."""
    if arguments is not None and list(arguments) == ["-"]:
        return [line.rstrip("\r\n") for line in sys.stdin if line.strip()]
    return list(arguments) if arguments else None


def end_without_ids(ids: Sequence[str] | None, document: Mapping[str, object] | None, *, effect: str = "changed") -> None:
    """End the command with exit code 0, like ``xargs -r``, if stdin had no ids: a list that matches nothing is no mistake.

    *document* is printed as JSON if it is not None. *effect* is what the command does to items.
    """
    if ids is None or ids:
        return
    print_note(f"no ids were given on standard input: nothing was {effect}")
    if document is not None:
        print_json(document)
    raise Exit(0)


class _Progress:
    """A line on the terminal with the number of items that are done, drawn every 0.5 s while a command runs."""

    def __init__(self) -> None:
        self._is_shown = sys.stderr.isatty()
        self._next = time.monotonic() + _PROGRESS_INTERVAL_SECONDS
        self._width = 0
        self.changed = 0

    def __call__(self, changed: int) -> None:
        """Record the number of changed items."""
        self.changed = changed

    def step(self, progress: Progress) -> None:
        """Draw the progress, if the previous drawing is old enough."""
        if self._is_shown and time.monotonic() >= self._next:
            self._next = time.monotonic() + _PROGRESS_INTERVAL_SECONDS
            self._draw(f"{progress.done:,} of {counted(progress.of, 'item')} ...")

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
