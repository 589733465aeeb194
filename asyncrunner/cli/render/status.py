"""Format the output of ``asyncrunner status``: as lines, or as a display that is redrawn on a terminal."""

from __future__ import annotations

import shutil
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Final, TextIO

from asyncrunner.admin.read_models import BatchStatus, Duration, FileStatus
from asyncrunner.batch.progress import rate_text
from asyncrunner.cli.render.inspect import worker_lines
from asyncrunner.cli.render.tables import fit
from asyncrunner.store.snapshot import FailedAttempt
from asyncrunner.text.durations import duration_text
from asyncrunner.text.escaping import counted, safe_text

_MAX_BAR_WIDTH: Final = 30
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
    lines = display_lines(status, interval, width, height)
    text = "".join(f"{line}{_CLEAR_LINE}\r\n" for line in lines[:-1])
    terminal.write(_CURSOR_HOME + text + lines[-1] + _CLEAR_LINE + _CLEAR_BELOW)


def display_lines(status: FileStatus, interval: float, width: int, height: int) -> list[str]:
    """Return the lines that fit on a terminal of this size: batches first, then workers, then the newest failures."""
    left = f"{safe_text(status.db, limit=max(10, width - 50))}  {status.at[:19]} UTC"
    right = f"every {interval:g} s, Ctrl-C to quit"
    lines = [f"{left}{right:>{max(0, width - len(left))}}" if len(left) + len(right) + 2 <= width else left]
    for batch in status.batches:
        lines += ["", *_batch_display(batch, width)]
    if not status.batches:
        lines += ["", "no batches yet; `asyncrunner run` creates one"]
    lines += ["", *(worker_lines(status.workers, width) or ["no workers: nothing is running on this file"])]
    lines += _failure_lines(status.failures, status.at)
    if len(lines) > height:
        lines = [*lines[: height - 1], f"... {len(lines) - height + 1} more lines; --batch shows one batch"]
    return [fit(line, width) for line in lines]


def _batch_display(batch: BatchStatus, width: int) -> list[str]:
    counts = batch.counts
    done = counts.completed + counts.failed + counts.cancelled
    share = done / batch.total if batch.total else 0.0
    size = max(10, min(_MAX_BAR_WIDTH, width - 50))
    bar = "#" * int(size * share)
    name = safe_text(batch.name, limit=max(12, width - size - 36))
    lines = [f"{name}  [{bar:-<{size}}] {_percent(done, batch.total)} of {batch.total:,}"]
    waiting = f" ({counts.waiting:,} of them not due yet)" if counts.waiting else ""
    lines += _wrapped([
        f"{counts.pending:,} pending{waiting}",
        f"{counts.processing:,} processing",
        f"{counts.completed:,} completed",
        *([f"{counts.failed:,} failed"] if counts.failed else []),
        *([f"{counts.cancelled:,} cancelled"] if counts.cancelled else []),
    ], width)  # fmt: skip
    completed, processing = batch.durations.get("completed"), batch.durations.get("processing")
    lines += _wrapped([
        f"{rate_text(batch.rate)} in the last minute",
        *([f"{duration_text(batch.eta)} left"] if batch.eta is not None else []),
        *([f"{duration_text(completed.average)} per item (p95 {duration_text(completed.p95)})"] if completed else []),
        *([f"running for {duration_text(processing.average)} (p95 {duration_text(processing.p95)})"] if processing else []),
    ], width)  # fmt: skip
    return lines + _control_lines(batch) + _stuck_lines(batch)


