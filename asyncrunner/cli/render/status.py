"""Format the output of ``asyncrunner status``: as lines, or as a display that is redrawn on a terminal."""

from __future__ import annotations

import re
import shutil
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Final, TextIO

from asyncrunner.admin.read_models import BatchStatus, Duration, FileStatus, WorkerStatus
from asyncrunner.admin.status import NO_WORKER, time_of
from asyncrunner.cli.command import command_text
from asyncrunner.cli.render.inspect import worker_lines
from asyncrunner.cli.render.sparkline import is_plain, sparkline
from asyncrunner.cli.render.tables import Column, table
from asyncrunner.store.liveness import UNPROVEN_SECONDS
from asyncrunner.store.snapshot import FailedAttempt
from asyncrunner.text.cells import cell_width, fit, wrapped
from asyncrunner.text.durations import duration_text, rate_text
from asyncrunner.text.escaping import counted, safe_text
from asyncrunner.text.timestamps import from_text

_MAX_BAR_WIDTH: Final = 30
_UNTIL: Final = re.compile(r"(rests until|next at) (?:\d{4}-(\d\d-\d\d) )?(\d\d:\d\d)(?::\d\d)? UTC")
_MAX_ISOLATED: Final = 3  # isolated items that are shown of each batch
_ENTER_SCREEN, _LEAVE_SCREEN = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
_CURSOR_HOME, _CLEAR_LINE, _CLEAR_BELOW = "\x1b[H", "\x1b[K", "\x1b[J"


# --- the display that is redrawn ------------------------------------------------------------------------------------


@contextmanager
def alternate_screen(terminal: TextIO) -> Generator[None, None, None]:
    """Show the terminal's alternate screen, without a cursor, during the ``with`` block; then restore the terminal."""
    terminal.write(_ENTER_SCREEN)
    try:
        yield
    finally:
        terminal.write(_LEAVE_SCREEN)
        terminal.flush()


def redraw(status: FileStatus, interval: float, terminal: TextIO) -> None:
    """Draw the status over the previous one."""
    width, height = shutil.get_terminal_size()
    lines = display_lines(status, interval, width, height, plain=is_plain(terminal))
    text = "".join(f"{line}{_CLEAR_LINE}\r\n" for line in lines[:-1])
    terminal.write(_CURSOR_HOME + text + lines[-1] + _CLEAR_LINE + _CLEAR_BELOW)


def display_lines(status: FileStatus, interval: float, width: int, height: int, *, plain: bool = False) -> list[str]:
    """Return the lines that fit on a terminal of this size: batches first, then workers, then the newest failures.

    *plain*: in ASCII, apart from names and errors.
    """
    left = f"{safe_text(status.db, limit=max(10, width - 50))}  {status.at[:19]} UTC"
    right = f"every {interval:g} s, Ctrl-C to quit"
    gap = width - cell_width(left) - len(right)
    lines = [f"{left}{' ' * gap}{right}" if gap >= 2 else left]
    if len(status.batches) > 1:
        lines += ["", *batch_table(status.batches, width)]
    else:
        for batch in status.batches:
            lines += ["", *_batch_display(batch, status.db, status.at, width, plain=plain)]
    if not status.batches:
        lines += ["", "no batches yet; `asyncrunner run` creates one"]
    lines += ["", *(worker_lines(status.workers, width) or ["no workers: nothing is running here"])]
    lines += _failure_lines(status.failures, status.at, width)
    if len(lines) > height:
        lines = [*lines[: height - 1], f"... {counted(len(lines) - height + 1, 'more line')}; --batch shows one batch"]
    return [fit(line, width) for line in lines]


