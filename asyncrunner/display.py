"""The ways to show progress: a bar on a terminal, two lines now and then in a log, calls of a function."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, TextIO

from asyncrunner.errors import ConfigurationError
from asyncrunner.progress import Progress, ProgressUpdate, View, percent_text
from asyncrunner.text import safe_text

if TYPE_CHECKING:
    from rich.live import Live
    from rich.text import Text

__all__ = ["Lines", "as_progress", "view_of"]


def as_progress(wanted: bool | Callable[[ProgressUpdate], Any] | None, stream: TextIO | None = None) -> Progress | None:
    """What the option ``progress`` asks for: nothing, a bar (lines where there is no terminal), or calls of a function."""
    if wanted is None or wanted is False:
        return None
    if wanted is True:
        return Progress(view_of(sys.stderr if stream is None else stream))
    if not callable(wanted):
        raise ConfigurationError(f"progress={wanted!r}: give True, False or a function that takes a ProgressUpdate")
    return Progress(_Calls(wanted))


def view_of(stream: TextIO) -> View:
    """A bar on a terminal, lines elsewhere."""
    return _Bar(stream) if stream.isatty() else Lines(stream)


class _Calls:
    """Each update to a function."""

    interval = 0.5

    def __init__(self, function: Callable[[ProgressUpdate], Any]) -> None:
        self._function = function

    def show(self, update: ProgressUpdate) -> None:
        self._function(update)

    def end(self, update: ProgressUpdate) -> None:
        self._function(update)


class Lines:
    """Two lines now and then, for logs: after 5 s, and then at ever longer intervals, up to a minute."""

    def __init__(self, stream: TextIO, *, is_dated: bool = False) -> None:
        self._stream = stream
        self._is_dated = is_dated  # with the time, as the other lines of a log
        self._shown = 0

    @property
    def interval(self) -> float:
        return float(min(5 * 2 ** min(max(0, self._shown - 4), 9), 60))

    def show(self, update: ProgressUpdate) -> None:
        if self._shown:
            self.end(update)
        self._shown += 1

    def end(self, update: ProgressUpdate) -> None:
        try:
            date = time.strftime("%Y-%m-%d %H:%M:%S ") if self._is_dated else ""
            print(f"{date}{safe_text(update.batch)}: {update.counts_text}\n  {update.pace_text}", file=self._stream, flush=True)
        except (OSError, ValueError):
            pass  # nobody reads the log any more: no reason to stop working


class _Bar:
    """Two lines that stay in place; what handlers print and log scrolls by above them.

    They are no longer than they must be, so that making the terminal narrower seldom breaks them. Nothing is drawn by a
    thread, and each picture is one write, so that it neither flickers nor disturbs the loop.
    """

    interval = 0.1
    _NAME: Final = 24
    _WIDTH: Final = 30

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._live: Live | None = None
        self._width = 0
        self._drawn: list[int] = []  # the lengths of the lines
        self._moved: list[tuple[logging.StreamHandler[Any], Any]] = []

    def show(self, update: ProgressUpdate) -> None:
        if self._live is None:
            self._live = self._made()
            own = sys.stdout, sys.stderr
            self._live.start()
            self._lead_logs_past(*own)
        from rich.cells import cell_len

        with suppress(OSError, ValueError):  # rich asks stdin, which may be another terminal or none
            self._live.console.width = os.get_terminal_size(self._stream.fileno()).columns or 80
        self._clear_broken_lines()
        picture = self._picture(update)
        self._drawn = [cell_len(line) for line in picture.plain.split("\n")]
        self._live.update(picture, refresh=True)

    def _clear_broken_lines(self) -> None:
        """A terminal that was made narrower has broken the lines in two, so that they are more rows than were drawn."""
        assert self._live is not None
        console = self._live.console
        width, self._width = self._width, console.width
        rows = sum(max(0, length - 1) // console.width for length in self._drawn) if console.width < width else 0
        if rows:
            console.file.write(f"\r\x1b[{rows}A\x1b[J")

    def end(self, update: ProgressUpdate) -> None:
        if self._live is None:
            return
        try:
            self.show(update)
            sys.stdout.flush()  # a line that a handler has begun
            sys.stderr.flush()
        finally:
            self._live.stop()
            for handler, stream in self._moved:
                handler.setStream(stream)
            self._moved.clear()

    def _made(self) -> Live:
        from rich.console import Console
        from rich.live import Live

        return Live(
            console=Console(file=self._stream, markup=False, highlight=False, emoji=False),
            auto_refresh=False,
            # Only what would land on the same terminal is led past the bar; a pipe gets what was printed.
            redirect_stdout=sys.stdout.isatty(),
            redirect_stderr=self._stream is sys.stderr,
        )

    def _lead_logs_past(self, stdout: TextIO, stderr: TextIO) -> None:
        """Handlers of logging that were made before write to the streams of before, into the middle of the bar."""
        instead = {id(stdout): sys.stdout, id(stderr): sys.stderr}
        for handler in _stream_handlers():
            stream = instead.get(id(handler.stream))
            if stream is not None and stream is not handler.stream:
                self._moved.append((handler, handler.stream))
                handler.setStream(stream)

    def _picture(self, update: ProgressUpdate) -> Text:
        from rich.text import Text

        assert self._live is not None
        console = self._live.console
        fits = console.width - 1  # a full line would break in some terminals
        total = f"{update.total:,}"
        numbers = f"{update.done:>{len(total)},}/{total}"
        numbers = f"{numbers} so far" if update.share is None else f"{percent_text(update.share):>5}  {numbers}"
        name = safe_text(update.batch, limit=max(8, min(self._NAME, fits - len(numbers) - 14)))
        picture = Text(f"{name}  ", no_wrap=True, overflow="ellipsis", end="")
        width = min(self._WIDTH, fits - len(name) - len(numbers) - 4)
        if width >= 6 and update.share is not None:
            self._draw(picture, update.share, width, plain=not console.encoding.lower().startswith("utf"))
        picture.append(numbers)
        picture.truncate(fits)
        below = Text("  ", no_wrap=True, overflow="ellipsis", end="")
        below.append(update.pace_text)
        for trouble in update.troubles:
            below.append(", ").append(trouble, style="bold red" if trouble.endswith("failed") else "")
        below.truncate(fits)
        return picture.append("\n").append_text(below)

    @staticmethod
    def _draw(picture: Text, share: float, width: int, *, plain: bool) -> None:
        halves = int(share * width * 2)
        done = "#" * (halves // 2) if plain else "\u2501" * (halves // 2) + "\u2578" * (halves % 2)
        picture.append(done, style="green" if share == 1 else "cyan")
        picture.append(("-" if plain else "\u2501") * (width - len(done)), style="bright_black")
        picture.append("  ")


def _stream_handlers() -> Iterator[logging.StreamHandler[Any]]:
    named = [each for each in logging.root.manager.loggerDict.values() if isinstance(each, logging.Logger)]
    for logger in (logging.root, *named):
        for handler in logger.handlers:
            if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
                yield handler
