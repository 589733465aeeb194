"""Progress: its counts, its estimate of the remaining time, and a bar that no output breaks."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import io
import logging
import os
import pty
import re
import struct
import sys
import termios
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from asyncrunner import ConfigurationError, ProgressUpdate, run_batch
from asyncrunner.batch.progress import MovingRate, Progress
from asyncrunner.batch.progress_display import Lines, _screens, as_progress
from asyncrunner.domain.item import Claim, Counts
from asyncrunner.domain.outcome import Completed, ErrorInfo, Failed, PutOff, Retrying
from asyncrunner.events import Accepted, Events, Settled
from asyncrunner.text.durations import rate_text
from tests.support.state import execute, rows_of

CLAIM = Claim(1, 1, "k", "1", 1, 1, 0)
BOOM = ErrorInfo("E", "m")


async def begun(
    wanted: Any,
    *,
    expected: int | None = 10,
    before: Counts | None = None,
    stream: Any = None,
    batch: str = "b",
) -> tuple[Progress, Events]:
    progress = as_progress(wanted, stream)
    assert progress is not None
    events = Events()
    progress.begin(batch, before or Counts(completed=2, failed=3), 1, expected, events)
    return progress, events


def update(**values: Any) -> ProgressUpdate:
    return ProgressUpdate(
        **{
            "batch": "b", "total": 2000, "total_is_known": True, "completed": 500, "failed": 3, "cancelled": 0, "retried": 17,
            "rate": 84.0, "eta": 73.0, **values,
        }
    )  # fmt: skip


# --- counting -------------------------------------------------------------------------------------------------------


async def test_progress_counts_the_events() -> None:
    seen: list[ProgressUpdate] = []
    progress, events = await begun(seen.append)
    for outcome in (Completed("1"), Completed("1"), Failed(BOOM, permanent=True), Retrying(BOOM, 1.0), PutOff(BOOM, 1.0)):
        events.publish(Settled("b", CLAIM, outcome, 0.0, 0.0))
    events.publish(Accepted("b", 7, 0))
    progress.end()
    last = seen[-1]
    assert (last.total, last.completed, last.failed, last.retried, last.done) == (12, 4, 3, 1, 7)
    assert last.rate > 0
    assert last.eta is not None
    assert str(last).startswith("7 of 12 done (58 %), 3 failed, 1 retry, once put off, ")
    progress.end()
    assert len(seen) == 2


async def test_an_unknown_total_is_reported_as_unknown() -> None:
    seen: list[ProgressUpdate] = []
    progress, events = await begun(seen.append, expected=None)
    events.publish(Accepted("b", 5, 0))
    progress.end()
    assert (seen[-1].total_is_known, seen[-1].eta, seen[-1].share) == (False, None, None)
    assert "of 10 so far done" in str(seen[-1])
    progress.source_ended()
    assert progress.update().total_is_known
    progress.resync(Counts(completed=4, pending=2))
    assert (progress.update().done, progress.update().total) == (4, 6)


def test_a_hundred_percent_is_the_end_and_not_before() -> None:
    assert "(99 %)" in str(update(total=100_000, completed=99_996))
    assert "(100 %)" in str(update(completed=1997))
    assert update(total=0, completed=0, failed=0).share == 1


def test_progress_is_a_bool_or_a_function() -> None:
    assert as_progress(None) is as_progress(False) is None
    with pytest.raises(ConfigurationError, match="give True, False or a function"):
        as_progress(3)  # type: ignore[arg-type]


# --- the rate -------------------------------------------------------------------------------------------------------


def walked(rate: MovingRate, seconds: range, done: Callable[[int], int]) -> float:
    return [rate.record(float(second), done(second)) for second in seconds][-1]


def test_the_rate_is_that_of_the_newest_twenty_seconds() -> None:
    rate = MovingRate()
    assert walked(rate, range(101), lambda second: 10 * second) == pytest.approx(10)
    assert walked(rate, range(101, 151), lambda second: 1000 + 40 * (second - 100)) == pytest.approx(40)


def test_where_items_take_long_the_rate_looks_further_back() -> None:
    assert walked(MovingRate(), range(3601), lambda second: second // 60) == pytest.approx(1 / 60, rel=0.1)
    assert walked(MovingRate(), range(100), lambda second: second // 60) > 0


def test_after_a_restart_the_rate_of_before_counts_until_enough_is_seen() -> None:
    rate = MovingRate(50.0)
    assert rate.record(0.0, 1000) == pytest.approx(50)
    assert 25 < rate.record(1.0, 1000) < 50
    assert walked(rate, range(2, 60), lambda second: 1000 + 10 * second) == pytest.approx(10)


def test_items_that_became_pending_again_make_no_negative_rate() -> None:
    rate = MovingRate()
    walked(rate, range(10), lambda second: 100 * second)
    assert rate.record(10.0, 0) == 0
    assert rate.record(11.0, 5) == pytest.approx(5)


async def test_a_second_run_starts_with_the_rate_of_the_first(db: str) -> None:
    async def work(n: int) -> None:
        await asyncio.sleep(0.001)

    await run_batch(range(200), work, db=db, concurrency=10)
    (count,) = rows_of(db, "SELECT count(*) FROM turns")[0]
    assert count > 1
    seen: list[ProgressUpdate] = []
    await run_batch(range(400), work, db=db, concurrency=10, progress=seen.append)
    assert (seen[0].done, seen[0].total) == (200, 400)
    assert seen[0].rate > 0
    assert seen[0].eta is not None


async def test_a_run_that_finds_nothing_to_do_has_no_rate(db: str) -> None:
    async def work(n: int) -> None:
        await asyncio.sleep(0)

    await run_batch(range(200), work, db=db, concurrency=10)
    for index, (number,) in enumerate(rows_of(db, "SELECT number FROM turns ORDER BY number")):  # 10 s from turn to turn
        execute(db, "UPDATE turns SET at = ? WHERE number = ?", f"2026-11-27 12:{index // 6 % 60:02}:{index % 6}0.000", number)
    seen: list[ProgressUpdate] = []
    await run_batch(range(200), work, db=db, progress=seen.append)
    assert (seen[-1].done, seen[-1].rate, seen[-1].eta) == (200, 0.0, None)
    assert seen[-1].pace_text == "nothing left to do"


def test_a_run_that_did_something_keeps_its_rate_at_the_end() -> None:
    assert update(completed=1997).pace_text == "84/s"
    assert update(completed=1997, rate=0.0, eta=None).pace_text == "nothing left to do"


async def test_there_is_no_time_left_while_most_items_wait_for_a_later_time() -> None:
    for waiting, has_eta in ((5, True), (6, False)):
        progress, _ = await begun(
            lambda update: None, before=Counts(completed=2, failed=1, pending=9, waiting=waiting), expected=12
        )
        progress._rate = MovingRate(2.0)  # the rate before this run
        update = progress.update()
        assert (update.rate, update.eta, update.waiting) == (2.0, 5.0 if has_eta else None, waiting)
        assert update.pace_text == ("2.0/s, 5.0 s left" if has_eta else "2.0/s, 6 wait for a later time")
        progress.resync(Counts(completed=2, pending=10, waiting=0))
        assert progress.update().eta == pytest.approx(5.0, rel=0.1)
        progress.end()


# --- lines ----------------------------------------------------------------------------------------------------------


async def test_where_there_is_no_terminal_progress_is_two_lines() -> None:
    stream = io.StringIO()
    progress, _ = await begun(True, stream=stream)
    progress.end()
    first, second = stream.getvalue().splitlines()
    assert first == "b: 4 of 10 done (40 %), 2 failed"
    assert re.fullmatch(r"  [\d.]+/s", second)


async def test_a_note_is_the_first_line_and_appears_immediately_and_once() -> None:
    stream = io.StringIO()
    progress, _ = await begun(True, stream=stream)
    progress.show_note("resuming 695 items of earlier runs")
    assert stream.getvalue() == "b: resuming 695 items of earlier runs\n"
    progress.end()
    assert stream.getvalue().count("resuming") == 1


def test_lines_come_less_often_in_a_long_run_and_need_no_reader() -> None:
    stream = io.StringIO()
    lines = Lines(stream)
    intervals = []
    for _ in range(12):
        lines.show(update())
        intervals.append(lines.interval)
    assert intervals == sorted(intervals)
    assert (intervals[0], intervals[-1]) == (5, 60)
    assert stream.getvalue().splitlines()[:2] == ["b: 503 of 2,000 done (25 %), 3 failed, 17 retries", "  84/s, 1 min 13 s left"]
    stream.close()
    lines.end(update())  # a closed stream does not stop the run


# --- the bar --------------------------------------------------------------------------------------------------------


class Terminal:
    """A terminal that records all its output."""

    def __init__(self, columns: int, rows: int = 24) -> None:
        self._leader, follower = pty.openpty()
        self.stream = os.fdopen(follower, "w", buffering=1)
        self._shown = b""
        self.resize(columns, rows)
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

    def resize(self, columns: int, rows: int = 24) -> None:
        fcntl.ioctl(self.stream.fileno(), termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # the other end is closed
            while block := os.read(self._leader, 100_000):
                self._shown += block

    def close(self) -> str:
        self.stream.close()
        self._reading.join(10)
        os.close(self._leader)
        return self._shown.decode()


def plain(text: str) -> list[str]:
    """Return the lines without colours and cursor movements."""
    return [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", line) for line in text.splitlines()]


@asynccontextmanager
async def on(terminal: Terminal, monkeypatch: pytest.MonkeyPatch, **options: Any) -> AsyncIterator[Progress]:
    """Return a bar on the terminal, which is the stdout and stderr of the process."""
    for name in ("COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(sys, "stdout", terminal.stream)
    monkeypatch.setattr(sys, "stderr", terminal.stream)
    progress, _ = await begun(True, stream=terminal.stream, **options)
    yield progress
    progress.end()


@pytest.mark.parametrize("columns", [20, 40, 80, 120])
async def test_no_line_of_the_bar_is_as_long_as_the_terminal_is_wide(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal(columns)
    async with on(terminal, monkeypatch, batch="a.module.with.a.long:name_of_a_handler \x1b[31m", expected=1_000_000):
        pass
    shown = terminal.close()
    assert "\x1b[31m" not in shown
    lines = [line for line in plain(shown) if line]
    assert max(map(len, lines)) < min(columns, 90)
    assert columns < 80 or any(line.endswith("0 %          4/1,000,000") for line in lines)


async def test_prints_and_logs_have_their_own_lines_above_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal(100)
    before = logging.StreamHandler(terminal.stream)  # as logging.basicConfig() made it when the program began
    logger = logging.getLogger("a program's own")
    logger.addHandler(before)
    async with on(terminal, monkeypatch) as progress:
        print("printed by a handler")
        print("to stderr", file=sys.stderr)
        logger.warning("logged by a handler")
        print("without an end", end="")
        progress._show(progress._views[0].show)
    logger.removeHandler(before)
    assert before.stream is terminal.stream
    assert sys.stdout is terminal.stream
    lines = plain(terminal.close())
    for line in ("printed by a handler", "to stderr", "logged by a handler", "without an end"):
        assert line in lines, lines
    lines = [line for line in lines if line]
    assert ["%" in line for line in lines[-2:]] == [True, False]
    assert lines.index("printed by a handler") < lines.index("to stderr") < lines.index("logged by a handler")


async def test_a_note_stays_above_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal(100)
    async with on(terminal, monkeypatch) as progress:
        progress.show_note("resuming 695 items of earlier runs")
    lines = [line for line in plain(terminal.close()) if line]
    assert lines.count("b: resuming 695 items of earlier runs") == 1
    assert ["%" in line for line in lines[-2:]] == [True, False]


async def test_two_bars_at_the_same_time_share_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal(80)
    async with on(terminal, monkeypatch, batch="first") as first:
        second, _ = await begun(True, batch="\u30ab\u30bf\u30ed\u30b0")  # on stderr, which the first bar has redirected
        assert [len(screen.pictures) for screen in _screens.values()] == [2]
        for progress in (first, second):
            progress._show(progress._views[0].show)
        print("a line of a handler")
        second.end()
        first._show(first._views[0].show)
        assert [len(screen.pictures) for screen in _screens.values()] == [1]
    assert _screens == {}
    assert sys.stderr is terminal.stream
    shown = terminal.close()
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1
    rows = rows_on_screen(shown)
    assert [row.split()[0] for row in rows if "%" in row] == ["\u30ab\u30bf\u30ed\u30b0", "first"]
    assert rows[0] == "a line of a handler"
    assert len([row for row in rows if row]) == 5


def rows_on_screen(output: str) -> list[str]:
    """Return what a terminal shows after *output*, which moves the cursor up and erases lines."""
    rows, at = [""], 0
    for part in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", output):
        if part == "\n":
            at += 1
            rows += [""] * (at + 1 - len(rows))
        elif part.endswith("A") and part.startswith("\x1b"):
            at -= int(part[2:-1] or 1)
        elif part == "\x1b[2K":
            rows[at] = ""
        elif not part.startswith("\x1b") and part != "\r":
            rows[at] += part
    return rows


async def test_a_bar_has_no_colour_with_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, has_colour in (("", True), ("1", False)):
        monkeypatch.setenv("NO_COLOR", value)
        terminal = Terminal(80)
        async with on(terminal, monkeypatch, before=Counts(failed=3)):
            pass
        codes = {code for found in re.findall(r"\x1b\[([0-9;]*)m", terminal.close()) for code in found.split(";")}
        assert bool(codes & {str(code) for code in (*range(30, 50), *range(90, 108))}) is has_colour
        assert "1" in codes, "the variable is about colours: bold text stays, as https://no-color.org wants it"


async def test_the_cursor_is_there_again_and_the_last_line_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal(80)
    async with on(terminal, monkeypatch):
        pass
    shown = terminal.close()
    assert shown.count("\x1b[?25l") == 1
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")
    assert plain(shown)[-1].strip() == "" or shown.replace("\x1b[?25h", "").endswith("\n")


async def test_each_picture_is_one_write(monkeypatch: pytest.MonkeyPatch) -> None:
    writes: list[str] = []

    class Counting(io.StringIO):
        encoding = "utf-8"

        def isatty(self) -> bool:
            return True

        def write(self, text: str) -> int:
            writes.append(text)
            return len(text)

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    progress, _ = await begun(True, stream=Counting())
    writes.clear()
    progress._show(progress._views[0].show)
    assert len(writes) == 1
    progress.end()


async def test_a_narrower_terminal_shows_no_remains_of_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal(100)
    async with on(terminal, monkeypatch) as progress:
        terminal.resize(30)  # the first line, 50 long, is two rows now
        progress._show(progress._views[0].show)
    assert "\r\x1b[1A\x1b[J" in terminal.close()


async def test_a_terminal_without_unicode_gets_a_bar_of_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    class Old(io.StringIO):
        encoding = "ascii"

        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    stream = Old()
    progress, _ = await begun(True, stream=stream)
    progress.end()
    assert stream.getvalue().isascii()
    assert "####" in stream.getvalue()


@pytest.mark.parametrize(("rate", "text"), [(0, "0.0/s"), (1204, "1,204/s"), (2.5, "2.5/s"), (0.05, "3.0/min")])
def test_rates_are_in_units_people_use(rate: float, text: str) -> None:
    assert rate_text(rate) == text


async def test_a_run_without_items_leaves_no_bar_and_no_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal(80)
    async with on(terminal, monkeypatch, expected=0, before=Counts()):
        pass
    assert [row for row in rows_on_screen(terminal.close()) if row.strip()] == []
    log = io.StringIO()
    progress, _ = await begun(True, expected=None, before=Counts(), stream=log)
    progress.end()
    assert log.getvalue() == ""
