"""Long actions: they run beside the pages, with their progress, and can be aborted.

A job is in the memory of this process. If the process ends, the items that were changed stay changed, and the same action
does the rest.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import Final

from asyncrunner.admin.opened_file import OnProgress
from asyncrunner.admin.read_models import Progress
from asyncrunner.errors import AsyncRunnerError, ConfigurationError
from asyncrunner.text.escaping import counted, safe_text

log = logging.getLogger("asyncrunner.dashboard")

LARGE: Final = 2_000
"""The number of items above which a visitor gets the page of the job instead of waiting for its end."""

_MAX_RUNNING: Final = 8
_MAX_KEPT: Final = 100
_NUMBERS: Final = 10**10


class JobState(StrEnum):
    """The state of a job."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    ABORTED = "aborted"


class Job:
    """An action that takes many steps. ``result``: lines that describe what it did, or why it failed."""

    def __init__(self, number: int, title: str, visitor: str) -> None:
        self.number = number
        self.title = title
        self.visitor = visitor
        self.state = JobState.RUNNING
        self.progress: Progress | None = None
        self.result: list[str] = []
        self._error: AsyncRunnerError | None = None
        self._task: asyncio.Task[None] | None = None
        self._stepped = asyncio.Event()

    def start(self, work: Callable[[OnProgress], Awaitable[list[str]]]) -> None:
        """Run *work* in a task."""
        self._task = asyncio.get_running_loop().create_task(self._run(work))

    async def wait(self) -> bool:
        """Wait until the job has ended or is known to be large, and return whether it has ended. Raises its AsyncRunnerError."""
        await self._stepped.wait()
        if self._error is not None:
            raise self._error
        return self.state is not JobState.RUNNING

    def abort(self) -> None:
        """Request the end of the job after its current transaction."""
        if self._task is not None:
            self._task.cancel()

    def _step(self, progress: Progress) -> None:
        self.progress = progress
        if progress.of > LARGE:
            self._stepped.set()

    async def _run(self, work: Callable[[OnProgress], Awaitable[list[str]]]) -> None:
        try:
            self.result = await work(self._step)
            self.state = JobState.DONE
        except asyncio.CancelledError:
            done = "" if self.progress is None else f" after {self.progress.done:,} of {counted(self.progress.of, 'item')}"
            self.result = [f"Aborted{done}. What was done stays done; the same action does the rest."]
            self.state = JobState.ABORTED
        except AsyncRunnerError as error:
            self._error = error
            self.result = [safe_text(error, limit=2_000)]
            self.state = JobState.FAILED
        except Exception:
            self.result = ["The action failed; the log of the dashboard has the error."]
            self.state = JobState.FAILED
            log.exception("%s, by %s, failed", self.title, self.visitor)
        finally:
            self._stepped.set()
            outcome = safe_text(" ".join(self.result[-1:]), limit=500)
            log.info("%s, by %s: %s, %s", self.title, self.visitor, self.state.value, outcome)


class Jobs:
    """The newest jobs of a dashboard."""

    def __init__(self) -> None:
        self._jobs: dict[int, Job] = {}

    def start(self, title: str, visitor: str, work: Callable[[OnProgress], Awaitable[list[str]]]) -> Job:
        """Start a job. *title* says what it does, for its page and the log. Raises ConfigurationError if too many run."""
        running = [job for job in self._jobs.values() if job.state is JobState.RUNNING]
        if len(running) >= _MAX_RUNNING:
            raise ConfigurationError(f"{len(running)} actions run already; wait for the end of one, or abort one")
        job = Job(secrets.randbelow(_NUMBERS), safe_text(title, limit=300), visitor)
        self._jobs[job.number] = job
        for number in [number for number, each in self._jobs.items() if each.state is not JobState.RUNNING][:-_MAX_KEPT]:
            del self._jobs[number]
        job.start(work)
        return job

    def get(self, number: int | None) -> Job:
        """Return a job. Raises ConfigurationError for an unknown number."""
        job = self._jobs.get(number or 0)
        if job is None:
            raise ConfigurationError("this action is not known; perhaps the dashboard was restarted. Its changes are not undone")
        return job

    def newest(self) -> list[Job]:
        """Return the jobs, the newest first."""
        return list(reversed(self._jobs.values()))
