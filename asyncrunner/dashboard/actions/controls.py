"""Pause, resume and slow down batches; stop and recover workers; check the store; download a backup."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import Any, Final

import anyio
from starlette.responses import FileResponse, Response

from asyncrunner.admin.control import Control
from asyncrunner.admin.opened_file import OnProgress
from asyncrunner.backends import open_maintenance
from asyncrunner.dashboard.actions.call import Call
from asyncrunner.dashboard.actions.items import change, purge, purge_text, require_name
from asyncrunner.dashboard.actions.selection import Selection, Verb
from asyncrunner.dashboard.door import Receive, Send
from asyncrunner.store.maintenance import CheckLevel
from asyncrunner.text.escaping import counted

_BACKUP_NAME: Final = "backup.db"


async def pause(call: Call) -> Response:
    """Pause a batch."""
    batch = call.fields.required("batch")
    async with Control(call.db) as control:
        await control.pause(batch)
    call.log(f"pause {batch}")
    return call.back("pause")


async def resume(call: Call) -> Response:
    """Resume a batch."""
    batch = call.fields.required("batch")
    async with Control(call.db) as control:
        await control.resume(batch)
    call.log(f"resume {batch}")
    return call.back("resume")


async def concurrency(call: Call) -> Response:
    """Set how many handlers of a batch each worker runs; without a number, the program's setting applies again."""
    batch, number = call.fields.required("batch"), call.fields.number("concurrency")
    async with Control(call.db) as control:
        await control.set_concurrency(number, batch)
    call.log(f"set the concurrency of {batch}", "the program's" if number is None else str(number))
    return call.back("concurrency")


async def stop(call: Call) -> Response:
    """Ask the workers of a batch, or all, to stop; with ``now``, their handlers are cancelled. Does not wait for their end."""
    batch, now = call.fields.text("batch"), call.fields.flag("now")
    async with Control(call.db) as control:
        outcome = await control.stop(batch, now=now, wait=0)
    call.log(f"stop the workers{'' if batch is None else f' of {batch}'}{' now' if now else ''}", f"{len(outcome.asked)} asked")
    return call.back("stop-now" if now else "stop")


async def recover(call: Call) -> Response:
    """Recover the items of dead workers, or of one worker whose id is typed, which may be alive."""
    worker = call.fields.text("worker")
    if worker is not None:
        require_name(call.fields, worker)
    async with Control(call.db) as control:
        recovered = await control.recover([] if worker is None else [worker])
    count = sum(recovered.values())
    call.log("recover dead workers" if worker is None else f"recover worker {worker}", counted(count, "item"))
    return call.back("recovered", done=count)


async def change_items(call: Call, verb: Verb) -> Response:
    """Retry, rerun or cancel items. More than 2,000 items are a job with a page of its own."""
    chosen = Selection.of(verb, call.fields)
    numbers: list[int] = []

    async def work(on_progress: OnProgress) -> list[str]:
        changed, lines = await change(call.db, chosen, on_progress)
        numbers[:] = [changed.changed, changed.unchanged]
        return lines

    job = call.jobs.start(chosen.title, call.visitor.name, work)
    await job.wait()
    if numbers:
        return call.back("changed", done=numbers[0], left=numbers[1])
    return call.to_job(job)


async def purge_items(call: Call) -> Response:
    """Delete finished items of a batch whose name is typed."""
    batch, older_than = call.fields.required("batch"), call.fields.required("older_than")

    async def work(on_progress: OnProgress) -> list[str]:
        return [f"{purge_text(await purge(call.db, call.fields, on_progress, dry_run=False))} deleted."]

    require_name(call.fields, batch)
    job = call.jobs.start(f"purge items of {batch} that ended more than {older_than} ago", call.visitor.name, work)
    await job.wait()
    return call.to_job(job)


async def diagnose(call: Call) -> Response:
    """Check the file or the server, as ``asyncrunner doctor`` does."""

    async def work(_: OnProgress) -> list[str]:
        findings = await open_maintenance(call.db).check(full=False)
        wrong = any(finding.level is CheckLevel.WRONG for finding in findings)
        end = "Something is wrong: see `asyncrunner doctor`." if wrong else "Nothing is wrong."
        return [*(f"{finding.level.value}: {finding.check}: {finding.message}" for finding in findings), end]

    return call.to_job(call.jobs.start("check the store", call.visitor.name, work))


async def backup(call: Call) -> Response:
    """Send a copy of the file as it is now. It is written to this machine first, and deleted after the download."""
    folder = Path(await anyio.to_thread.run_sync(tempfile.mkdtemp))

    def delete() -> None:
        import shutil

        shutil.rmtree(folder, ignore_errors=True)

    try:
        async with Control(call.db) as control:
            size = await control.backup(folder / _BACKUP_NAME)
    except BaseException:
        await anyio.to_thread.run_sync(delete)
        raise
    call.log("download a backup", counted(size, "byte"))
    name = f"{Path(call.db).stem}-backup.db"
    return _Download(folder / _BACKUP_NAME, delete, name)


class _Download(FileResponse):
    """A file that is deleted after the response, however it ends: a client that leaves, or a range that is none, too."""

    def __init__(self, path: Path, delete: Callable[[], None], name: str) -> None:
        super().__init__(path, filename=name)
        self._delete = delete

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Send the file, and delete it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(self._delete)


async def abort(call: Call) -> Response:
    """Abort a job after its current transaction."""
    job = call.jobs.get(call.fields.number("job"))
    job.abort()
    call.log(f"abort {job.title}")
    return call.to_job(job)
