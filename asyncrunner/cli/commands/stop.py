"""The command ``stop``: stop the runs and workers of a file from another process."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any, Final

from asyncrunner.admin.changes.stop import Stopping, stop_workers
from asyncrunner.backends import open_admin, shown_location
from asyncrunner.cli.command import EXIT_FAILED, Db, Exit, Json, Option, command, env
from asyncrunner.cli.completers import batch_names
from asyncrunner.cli.render.stop import stop_lines
from asyncrunner.cli.session import print_json, print_lines
from asyncrunner.domain import DEFAULT_DB
from asyncrunner.domain.clock import SystemClock
from asyncrunner.store.snapshot import WorkerRow
from asyncrunner.store.workers import Stop
from asyncrunner.text.suggestions import no_such_batch
from asyncrunner.text.validation import checked_seconds

_MIN_LOCK_TIMEOUT_SECONDS: Final = 10.0  # minimum time for which store calls are retried while the file is locked


@command(examples=["stop --db asyncrunner.db --batch prices:fetch"])
def stop(
    db: Db = DEFAULT_DB,
    batch: Annotated[
        str | None, Option(envvar=env("batch"), help="Only the runs of this batch. [default: all]", complete=batch_names)
    ] = None,
    now: Annotated[
        bool, Option("--now", envvar=env("now"), help="Cancel running handlers instead of letting them finish.")
    ] = False,
    wait: Annotated[float, Option("--wait", envvar=env("wait"), help="Seconds to wait until they have ended.")] = 60.0,
    as_json: Json = False,
) -> None:
    """Stop the runs and workers of a file or server, wherever they were started, and wait until they have ended.

    The effect is that of one Ctrl-C in each process, or of two with --now: unfinished items are released for the next
    run. With several batches, the processes of all are stopped. A Runner inside a service is not stopped, and with
    --batch a worker that also has other batches is not stopped. Exit code 0: all processes have ended, or none was
    running, 1: a process has not ended in time, 2: wrong usage, or no such store or batch.
    """
    checked_seconds("--wait", wait)
    stopping = asyncio.run(_stop_workers(db, batch, Stop.CANCEL if now else Stop.DRAIN, wait))
    if as_json:
        print_json(
            {
                "db": shown_location(db),
                "batch": batch,
                **{name: _documents(workers) for name, workers in stopping._asdict().items()},
            }
        )
    else:
        print_lines(stop_lines(stopping, shown_location(db), batch, now=now, timeout=wait))
    raise Exit(EXIT_FAILED if stopping.running else 0)


async def _stop_workers(db: str, batch: str | None, how: Stop, timeout: float) -> Stopping:  # noqa: ASYNC109
    clock = SystemClock()
    store = open_admin(db, clock, retry_seconds=max(timeout, _MIN_LOCK_TIMEOUT_SECONDS))
    await store.open()  # raises for a missing file, another kind of file and an older schema, and changes nothing
    try:
        if batch is not None:
            names = [row.name for row in await store.batches()]
            if batch not in names:
                raise no_such_batch(shown_location(db), batch, names)
        return await stop_workers(store, clock, batch, how, timeout=timeout)
    finally:
        await store.close()


def _documents(workers: Sequence[WorkerRow]) -> list[dict[str, Any]]:
    return [
        {
            "worker_id": worker.worker_id,
            "host": worker.host,
            "pid": worker.pid,
            "role": worker.role,
            "batches": worker.batches,
        }
        for worker in workers
    ]
