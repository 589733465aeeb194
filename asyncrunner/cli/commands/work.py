"""``asyncrunner work``: run a Runner in a separate process, together with other processes on the same file."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import sys

from asyncrunner.cli.commands.run import EXIT_INTERRUPTED
from asyncrunner.cli.loader import load_runner
from asyncrunner.cli.log_file import log_to
from asyncrunner.cli.signals import Signals
from asyncrunner.errors import AsyncRunnerError, ConfigurationError
from asyncrunner.runner.idle import run_until_idle
from asyncrunner.runner.runner import Runner
from asyncrunner.text.escaping import safe_text

_LEVELS = ("debug", "info", "warning", "error")


def work(target: str, *, concurrency: int | None, until_idle: bool, log_level: str) -> int:
    """Run the Runner until a signal arrives, or with *until_idle* until no item is left; return the exit code.

    Raises AsyncRunnerError.
    """
    if log_level.lower() not in _LEVELS:
        raise ConfigurationError(f"--log-level {log_level!r}: give one of {', '.join(_LEVELS)}")
    runner = load_runner(target)
    if concurrency is not None:
        runner.settings = dataclasses.replace(runner.settings, concurrency=concurrency)
    log_to(sys.stderr, log_level)
    runner.role = "work"
    signals = Signals(runner, runner.request_stop, runner.request_cancel)
    try:
        asyncio.run(_serve(runner, signals, until_idle=until_idle))
    except (KeyboardInterrupt, asyncio.CancelledError):
        return EXIT_INTERRUPTED
    except AsyncRunnerError:
        raise
    except Exception as error:
        raise AsyncRunnerError(f"the worker failed with {error!r}; the outcomes of finished items are saved") from error
    return EXIT_INTERRUPTED if signals.last == signal.SIGINT else 0


async def _serve(runner: Runner, signals: Signals, *, until_idle: bool) -> None:
    signals.listen()
    await runner.start()
    try:
        names = ", ".join(safe_text(name, limit=60) for name in runner.handlers)
        where = safe_text(os.fspath(runner.db))
        print(f"Working on {where} (pid {os.getpid()}): {names}. Stop with Ctrl-C or SIGTERM.", file=sys.stderr)
        if until_idle:
            await run_until_idle(runner)
        elif runner.engine is not None:
            await asyncio.wait({runner.engine})
    finally:
        await runner.stop()
    runner.raise_failure()