def _batch_display(batch: BatchStatus, db: str, now: str, width: int, *, plain: bool) -> list[str]:
    counts = batch.counts
    done = counts.completed + counts.failed + counts.cancelled
    share = done / batch.total if batch.total else 0.0
    size = max(10, min(_MAX_BAR_WIDTH, width - 50))
    bar = "#" * int(size * share)
    name = safe_text(batch.name, limit=max(12, width - size - 36))
    lines = [f"{name}  [{bar:-<{size}}] {_percent(done, batch.total)} of {batch.total:,}"]
    waiting = f" ({counts.waiting:,} of them not due yet{_next_due(batch, now)})" if counts.waiting else ""
    lines += _joined([
        f"{counts.pending:,} pending{waiting}",
        f"{counts.processing:,} processing",
        f"{counts.completed:,} completed",
        *([f"{counts.failed:,} failed"] if counts.failed else []),
        *([f"{counts.cancelled:,} cancelled"] if counts.cancelled else []),
    ], width)  # fmt: skip
    completed, processing = batch.durations.get("completed"), batch.durations.get("processing")
    lines += _joined([
        *([f"{rate_text(batch.rate)} in the last minute"] if batch.workers else []),
        *([f"{duration_text(batch.eta)} left"] if batch.eta is not None else []),
        *([f"{_duration_text(completed)} per attempt"] if completed else []),
        *([f"running for {_duration_text(processing)}"] if processing else []),
    ], width)  # fmt: skip
    lines += _last_hour_lines(batch, width, plain=plain) + _version_lines(batch)
    return lines + _control_lines(batch, db) + _stuck_lines(batch)


def _duration_text(duration: Duration) -> str:
    return f"{duration_text(duration.average)} (p95 {duration_text(duration.p95)})"


def _next_due(batch: BatchStatus, now: str) -> str:
    return "" if batch.next_due_at is None else f", next at {safe_text(time_of(batch.next_due_at, from_text(now) or 0.0))}"


def _joined(parts: Sequence[str], width: int) -> list[str]:
    """Join the parts with commas, on as many lines as needed."""
    lines: list[str] = []
    for part in parts:
        if lines and cell_width(lines[-1]) + cell_width(part) + 3 <= width:
            lines[-1] += f", {part}"
        else:
            lines.append(f"  {part}")
    return lines


def _percent(done: int, total: int) -> str:
    # Round down, so that 100 % appears only when all items are finished.
    return f"{done * 1000 // total / 10 if total else 0.0:.1f} %"


# --- lines --------------------------------------------------------------------------------------------------------


def status_lines(status: FileStatus, width: int | None = None, *, plain: bool = False) -> list[str]:
    """Return the status as lines: batches first, then workers, then the newest failures.

    Several batches are a table. Lines that are longer than *width* are broken, those of tables and failures are cut.
    *plain*: in ASCII, apart from names and errors.
    """
    lines = wrapped(safe_text(status.db), width)
    if len(status.batches) > 1:
        lines += ["", *batch_table(status.batches, width)]
    else:
        for batch in status.batches:
            batch_lines = _batch_lines(batch, status.db, status.at, width, plain=plain)
            lines += ["", *(line for each in batch_lines for line in wrapped(each, width))]
    if not status.batches:
        lines += ["", "no batches yet; `asyncrunner run` creates one"]
    lines.append("")
    if not status.workers:
        lines.append("no workers: nothing is running here")
    for worker in status.workers:
        lines += [line for each in _worker_lines(worker) for line in wrapped(each, width)]
    return lines + _failure_lines(status.failures, status.at, width)


def _worker_lines(worker: WorkerStatus) -> list[str]:
    is_silent = worker.heartbeat_age >= UNPROVEN_SECONDS
    unproven = ", may be dead, because nothing holds its lock" if is_silent else ", its lock is missing or you may not open it"
    dead = {True: "", False: ", dead", None: unproven}[worker.alive]
    lines = [
        (
            f"worker {safe_text(worker.worker_id, limit=20)}: pid {worker.pid} on {safe_text(worker.host, limit=40)}{dead}, "
            f"{worker.slots_in_use:,} of {counted(worker.slots, 'slot')} in use, holds {worker.holding:,}, heartbeat "
            f"{duration_text(worker.heartbeat_age)} ago, {counted(worker.items_processed, 'attempt')}, "
            f"{worker.items_failed:,} of them failed"
        )
    ]
    if worker.loop_blocks:
        lines.append(
            f"  its event loop was blocked {counted(worker.loop_blocks, 'time')}, for at most "
            f"{duration_text(worker.longest_block)}; its log names the items"
        )
    return lines