def _wrapped(parts: Sequence[str], width: int) -> list[str]:
    """Join the parts with commas, on as many lines as needed."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + len(part) + 3 <= width:
            lines[-1] += f", {part}"
        else:
            lines.append(f"  {part}")
    return lines


def _percent(done: int, total: int) -> str:
    # Round down, so that 100 % appears only when all items are finished.
    return f"{done * 1000 // total / 10 if total else 0.0:.1f} %"


# --- lines --------------------------------------------------------------------------------------------------------


def status_lines(status: FileStatus) -> list[str]:
    """Return the status as lines of any width: batches first, then workers, then the newest failures."""
    lines = [safe_text(status.db)]
    for batch in status.batches:
        lines += ["", *_batch_lines(batch)]
    if not status.batches:
        lines += ["", "no batches yet; `asyncrunner run` creates one"]
    lines.append("")
    if not status.workers:
        lines.append("no workers: nothing is running on this file")
    for worker in status.workers:
        age = duration_text(worker.heartbeat_age)
        dead = ", dead" if worker.alive is False else ""
        lines.append(
            f"worker {safe_text(worker.worker_id, limit=20)}: pid {worker.pid} on {safe_text(worker.host, limit=40)}{dead}, "
            f"{worker.slots_in_use:,} of {worker.slots:,} slots in use, holds {worker.holding:,}, heartbeat {age} ago, "
            f"{worker.items_processed:,} processed, {worker.items_failed:,} failed"
        )
        if worker.loop_blocks:
            lines.append(
                f"  its event loop was blocked {worker.loop_blocks:,} times, for at most {duration_text(worker.longest_block)}; "
                "its log names the items"
            )
    return lines + _failure_lines(status.failures, status.at)


def _failure_lines(failures: Sequence[FailedAttempt], now: str) -> list[str]:
    if not failures:
        return []
    return [
        "",
        "newest failures:",
        *(
            f"  {_when(each.failed_at, now)}  {safe_text(each.batch, limit=30)}, item {safe_text(each.id, limit=40)}, "
            f"attempt {each.attempt}: {safe_text(each.error)}"
            for each in failures
        ),
    ]


def _when(moment: str, now: str) -> str:
    """Return the time of day of *moment*, with its date unless that is the date of *now*."""
    return safe_text(moment[11:19] if moment[:10] == now[:10] else moment[:19])


def _batch_lines(batch: BatchStatus) -> list[str]:
    counts = batch.counts
    lines = [
        f"{safe_text(batch.name)}: {batch.total:,} items",
        f"  {'pending':<11}{counts.pending:>12,}{_waiting(batch)}",
        *(
            f"  {name:<11}{count:>12,}{_average_text(batch.durations.get(name))}"
            for name, count in (
                ("processing", counts.processing),
                ("completed", counts.completed),
                ("failed", counts.failed),
                ("cancelled", counts.cancelled),
            )
        ),
    ]
    if counts.unfinished:
        left = f", {duration_text(batch.eta)} left" if batch.eta is not None else ""
        lines.append(f"  {rate_text(batch.rate)}{left}")
    return lines + _control_lines(batch) + _stuck_lines(batch)


def _waiting(batch: BatchStatus) -> str:
    return f" ({batch.counts.waiting:,} waiting for a retry or a scheduled time)" if batch.counts.waiting else ""


def _control_lines(batch: BatchStatus) -> list[str]:
    lines: list[str] = []
    if batch.paused:
        lines.append("  paused; continue with `asyncrunner resume`")
    if batch.stopped is not None:
        lines.append(f"  stopped: {safe_text(batch.stopped)}; run it again to continue, or use `asyncrunner resume`")
    if batch.resting_until is not None:
        lines.append(f"  cooling down until {safe_text(batch.resting_until)} UTC")
    if batch.concurrency is not None:
        lines.append(f"  concurrency is set to {batch.concurrency:,} in each worker")
    if batch.throttled is not None:
        slots = f"{batch.throttled.limit:,} of {batch.throttled.of:,} slots"
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
        lines.append(f"  {len(batch.isolated) - _MAX_ISOLATED:,} more items run alone")
    if batch.held_back:
        lines.append("  held back: a worker starts no other item for up to 30 s before and after the start of an isolated item")
    return lines


def _stuck_lines(batch: BatchStatus) -> list[str]:
    return [
        f"  stuck: {safe_text(stuck.id, limit=60)}, for {duration_text(stuck.seconds)}, attempt {stuck.attempts}, "
        f"worker {safe_text(stuck.worker_id, limit=20)}{' (dead)' if stuck.worker_alive is False else ''}"
        for stuck in batch.stuck
    ]


def _average_text(duration: Duration | None) -> str:
    if duration is None:
        return ""
    return f"   {duration_text(duration.average)} on average, p95 {duration_text(duration.p95)}"
