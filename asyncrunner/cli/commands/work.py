"""The command ``work``: run a Runner in a separate process, together with other processes on the same file."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import Annotated, Final

import typer

from asyncrunner.cli.command import EXIT_INTERRUPTED, command, env
from asyncrunner.cli.loader import load_runner
from asyncrunner.cli.log_file import log_to
from asyncrunner.cli.signals import Signals
from asyncrunner.errors import AsyncRunnerError
from asyncrunner.runner.idle import run_until_idle
from asyncrunner.runner.runner import Runner, internals_of
from asyncrunner.text.escaping import safe_text
from asyncrunner.text.validation import checked_choice

_LEVELS: Final = ("debug", "info", "warning", "error")


@command(
    "work",
    "Run the handlers of a service in a separate process.",
    "work shop.jobs:runner --concurrency 20",
)
def work(
    target: Annotated[str, typer.Argument(help="The Runner: package.module:name or path/to/file.py:name.")],
    concurrency: Annotated[
        int | None,
        typer.Option(
            "-c",
            "--concurrency",
            envvar=env("concurrency"),
            help="Maximum number of concurrent handlers. [default: the Runner's]",
        ),
    ] = None,
    until_idle: Annotated[
        bool, typer.Option("--until-idle", envvar=env("until_idle"), help="Exit when no item is left to run.")
    ] = False,
    log_level: Annotated[
        str, typer.Option(envvar=env("log_level"), help="debug, info, warning or error; logs go to stderr.")
    ] = "info",
) -> None:
    """Run the handlers of a Runner until Ctrl-C or SIGTERM.

    Several workers can run on one file, with or without a web process; when a worker dies, the others recover its items
    within a second. The first signal lets running handlers finish, the second cancels them; unfinished items are
    released. Exit code 0: stopped by SIGTERM or idle, 2: wrong usage, wrong configuration or an unusable file, 130:
    interrupted by Ctrl-C.
    """
    checked_choice("--log-level", log_level.lower(), _LEVELS)
    runner = load_runner(target)
    log_to(sys.stderr, log_level)
    raise typer.Exit(_run_worker(runner, concurrency, until_idle=until_idle))


def _run_worker(runner: Runner, concurrency: int | None, *, until_idle: bool) -> int:
    """Run until a signal arrives, or with *until_idle* until no item is left to run, and return the exit code.

    Raises AsyncRunnerError if the worker fails.
    """
    signals = Signals(runner, runner.request_stop, runner.request_cancel)
    try:
        asyncio.run(_serve(runner, signals, concurrency, until_idle=until_idle))
    except (KeyboardInterrupt, asyncio.CancelledError):
        return EXIT_INTERRUPTED
    except AsyncRunnerError:
        raise
    except Exception as error:
        raise AsyncRunnerError(f"the worker failed with {error!r}; the outcomes of finished items are saved") from error
    return EXIT_INTERRUPTED if signals.last == signal.SIGINT else 0


async def _serve(runner: Runner, signals: Signals, concurrency: int | None, *, until_idle: bool) -> None:
    signals.listen()
    internals = internals_of(runner)
    await internals.start(role="work", concurrency=concurrency)
    try:
        names = ", ".join(safe_text(name, limit=60) for name in runner.handlers)
        where = safe_text(runner.db)
        print(f"Working on {where} (pid {os.getpid()}): {names}. Stop with Ctrl-C or SIGTERM.", file=sys.stderr)
        if until_idle:
            await run_until_idle(runner)
        elif internals.engine_task is not None:
            await asyncio.wait({internals.engine_task})
    finally:
        await runner.stop()
    internals.raise_failure()