# --- several batches ------------------------------------------------------------------------------------------------


def batch_table(batches: Sequence[BatchStatus], width: int | None) -> list[str]:
    """Return a heading and one line per batch; the last column is why the batch starts no items."""
    reasons = [_short_reason(batch) for batch in batches]
    needed = 53 + max(len("why idle"), *map(len, reasons))  # of the other columns
    limit = 60 if width is None else max(12, width - needed)
    columns = [
        Column("batch", limit=limit), *(Column(name, right=True) for name in ("waiting", "running", "done", "failed", "oldest")),
        Column("workers", right=True), Column("why idle"),
    ]  # fmt: skip
    rows = [
        (
            each.name, short_count(each.counts.pending), short_count(each.counts.processing), short_count(each.counts.completed),
            short_count(each.counts.failed), "-" if each.oldest is None else short_duration(each.oldest), each.workers, reason,
        )
        for each, reason in zip(batches, reasons, strict=True)
    ]  # fmt: skip
    return [*table(columns, rows, width), *wrapped("--batch NAME shows the details of one batch", width)]


def _short_reason(batch: BatchStatus) -> str:
    """Return the reason in at most 13 characters, so that the table fits 80 columns."""
    reason = batch.idle_reason or ""
    if batch.copied_from is not None:
        return "copy not done"
    if reason == NO_WORKER:
        return "no worker"
    moment = _UNTIL.fullmatch(reason)
    if moment is not None:
        return f"{'rest to' if moment[1].startswith('rests') else moment[1]} {moment[2] or moment[3]}"
    return "stopped" if reason.startswith("stopped") else reason.removesuffix(" by an isolated item")


def short_count(number: int) -> str:
    """Return a number in at most 6 characters: ``12,345``, ``123k``, ``4.5M``, ``120M``."""
    if number < 100_000:
        return f"{number:,}"
    if number < 1_000_000:
        return f"{number // 1000}k"
    return f"{number // 100_000 / 10}M" if number < 10_000_000 else f"{number // 1_000_000:,}M"


