"""Format the output of ``asyncrunner stop``."""

from __future__ import annotations

from asyncrunner.admin.changes.stop import Stopping
from asyncrunner.store.liveness import unproven_text
from asyncrunner.store.snapshot import WorkerRow
from asyncrunner.text.durations import duration_text
from asyncrunner.text.escaping import counted, safe_text


def stop_lines(stopping: Stopping, db: str, batch: str | None, *, now: bool, timeout: float) -> list[str]:
    """Return lines for the processes that ended, that still run after *timeout* seconds, and that got no request."""
    scope = f"of {safe_text(batch)} in {safe_text(db)}" if batch is not None else f"on {safe_text(db)}"
    lines: list[str] = []
    if not stopping.asked and not stopping.unproven:
        lines.append(f"nothing to stop: no run or worker {scope}")
    elif stopping.asked:
        running = {worker.worker_id for worker in stopping.running}
        lines.append(
            f"requested a stop of {counted(len(stopping.asked), 'process')} {scope}; "
            f"{len(stopping.asked) - len(running)} ended, unfinished items are kept"
        )
        lines += [
            f"  {'still running' if worker.worker_id in running else 'ended'}: {_worker_text(worker)}"
            for worker in stopping.asked
        ]
    if stopping.running:
        hint = "kill a process that is suspended or hung" if now else "add --now to cancel the running handlers"
        lines.append(f"after {duration_text(timeout)} a process is still running: {hint}")
    unproven = unproven_text(len(stopping.unproven))
    if unproven is not None:
        lines.append(f"{unproven}; otherwise they stop at their next heartbeat")
    for worker in stopping.left:
        is_shared = worker.role == "work"
        reason = "also has other batches; stop it without --batch" if is_shared else "is part of a service; stop the service"
        lines.append(f"left alone: {_worker_text(worker)}, which {reason}")
    return lines


def _worker_text(worker: WorkerRow) -> str:
    batches = ", ".join(safe_text(name, limit=60) for name in worker.batches[:3])
    return f"pid {worker.pid} on {safe_text(worker.host, limit=40)} ({safe_text(worker.role or 'unknown', limit=20)}: {batches})"
