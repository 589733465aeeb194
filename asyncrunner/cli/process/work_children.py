"""Run ``asyncrunner work --processes``: child processes run the handlers of a Runner, and this process supervises them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from asyncrunner.cli.process.signals import Signals
from asyncrunner.domain.clock import SystemClock
from asyncrunner.runner.processes.supervisor import Supervisor

if TYPE_CHECKING:
    from asyncrunner.domain.options import RunnerOptions
    from asyncrunner.runner.processes.child_process import ChildProcess
    from asyncrunner.runner.processes.messages import ChildState
    from asyncrunner.runner.runner import Runner

_MODULE: Final = "asyncrunner.cli.process.work_child"
_MIN_DEATHS: Final = 20


class WorkSettings(msgspec.Struct, frozen=True):
    """The settings of a child, as the command line has them. ``limits``: the child's share of the concurrency of each batch."""

    target: str
    db: str | None
    concurrency: int
    limits: Mapping[str, int]
    shutdown_timeout: float | None
    setup: str | None
    until_idle: bool
    log_level: str


def settings_of(runner: Runner, settings: WorkSettings, batches: Sequence[str], processes: int) -> list[WorkSettings]:
    """Divide the concurrency of the runner and of each handler among up to *processes* children.

    A handler with a lower concurrency than there are children runs in some of them; a child without a handler is left out.
    """
    count = min(settings.concurrency, processes)
    children: list[WorkSettings] = []
    for child in range(count):
        limits: dict[str, int] = {}
        for number, batch in enumerate(batches):
            limit = min(runner.handlers[batch].options.concurrency, settings.concurrency)
            share = _share(limit, count, (child + number) % count)
            if share:
                limits[batch] = share
        if limits:
            children.append(
                msgspec.structs.replace(settings, concurrency=_share(settings.concurrency, count, child), limits=limits)
            )
    return children


def _share(total: int, count: int, number: int) -> int:
    return total // count + (number < total % count)


def run_in_children(
    runner: Runner, settings: WorkSettings, batches: Sequence[str], processes: int, options: RunnerOptions
) -> int:
    """Run *batches* in child processes until a signal arrives or all have ended, and return the exit code.

    Raises ProcessesFailed if the children cannot run, or die again and again.
    """
    supervisor = Supervisor(
        _MODULE,
        [msgspec.json.encode(each) for each in settings_of(runner, settings, batches, processes)],
        on_state=_ignore,
        greeting=tuple,
        max_deaths=max(_MIN_DEATHS, *(2 * handler.options.max_attempts + 1 for handler in runner.handlers.values())),
        clock=SystemClock(),
    )
    return asyncio.run(_supervise(supervisor, options.shutdown_timeout))


def _ignore(child: ChildProcess, before: ChildState, state: ChildState) -> None:
    del child, before, state


async def _supervise(supervisor: Supervisor, shutdown_timeout: float) -> int:
    loop = asyncio.get_running_loop()

    def stop() -> None:
        supervisor.drain()
        loop.call_later(shutdown_timeout, supervisor.cancel)  # a child whose event loop is blocked does not count the time

    signals = Signals(stop, supervisor.cancel, has_begun=lambda: True, shutdown_timeout=lambda: shutdown_timeout)
    with signals.listening():
        supervisor.begin()
        await supervisor.run()
    return signals.exit_code