def short_duration(seconds: float) -> str:
    """Return a duration in its largest whole unit: ``40 s``, ``14 min``, ``3 h``, ``2 d``."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size):,} {unit}"
    return f"{int(seconds)} s"


# --- one batch ------------------------------------------------------------------------------------------------------


def _failure_lines(failures: Sequence[FailedAttempt], now: str, width: int | None) -> list[str]:
    """Return two lines for each failure if one line is too long: the item, and the error."""
    lines = ["", "newest failures:"] if failures else []
    for each in failures:
        item = (
            f"  {_when(each.failed_at, now)}  {safe_text(each.batch, limit=30)}, item {safe_text(each.id, limit=40)}, "
            f"attempt {each.attempt}:"
        )
        error = safe_text(each.error)
        is_long = width is not None and cell_width(item) + 1 + cell_width(error) > width
        lines += [item, f"      {error}"] if is_long else [f"{item} {error}"]
    return [fit(line, width) for line in lines]


def _when(moment: str, now: str) -> str:
    """Return the time of day of *moment*, with its date unless that is the date of *now*."""
    return safe_text(moment[11:19] if moment[:10] == now[:10] else moment[:19])


def _batch_lines(batch: BatchStatus, db: str, now: str, width: int | None, *, plain: bool) -> list[str]:
    counts = batch.counts
    lines = [
        f"{safe_text(batch.name)}: {counted(batch.total, 'item')}",
        f"  {'pending':<11}{counts.pending:>12,}{_waiting(batch, now)}",
        *(
            f"  {name:<11}{count:>12,}{_average_text(name, batch.durations.get(name))}"
            for name, count in (
                ("processing", counts.processing),
                ("completed", counts.completed),
                ("failed", counts.failed),
                ("cancelled", counts.cancelled),
            )
        ),
    ]
    if counts.unfinished and batch.workers:
        left = f", {duration_text(batch.eta)} left" if batch.eta is not None else ""
        lines.append(f"  {rate_text(batch.rate)}{left}")
    if batch.idle_reason == NO_WORKER:
        lines.append("  no live worker serves this batch: start one with `asyncrunner run` or `asyncrunner work`")
    lines += _last_hour_lines(batch, width, plain=plain) + _version_lines(batch)
    return lines + _control_lines(batch, db) + _stuck_lines(batch)


def _waiting(batch: BatchStatus, now: str) -> str:
    if not batch.counts.waiting:
        return ""
    return f" ({batch.counts.waiting:,} waiting for a retry or a scheduled time{_next_due(batch, now)})"


def _last_hour_lines(batch: BatchStatus, width: int | None, *, plain: bool) -> list[str]:
    """Return bars for the items completed a minute, as many of the last minutes as fit, with a caption; no line without items."""
    minutes = batch.last_hour if width is None else batch.last_hour[-max(10, width - 2) :]
    most = max(minutes, default=0)
    if not most:
        return []
    bars = f"  {sparkline(minutes, plain=plain)}"
    caption = f"  completed a minute, last {len(minutes)} minutes, most {most:,}"
    return [bars + caption] if width is None or len(bars) + len(caption) <= width else [bars, caption]


def _version_lines(batch: BatchStatus) -> list[str]:
    return [] if batch.version is None else [f"  version {safe_text(batch.version, limit=60)} of the handler"]


def _control_lines(batch: BatchStatus, db: str) -> list[str]:
    lines: list[str] = []
    if batch.copied_from is not None:
        lines.append(f"  {safe_text(batch.stopped, limit=4000)}")
    elif batch.paused:
        lines.append(f"  paused; continue with `{command_text('resume', db)}`")
    if batch.stopped is not None and batch.copied_from is None:
        lines.append(f"  stopped: {safe_text(batch.stopped)}; run it again to continue, or use `{command_text('resume', db)}`")
    if batch.resting_until is not None:
        lines.append(f"  cooling down until {safe_text(batch.resting_until)} UTC")
    if batch.concurrency is not None:
        lines.append(f"  concurrency is set to {batch.concurrency:,} in each worker")
    if batch.throttled is not None:
        slots = f"{batch.throttled.limit:,} of {counted(batch.throttled.of, 'slot')}"
        lines.append(f"  slowed down by a service: {slots}, put off {duration_text(batch.throttled.seconds)} ago")
    lines += _suspect_lines(batch)
    if batch.put_offs:
        lines.append(f"  {counted(batch.put_offs, 'put-off')}, which cost no attempt")
    return lines


def _suspect_lines(batch: BatchStatus) -> list[str]:
    lines: list[str] = []
    others = batch.suspects - len(batch.isolated)
    if others:
        verb = "was" if others == 1 else "were"
        lines.append(
            f"  {counted(others, 'suspect')}, which {verb} running when workers died: one starts at a time, beside other items"
        )
    for item in batch.isolated[:_MAX_ISOLATED]:
        state = "waits to run alone" if item.seconds is None else f"runs alone, for {duration_text(item.seconds)}"
        deaths = f"{counted(item.crashes, 'worker')} died while it ran"
        lines.append(f"  1 item {state}: {deaths}; see `asyncrunner show {safe_text(item.id, limit=60)}`")
    if len(batch.isolated) > _MAX_ISOLATED:
        lines.append(f"  running alone: {counted(len(batch.isolated) - _MAX_ISOLATED, 'more item')}")
    if batch.held_back:
        lines.append("  held back: a worker starts no other item for up to 30 s before and after the start of an isolated item")
    return lines


def _stuck_lines(batch: BatchStatus) -> list[str]:
    return [
        f"  stuck: {safe_text(stuck.id, limit=60)}, for {duration_text(stuck.seconds)}, attempt {stuck.attempts}, "
        f"worker {safe_text(stuck.worker_id, limit=20)}{' (dead)' if stuck.worker_alive is False else ''}"
        for stuck in batch.stuck
    ]


def _average_text(status: str, duration: Duration | None) -> str:
    if duration is None:
        return ""
    if status == "processing":
        return f"   for {duration_text(duration.average)} on average, p95 {duration_text(duration.p95)}"
    return f"   {duration_text(duration.average)} per attempt on average, p95 {duration_text(duration.p95)}"
