"""What a child process of ``asyncrunner work --processes`` does; only its parent starts this module."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from dataclasses import replace
from functools import partial
from typing import Any, Final

import msgspec

from asyncrunner.backends import open_engine
from asyncrunner.batch.processes.importing import importing
from asyncrunner.cli.loader import load_runner, load_setup
from asyncrunner.cli.process.log_file import log_to
from asyncrunner.cli.process.streams import make_stderr_lossy, make_stdout_lossy
from asyncrunner.cli.process.work_children import WorkSettings
from asyncrunner.runner.processes.messages import ChildState, Request
from asyncrunner.runner.processes.parent_link import ParentLink, run_child
from asyncrunner.runner.runner import internals_of, run_until_idle, stop_retrying
from asyncrunner.store.retrying import every

_REPORT_SECONDS: Final = 0.5
_MAX_SILENCE_SECONDS: Final = 1.0


class _Child:
    """The Runner of this child process."""

    def __init__(self, settings: WorkSettings) -> None:
        make_stderr_lossy()
        make_stdout_lossy()
        log_to(sys.stderr, settings.log_level)
        with importing():
            self._runner = load_runner(settings.target)
            setup = load_setup(settings.setup)
        self._internals = internals_of(self._runner)
        self._settings = settings
        options = self._internals.options
        self._options = replace(
            options,
            db=settings.db or options.db,
            concurrency=settings.concurrency,
            shutdown_timeout=options.shutdown_timeout if settings.shutdown_timeout is None else settings.shutdown_timeout,
            setup=setup or options.setup,
        )
        for batch, limit in settings.limits.items():
            handler = self._runner.handlers[batch]
            handler.options = replace(handler.options, concurrency=limit)
        self._stop: str | None = None

    async def run(self, link: ParentLink) -> None:
        """Run the handlers until the parent requests a stop or has ended, or with ``until_idle`` until no item is left to run.

        Raises the failure of the runner.
        """
        internals, db = self._internals, self._settings.db
        link.listen(self._take, shutdown_timeout=self._options.shutdown_timeout)
        store = None if db is None else open_engine(db, self._options.durability, internals.clock)
        await internals.start(role="work", options=self._options, store=store, batches=list(self._settings.limits))
        report = partial(self._report, link)
        reporting = asyncio.create_task(every(_REPORT_SECONDS, report, clock=internals.clock, immediately=True))
        try:
            self._apply_stop()  # it may have been requested before the start
            if self._settings.until_idle:
                await run_until_idle(self._runner)
            elif internals.engine_task is not None:
                await asyncio.wait({internals.engine_task})
        finally:
            reporting.cancel()
            await self._runner.stop()
        internals.raise_lasting_failure()
        link.send_end(ChildState(is_stopping=True))

    def _take(self, request: Request) -> None:
        self._stop = request.stop or self._stop
        self._apply_stop()

    def _apply_stop(self) -> None:
        if self._stop == "drain":
            self._internals.request_stop()
            stop_retrying(self._internals)
        elif self._stop == "cancel":
            self._internals.request_cancel()
            stop_retrying(self._internals, 0.0)

    async def _report(self, link: ParentLink) -> None:
        worker = self._internals.worker
        tally = {} if worker is None or not worker.processed else {"settled": worker.processed}
        link.send(ChildState(tally=tally, is_stopping=self._stop is not None), every=_MAX_SILENCE_SECONDS)


def _prepare(settings: bytes) -> Callable[[ParentLink], Coroutine[Any, Any, None]]:
    return _Child(msgspec.json.decode(settings, type=WorkSettings)).run


if __name__ == "__main__":
    run_child(_prepare)
