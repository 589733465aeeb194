"""``asyncrunner stop``: stop the runs and workers of a file from another process."""

from __future__ import annotations

import asyncio
import difflib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from asyncrunner.admin.stop import Stopping, stop_workers
from asyncrunner.domain.clock import SystemClock
from asyncrunner.errors import ConfigurationError
from asyncrunner.sqlite import SQLiteStore
from asyncrunner.sqlite.file.opening import connect_reader
from asyncrunner.store.liveness import unproven_text
from asyncrunner.store.retrying import Persistence
from asyncrunner.store.workers import Peer, Stop
from asyncrunner.text.durations import duration_text
from asyncrunner.text.escaping import json_text, safe_text

_MIN_LOCK_TIMEOUT_SECONDS: Final = 10.0  # store calls are retried at least this long while the file is locked


def stop(db: Path, batch: str | None, *, now: bool, timeout: float, as_json: bool) -> int:
    """Request the stop, wait at most *timeout* seconds, print the processes; return 1 if one has not ended in time, else 0.

    Raises AsyncRunnerError.
    """
    if not 0 <= timeout < float("inf"):
        raise ConfigurationError(f"--wait {timeout!r}: give seconds, 0 or more")
    connect_reader(db).close()  # refuses a missing file, a file that is not a store, or an older schema, and changes nothing
    stopping = asyncio.run(_stop_workers(db, batch, Stop.CANCEL if now else Stop.DRAIN, timeout))
    if as_json:
        sys.stdout.write(
            json_text({"db": str(db), "batch": batch, **{k: _documents(v) for k, v in stopping._asdict().items()}}) + "\n"
        )
    else:
        sys.stdout.write("\n".join(_lines(stopping, db, batch, now=now, timeout=timeout)) + "\n")
    return 1 if stopping.running else 0


async def _stop_workers(db: Path, batch: str | None, how: Stop, timeout: float) -> Stopping:  # noqa: ASYNC109
    store, clock = SQLiteStore(db), SystemClock()
    persist = Persistence(clock)
    persist.give_up_at = clock.monotonic() + max(timeout, _MIN_LOCK_TIMEOUT_SECONDS)
    await persist(store.open)
    try:
        if batch is not None and await persist(lambda: store.find_batch(batch)) is None:
            raise ConfigurationError(_no_such_batch(db, batch, await persist(store.batch_names)))
        return await stop_workers(store, clock, persist, batch, how, timeout=timeout)
    finally:
        await store.close()


def _no_such_batch(db: Path, batch: str, names: Sequence[str]) -> str:
    matches = difflib.get_close_matches(batch, names, n=1)
    hint = f"did you mean {matches[0]!r}?" if matches else f"it has {', '.join(map(repr, names[:5])) or 'none yet'}"
    return f"{db} has no batch {batch!r}; {hint}"


def _documents(peers: Sequence[Peer]) -> list[dict[str, Any]]:
    return [
        {"worker_id": peer.worker_id, "host": peer.host, "pid": peer.pid, "role": peer.role, "batches": peer.batches}
        for peer in peers
    ]


def _lines(stopping: Stopping, db: Path, batch: str | None, *, now: bool, timeout: float) -> list[str]:
    scope = f"of {safe_text(batch)} in {safe_text(db)}" if batch is not None else f"on {safe_text(db)}"
    lines: list[str] = []
    if not stopping.asked:
        lines.append(f"nothing to stop: no run or worker {scope}")
    else:
        ended = [peer for peer in stopping.asked if peer not in stopping.running]
        lines.append(
            f"requested a stop of {_counted(len(stopping.asked), 'process')} {scope}; "
            f"{len(ended)} ended, unfinished items are kept"
        )
        lines += [f"  {'ended' if peer in ended else 'still running'}: {_peer_text(peer)}" for peer in stopping.asked]
    if stopping.running:
        hint = "kill a process that is suspended or hung" if now else "add --now to cancel the running handlers"
        lines.append(f"after {duration_text(timeout)} a process is still running: {hint}")
    unproven = unproven_text(len(stopping.unproven))
    if unproven is not None:
        lines.append(f"{unproven}; otherwise they stop at their next heartbeat")
    for peer in stopping.left:
        reason = (
            "also has other batches; stop it without --batch" if peer.role == "work" else "is part of a service; stop the service"
        )
        lines.append(f"left alone: {_peer_text(peer)}, which {reason}")
    return lines


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}es"


def _peer_text(peer: Peer) -> str:
    batches = ", ".join(safe_text(name, limit=60) for name in peer.batches[:3])
    return f"pid {peer.pid} on {safe_text(peer.host, limit=40)} ({safe_text(peer.role or 'unknown', limit=20)}: {batches})"
