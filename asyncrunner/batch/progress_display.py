"""Show the progress: as a bar on a terminal, as lines in a log, or by calls of a function."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, TextIO

from asyncrunner.batch.notebook_bar import NotebookBar, is_notebook
from asyncrunner.batch.progress import Progress, ProgressUpdate, View, percent_text
from asyncrunner.errors import ConfigurationError
from asyncrunner.text.cells import can_draw_blocks, cell_width
from asyncrunner.text.escaping import safe_text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text


def as_progress(option: bool | Callable[[ProgressUpdate], Any] | None, stream: TextIO | None = None) -> Progress | None:
    """Return the Progress that the option ``progress`` requests, or None for None and False.

    True shows a bar in a notebook or on a terminal, lines if *stream* (by default stderr) is not a terminal, or nothing if
    stderr is closed; a function is called with each update. Raises ConfigurationError for any other value.
    """
    if option is None or option is False:
        return None
    if option is True:
        if stream is None and is_notebook():
            return Progress(NotebookBar())
        output = sys.stderr if stream is None else stream
        return None if _is_closed(output) else Progress(view_of(output))
    if not callable(option):
        raise ConfigurationError(f"progress={option!r}: give True, False or a function that takes a ProgressUpdate")
    return Progress(_Calls(option))


def _is_closed(stream: TextIO | None) -> bool:
    return stream is None or getattr(stream, "closed", False)  # None: the descriptor was closed when the program started


def view_of(stream: TextIO) -> View:
    """Return a bar for a terminal, lines for any other stream."""
    return _Bar(stream) if stream.isatty() else Lines(stream)


class _Calls:
    """A view that calls a function with each update, every 0.5 s."""

    interval = 0.5

    def __init__(self, function: Callable[[ProgressUpdate], Any]) -> None:
        self._function = function

    def show(self, update: ProgressUpdate) -> None:
        self._function(update)

    def show_note(self, update: ProgressUpdate) -> None:
        pass  # the updates have it

    def end(self, update: ProgressUpdate) -> None:
        self._function(update)


class Lines:
    """A view that prints two lines per update, for logs: first every 5 s, then at intervals that grow to 60 s.

    A note is printed immediately.
    """

    def __init__(self, stream: TextIO, *, is_dated: bool = False) -> None:
        self._stream = stream
        self._is_dated = is_dated  # whether to print the time first, like the other lines of a log
        self._shown = 0

    @property
    def interval(self) -> float:
        return float(min(5 * 2 ** min(max(0, self._shown - 4), 9), 60))

    def show(self, update: ProgressUpdate) -> None:
        if self._shown:
            self._print_update(update)
        self._shown += 1

    def show_note(self, update: ProgressUpdate) -> None:
        self._print(f"{safe_text(update.batch)}: {safe_text(update.note or '')}")

    def end(self, update: ProgressUpdate) -> None:
        if update.total:  # else the input cannot be read or is empty
            self._print_update(update)

    def _print_update(self, update: ProgressUpdate) -> None:
        self._print(f"{safe_text(update.batch)}: {update.counts_text}\n  {update.pace_text}")

    def _print(self, text: str) -> None:
        try:
            date = time.strftime("%Y-%m-%d %H:%M:%S ") if self._is_dated else ""
            print(f"{date}{text}", file=self._stream, flush=True)
        except (OSError, ValueError):
            pass  # the stream is closed or its disk is full; this must not stop the run


class _Screen:
    """The lower lines of a terminal, which the bars of all runs of this process share.

    Two displays that redraw the same lines would overwrite each other.
    """

    def __init__(self, live: Live) -> None:
        self.live = live
        self.pictures: dict[_Bar, Text] = {}
        self.width = 0
        self.drawn: list[int] = []  # the lengths of the lines drawn last
        self.redirected: list[tuple[logging.StreamHandler[Any], Any]] = []

    def draw(self) -> None:
        from rich.cells import cell_len
        from rich.text import Text

        picture = Text("\n", end="", no_wrap=True, overflow="ellipsis").join(self.pictures.values())
        self.drawn = [cell_len(line) for line in picture.plain.split("\n")]
        self.live.update(picture, refresh=True)


_screens: Final[dict[int, _Screen]] = {}
"""The screens that bars use now, by the id of their stream."""


class _Bar:
    """A view that redraws two lines in place, below the output of handlers and logs, and above the bars of later runs.

    The lines are as short as possible, so that narrowing the terminal rarely wraps them. There is no drawing thread,
    and each redraw is one write, so that the bar neither flickers nor slows the event loop.
    """

    interval = 0.1
    _MAX_NAME_LENGTH: Final = 24
    _MAX_BAR_WIDTH: Final = 30

    def __init__(self, stream: TextIO) -> None:
        # While another bar is shown, sys.stderr is rich's proxy of the terminal.
        self._stream: TextIO = getattr(stream, "rich_proxied_file", stream)
        self._screen: _Screen | None = None

    def show(self, update: ProgressUpdate) -> None:
        screen = self._screen
        if screen is None:
            screen = self._screen = self._joined_screen()
        # rich would use the size of stdin, which may be another terminal or no terminal.
        with suppress(OSError, ValueError):
            screen.live.console.width = os.get_terminal_size(self._stream.fileno()).columns or 80
        self._clear_broken_lines(screen)
        screen.pictures[self] = self._picture(update, screen.live.console)
        screen.draw()

    def show_note(self, update: ProgressUpdate) -> None:
        if self._screen is not None:
            self._screen.live.console.print(f"{safe_text(update.batch)}: {safe_text(update.note or '')}")  # above the bar

    def _joined_screen(self) -> _Screen:
        screen = _screens.get(id(self._stream))
        if screen is None:
            screen = _screens[id(self._stream)] = _Screen(self._create())
            original = sys.stdout, sys.stderr
            screen.live.start()
            self._redirect_logs(screen, *original)
        return screen

    @staticmethod
    def _clear_broken_lines(screen: _Screen) -> None:
        """Erase the lines drawn last if the terminal was made narrower, which wrapped them onto more rows."""
        console = screen.live.console
        width, screen.width = screen.width, console.width
        rows = sum(max(0, length - 1) // console.width for length in screen.drawn) if console.width < width else 0
        if rows:
            console.file.write(f"\r\x1b[{rows}A\x1b[J")

    def end(self, update: ProgressUpdate) -> None:
        screen = self._screen
        if screen is None:
            return
        has_items = update.total > 0  # a run without items, because its input cannot be read or is empty, leaves no bar
        try:
            if has_items:
                self.show(update)
            sys.stdout.flush()  # a handler may have printed an unfinished line
            sys.stderr.flush()
        finally:
            self._screen = None
            picture = screen.pictures.pop(self, None)
            if screen.pictures:  # the last picture of this bar stays above the bars of the other runs
                screen.draw()
                if picture is not None and has_items:
                    screen.live.console.print(picture, end="\n")
            else:
                screen.live.transient = not has_items
                self._leave(screen)

    def _leave(self, screen: _Screen) -> None:
        _screens.pop(id(self._stream), None)
        screen.live.stop()
        for handler, stream in screen.redirected:
            handler.setStream(stream)
        screen.redirected.clear()

    def _create(self) -> Live:
        from rich.console import Console
        from rich.live import Live

        return Live(
            console=Console(file=self._stream, markup=False, highlight=False, emoji=False),
            auto_refresh=False,
            # Redirect only output to the same terminal, so that it appears above the bar; a pipe gets it unchanged.
            redirect_stdout=not _is_closed(sys.stdout) and sys.stdout.isatty(),
            redirect_stderr=self._stream is sys.stderr,
        )

    @staticmethod
    def _redirect_logs(screen: _Screen, stdout: TextIO, stderr: TextIO) -> None:
        """Redirect existing logging handlers, which hold the original streams and would write into the bar."""
        replacements = {id(stdout): sys.stdout, id(stderr): sys.stderr}
        for handler in _stream_handlers():
            stream = replacements.get(id(handler.stream))
            if stream is not None and stream is not handler.stream:
                screen.redirected.append((handler, handler.stream))
                handler.setStream(stream)

    def _picture(self, update: ProgressUpdate, console: Console) -> Text:
        from rich.text import Text

        max_width = console.width - 1  # some terminals wrap a line that fills the width
        total = f"{update.total:,}"
        numbers = f"{update.done:>{len(total)},}/{total}"
        numbers = f"{numbers} so far" if update.share is None else f"{percent_text(update.share):>5}  {numbers}"
        name = safe_text(update.batch, limit=max(8, min(self._MAX_NAME_LENGTH, max_width - len(numbers) - 14)))
        picture = Text(f"{name}  ", no_wrap=True, overflow="ellipsis", end="")
        width = min(self._MAX_BAR_WIDTH, max_width - cell_width(name) - len(numbers) - 4)
        if width >= 6 and update.share is not None:
            self._draw(picture, update.share, width, plain=not can_draw_blocks(console.encoding))
        picture.append(numbers)
        picture.truncate(max_width)
        second_line = Text("  ", no_wrap=True, overflow="ellipsis", end="")
        second_line.append(update.pace_text)
        for trouble in update.troubles:
            second_line.append(", ").append(trouble, style="bold red" if trouble.endswith("failed") else "")
        second_line.truncate(max_width)
        return picture.append("\n").append_text(second_line)

    @staticmethod
    def _draw(picture: Text, share: float, width: int, *, plain: bool) -> None:
        halves = int(share * width * 2)
        done = "#" * (halves // 2) if plain else "\u2501" * (halves // 2) + "\u2578" * (halves % 2)
        picture.append(done, style="green" if share == 1 else "cyan")
        picture.append(("-" if plain else "\u2501") * (width - len(done)), style="bright_black")
        picture.append("  ")


def _stream_handlers() -> Iterator[logging.StreamHandler[Any]]:
    named = [logger for logger in logging.root.manager.loggerDict.values() if isinstance(logger, logging.Logger)]
    for logger in (logging.root, *named):
        for handler in logger.handlers:
            if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
                yield handler
