"""``asyncrunner status``: how the batches of a file stand, once or as a picture that is drawn again and again."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final, TextIO

import typer

from asyncrunner.cli.calling import ask, print_json
from asyncrunner.cli.look import worker_lines
from asyncrunner.cli.options import BatchOption, Db, Json, env
from asyncrunner.cli.tables import fit
from asyncrunner.control import Control
from asyncrunner.errors import ConfigurationError
from asyncrunner.progress import rate_text
from asyncrunner.settings import DEFAULT_DB
from asyncrunner.text import duration_text, safe_text
from asyncrunner.views import BatchStatus, Duration, FailedAttempt, FileStatus

__all__ = ["show_status"]

_LEAST_INTERVAL: Final = 0.1
_BAR: Final = 30
_OTHER_SCREEN, _FIRST_SCREEN = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
_HOME, _END_OF_LINE, _END_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"


def show_status(
    db: Db = Path(DEFAULT_DB),
    batch: BatchOption = None,
    stuck_after: Annotated[
        float, typer.Option(envvar=env("stuck_after"), help="Seconds in processing after which an item is called stuck.")
    ] = 300.0,
    watch: Annotated[bool, typer.Option("--watch", "-w", envvar=env("watch"), help="Again and again, until Ctrl-C.")] = False,
    interval: Annotated[float, typer.Option(envvar=env("interval"), help="Seconds between two looks of --watch.")] = 1.0,
    as_json: Json = False,
) -> None:
    """Show how the batches of a file stand: counts, durations, rate, workers, stuck items, newest failures.

    Only reads, also while a run is going on, and takes no longer for ten million items than for ten. With --watch on a terminal
    the picture stays in place; elsewhere, and where TERM is dumb, each look is a block of lines, and with --json a document a
    line.
    """
    if not _LEAST_INTERVAL <= interval <= 86400:
        raise ConfigurationError(f"--interval {interval:g}: give seconds, {_LEAST_INTERVAL:g} or more")

    is_picture = watch and not as_json and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"

    async def look(control: Control) -> None:
        while True:
            status = await control.status(batch, stuck_after=stuck_after)
            if as_json:
                print_json(status)
            elif is_picture:
                _draw(status, interval, sys.stdout)
            else:
                sys.stdout.write("\n".join(_lines(status)) + ("\n\n" if watch else "\n"))
            sys.stdout.flush()
            if not watch:
                return
            await asyncio.sleep(interval)

    try:
        if is_picture:
            sys.stdout.write(_OTHER_SCREEN)
        ask(db, look)
    finally:
        if is_picture:
            sys.stdout.write(_FIRST_SCREEN)
            sys.stdout.flush()


# --- the picture -------------------------------------------------------------------------------------------------------


def _draw(status: FileStatus, interval: float, screen: TextIO) -> None:
    width, height = shutil.get_terminal_size()
    lines = picture(status, interval, width, height)
    screen.write(_HOME + "".join(f"{line}{_END_OF_LINE}\r\n" for line in lines[:-1]) + lines[-1] + _END_OF_LINE + _END_OF_SCREEN)


def picture(status: FileStatus, interval: float, width: int, height: int) -> list[str]:
    """What fits on a terminal of that size: batches first, then workers, then the newest failures."""
    left = f"{safe_text(status.db, limit=max(10, width - 50))}  {status.at[:19]} UTC"
    right = f"each {interval:g} s, Ctrl-C ends"
    lines = [f"{left}{right:>{max(0, width - len(left))}}" if len(left) + len(right) + 2 <= width else left]
    for batch in status.batches:
        lines += ["", *_batch_picture(batch, width)]
    if not status.batches:
        lines += ["", "no batches yet; `asyncrunner run` makes one"]
    lines += ["", *(worker_lines(status.workers, width) or ["no workers: nothing is running on this file"])]
    lines += _failure_lines(status.failures, status.at)
    if len(lines) > height:
        lines = [*lines[: height - 1], f"... {len(lines) - height + 1} more lines; --batch shows one batch"]
    return [fit(line, width) for line in lines]


def _batch_picture(batch: BatchStatus, width: int) -> list[str]:
    counts = batch.counts
    done = counts.completed + counts.failed + counts.cancelled
    share = done / batch.total if batch.total else 0.0
    size = max(10, min(_BAR, width - 50))
    bar = "#" * int(size * share)
    name = safe_text(batch.name, limit=max(12, width - size - 36))
    lines = [f"{name}  [{bar:-<{size}}] {_percent(done, batch.total)} of {batch.total:,}"]
    waiting = f" ({counts.waiting:,} of them later)" if counts.waiting else ""
    lines += _flow([
        f"{counts.pending:,} pending{waiting}",
        f"{counts.processing:,} processing",
        f"{counts.completed:,} completed",
        *([f"{counts.failed:,} failed"] if counts.failed else []),
        *([f"{counts.cancelled:,} cancelled"] if counts.cancelled else []),
    ], width)  # fmt: skip
    takes, runs = batch.durations.get("completed"), batch.durations.get("processing")
    lines += _flow([
        f"{rate_text(batch.rate)} in the last minute",
        *([f"{duration_text(batch.eta)} left"] if batch.eta is not None else []),
        *([f"an item takes {duration_text(takes.average)} (p95 {duration_text(takes.p95)})"] if takes else []),
        *([f"running for {duration_text(runs.average)} (p95 {duration_text(runs.p95)})"] if runs else []),
    ], width)  # fmt: skip
    return lines + _held(batch) + _stuck_lines(batch)


def _flow(parts: Sequence[str], width: int) -> list[str]:
    """The parts with commas between them, on as many lines as they need."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + len(part) + 3 <= width:
            lines[-1] += f", {part}"
        else:
            lines.append(f"  {part}")
    return lines


