"""``asyncrunner stop``: end the runs and workers of a file from outside."""

from __future__ import annotations

import asyncio
import difflib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from asyncrunner.clock import SystemClock
from asyncrunner.errors import ConfigurationError
from asyncrunner.silence import unproven_text
from asyncrunner.sqlite import SQLiteStore
from asyncrunner.sqlite.file import connect_reader
from asyncrunner.stopping import Stopping, stop_workers
from asyncrunner.store import Peer, Stop
from asyncrunner.text import duration_text, json_text, safe_text
from asyncrunner.transient import Persistence

__all__ = ["stop"]

_PATIENCE_SECONDS: Final = 10.0  # with a file that is locked


def stop(db: Path, batch: str | None, *, now: bool, timeout: float, as_json: bool) -> int:
    """Ask, wait and print who was asked; 1 if somebody has not ended in time. Raises AsyncRunnerError."""
    if not 0 <= timeout < float("inf"):
        raise ConfigurationError(f"--wait {timeout!r}: give seconds, 0 or more")
    connect_reader(db).close()  # what is not there, or no store, or an older one, is refused and left as it is
    done = asyncio.run(_stopped(db, batch, Stop.CANCEL if now else Stop.DRAIN, timeout))
    if as_json:
        sys.stdout.write(
            json_text({"db": str(db), "batch": batch, **{k: _documents(v) for k, v in done._asdict().items()}}) + "\n"
        )
    else:
        sys.stdout.write("\n".join(_lines(done, db, batch, now=now, timeout=timeout)) + "\n")
    return 1 if done.running else 0


async def _stopped(db: Path, batch: str | None, how: Stop, timeout: float) -> Stopping:  # noqa: ASYNC109
    store, clock = SQLiteStore(db), SystemClock()
    persist = Persistence(clock)
    persist.give_up_at = clock.monotonic() + max(timeout, _PATIENCE_SECONDS)
    await persist(store.open)
    try:
        if batch is not None and await persist(lambda: store.find_batch(batch)) is None:
            raise ConfigurationError(_no_such_batch(db, batch, await persist(store.batch_names)))
        return await stop_workers(store, clock, persist, batch, how, timeout=timeout)
    finally:
        await store.close()


def _no_such_batch(db: Path, batch: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(batch, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(map(repr, names[:5])) or 'none yet'}"
    return f"{db} has no batch {batch!r}; {hint}"


def _documents(peers: Sequence[Peer]) -> list[dict[str, Any]]:
    return [
        {"worker_id": peer.worker_id, "host": peer.host, "pid": peer.pid, "role": peer.role, "batches": peer.batches}
        for peer in peers
    ]


def _lines(done: Stopping, db: Path, batch: str | None, *, now: bool, timeout: float) -> list[str]:
    what = f"of {safe_text(batch)} in {safe_text(db)}" if batch is not None else f"on {safe_text(db)}"
    lines: list[str] = []
    if not done.asked:
        lines.append(f"nothing to stop: no run and no worker {what}")
    else:
        ended = [peer for peer in done.asked if peer not in done.running]
        lines.append(
            f"asked {_counted(len(done.asked), 'process')} {what} to stop; {len(ended)} ended, what was unfinished is kept"
        )
        lines += [f"  {'ended' if peer in ended else 'still running'}: {_named(peer)}" for peer in done.asked]
    if done.running:
        hint = "it may be stopped or hang; then end the process itself" if now else "with --now its handlers are cancelled"
        lines.append(f"after {duration_text(timeout)} not everything has ended: {hint}")
    unproven = unproven_text(len(done.unproven))
    if unproven is not None:
        lines.append(f"{unproven}; otherwise they stop when they beat again")
    for peer in done.left:
        why = "also has other batches; stop it without --batch" if peer.role == "work" else "is part of a service; stop that"
        lines.append(f"left alone: {_named(peer)}, which {why}")
    return lines


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}es"


def _named(peer: Peer) -> str:
    batches = ", ".join(safe_text(name, limit=60) for name in peer.batches[:3])
    return f"pid {peer.pid} on {safe_text(peer.host, limit=40)} ({safe_text(peer.role or 'unknown', limit=20)}: {batches})"