def _percent(done: int, total: int) -> str:
    # Rounded down: 100 % is when all is done.
    return f"{done * 1000 // total / 10 if total else 0.0:.1f} %"


# --- lines -------------------------------------------------------------------------------------------------------------


def _lines(status: FileStatus) -> list[str]:
    lines = [safe_text(status.db)]
    for batch in status.batches:
        lines += ["", *_batch_lines(batch)]
    if not status.batches:
        lines += ["", "no batches yet; `asyncrunner run` makes one"]
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
                f"  its loop was blocked {worker.loop_blocks:,} times, {duration_text(worker.longest_block)} at the longest; "
                "its log says by which item"
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
    """The time of day, with the date unless it is today's."""
    return safe_text(moment[11:19] if moment[:10] == now[:10] else moment[:19])


def _batch_lines(batch: BatchStatus) -> list[str]:
    counts = batch.counts
    lines = [
        f"{safe_text(batch.name)}: {batch.total:,} items",
        f"  {'pending':<11}{counts.pending:>12,}{_waiting(batch)}",
        *(
            f"  {name:<11}{count:>12,}{_duration_text(batch.durations.get(name))}"
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
    return lines + _held(batch) + _stuck_lines(batch)


def _waiting(batch: BatchStatus) -> str:
    return f" ({batch.counts.waiting:,} wait for a retry or their time)" if batch.counts.waiting else ""


def _held(batch: BatchStatus) -> list[str]:
    lines: list[str] = []
    if batch.paused:
        lines.append("  paused; `asyncrunner resume` lets it go on")
    if batch.stopped is not None:
        lines.append(f"  stopped: {safe_text(batch.stopped)}; it goes on when it is run again, or with `asyncrunner resume`")
    if batch.resting_until is not None:
        lines.append(f"  cools down until {safe_text(batch.resting_until)} UTC")
    if batch.concurrency is not None:
        lines.append(f"  concurrency is set to {batch.concurrency:,} in each worker")
    return lines


def _stuck_lines(batch: BatchStatus) -> list[str]:
    return [
        f"  stuck: {safe_text(stuck.id, limit=60)}, for {duration_text(stuck.seconds)}, attempt {stuck.attempts}, "
        f"worker {safe_text(stuck.worker_id, limit=20)}{' (dead)' if stuck.worker_alive is False else ''}"
        for stuck in batch.stuck
    ]


def _duration_text(duration: Duration | None) -> str:
    if duration is None:
        return ""
    return f"   {duration_text(duration.average)} on average, p95 {duration_text(duration.p95)}"
