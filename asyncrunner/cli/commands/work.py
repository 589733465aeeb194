"""The command ``work``: run a Runner in a separate process, together with other processes on the same file."""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple, cast

from asyncrunner.backends import exists, full_location, open_engine
from asyncrunner.cli.command import EXIT_INTERRUPTED, Argument, Exit, Option, command, env
from asyncrunner.cli.completers import batch_names, files, one_of
from asyncrunner.cli.loader import load_runner, load_setup
from asyncrunner.cli.process.log_file import log_to
from asyncrunner.cli.process.signals import Signals
from asyncrunner.cli.process.streams import make_stdout_lossy
from asyncrunner.cli.process.work_children import WorkSettings, run_in_children
from asyncrunner.domain.options import MAX_PROCESSES
from asyncrunner.errors import AsyncRunnerError, ConfigurationError, StoreUnavailable
from asyncrunner.runner.runner import Runner, internals_of, run_until_idle
from asyncrunner.store.protocols import Store
from asyncrunner.text.escaping import safe_text
from asyncrunner.text.suggestions import did_you_mean
from asyncrunner.text.validation import checked_choice, checked_count

if TYPE_CHECKING:
    from asyncrunner.domain.options import RunnerOptions, SetupFunction

_LEVELS: Final = ("debug", "info", "warning", "error")


@command(examples=["work shop.jobs:runner --concurrency 20", "work shop.jobs:runner --db jobs.db --batch mails"])
def work(
    target: Annotated[str, Argument("TARGET", help="The Runner: package.module:name or path/to/file.py:name.")],
    concurrency: Annotated[
        int | None,
        Option(
            "-c",
            "--concurrency",
            envvar=env("concurrency"),
            help="Maximum number of concurrent handlers. [default: the Runner's]",
        ),
    ] = None,
    processes: Annotated[
        int,
        Option(
            envvar=env("processes"),
            help="Run the handlers in this many child processes, which share the concurrency; 1: in this process.",
        ),
    ] = 1,
    db: Annotated[
        str | None,
        Option(
            "--db",
            envvar=env("db"),
            help="The SQLite file or postgresql:// URL that stores the items. [default: the Runner's]",
            complete=files,
        ),
    ] = None,
    batch: Annotated[
        list[str] | None,
        Option(
            "--batch",
            "-b",
            envvar=env("batch"),
            help="Run only this batch; may be given several times. [default: all]",
            complete=batch_names,
        ),
    ] = None,
    shutdown_timeout: Annotated[
        float | None,
        Option(
            envvar=env("shutdown_timeout"),
            help="Seconds that handlers have to finish after the first signal. [default: the Runner's]",
        ),
    ] = None,
    setup: Annotated[
        str | None,
        Option(
            envvar=env("setup"), help="A function that opens what the handlers share, named as TARGET is. [default: the Runner's]"
        ),
    ] = None,
    until_idle: Annotated[
        bool, Option("--until-idle", envvar=env("until_idle"), help="Exit when no item is left to run.")
    ] = False,
    log_level: Annotated[
        str, Option(envvar=env("log_level"), help="debug, info, warning or error; logs go to stderr.", complete=one_of(_LEVELS))
    ] = "info",
) -> None:
    """Run the handlers of a Runner until Ctrl-C, SIGTERM or SIGHUP.

    Several workers can run on one file or server, with or without a web process; when a worker dies, the others recover its items
    within a second. With several batches, the worker runs those for which the Runner has handlers. The first signal
    lets running handlers finish, the second cancels them; unfinished items are released. A third signal ends a process
    whose event loop a handler blocks. The first line shows the location of the items. Exit code 0: stopped by
    SIGTERM, SIGHUP or idle, 2: wrong usage, wrong configuration or an unusable store, 130: interrupted by Ctrl-C.
    """
    checked_choice("--log-level", log_level.lower(), _LEVELS)
    runner = load_runner(target)
    batches = _checked_batches(runner, batch)
    start = _start_of(runner, db, concurrency, shutdown_timeout, load_setup(setup), batches)
    checked_count("--processes", processes, at_most=MAX_PROCESSES)
    make_stdout_lossy()
    log_to(sys.stderr, log_level)
    if processes == 1:
        raise Exit(_run_worker(runner, start, until_idle=until_idle))
    settings = WorkSettings(
        target, db, concurrency or start.options.concurrency, {}, shutdown_timeout, setup, until_idle, log_level.lower()
    )
    _print_place(runner, start, f"{processes} processes of pid {os.getpid()}")
    raise Exit(run_in_children(runner, settings, start.batches or list(runner.handlers), processes, start.options))


class _Start(NamedTuple):
    """The options of the worker; its store, or None for that of the Runner; the names of its batches, or None for all."""

    options: RunnerOptions
    store: Store | None
    batches: list[str] | None


def _checked_batches(runner: Runner, names: list[str] | None) -> list[str] | None:
    whole = " ".join(names or ())
    if whole in runner.handlers and not all(name in runner.handlers for name in names or ()):
        return [whole]  # the value of the environment variable is split at its spaces
    for name in names or ():
        if name not in runner.handlers:
            raise ConfigurationError(f"the Runner has no handler of batch {name!r}; {did_you_mean(name, runner.handlers)}")
    return names or None


def _start_of(
    runner: Runner,
    db: str | None,
    concurrency: int | None,
    shutdown_timeout: float | None,
    setup: SetupFunction | None,
    batches: list[str] | None,
) -> _Start:
    """Return the values for the start of *runner*; None keeps its own. Raises ConfigurationError for a value out of range."""
    internals = internals_of(runner)
    given = {"db": db, "concurrency": concurrency, "shutdown_timeout": shutdown_timeout, "setup": setup}
    options = replace(internals.options, **cast("Any", {name: value for name, value in given.items() if value is not None}))
    store = None if db is None else open_engine(db, options.durability, internals.clock)
    return _Start(options, store, batches)


def _run_worker(runner: Runner, start: _Start, *, until_idle: bool) -> int:
    """Run until a signal arrives, or with *until_idle* until no item is left to run, and return the exit code.

    Raises AsyncRunnerError if the worker fails.
    """
    signals = Signals.of_runner(runner, runner.request_stop, runner.request_cancel)
    try:
        asyncio.run(_serve_until_signal(runner, signals, start, until_idle=until_idle))
    except (KeyboardInterrupt, asyncio.CancelledError):
        return EXIT_INTERRUPTED
    except AsyncRunnerError as error:
        if not (isinstance(error, StoreUnavailable) and signals.received):
            raise
        signals.print_unsaved((start.store or internals_of(runner).store).location)
    except Exception as error:
        raise AsyncRunnerError(f"the worker failed with {error!r}; the outcomes of finished items are saved") from error
    return signals.exit_code


async def _serve_until_signal(runner: Runner, signals: Signals, start: _Start, *, until_idle: bool) -> None:
    with signals.listening():
        await _serve(runner, start, until_idle=until_idle)


def _print_place(runner: Runner, start: _Start, processes: str, *, is_new: bool | None = None) -> None:
    """Print on which file this program works, whether it *is_new*, and which *processes* do the work."""
    location = (start.store or internals_of(runner).store).location
    where = safe_text(full_location(location), limit=1000)
    if is_new or (is_new is None and not exists(location)):
        print(
            f"There was no store at {where}, so one was created. If it should have items, check the location (--db).",
            file=sys.stderr,
        )
    names = ", ".join(safe_text(name, limit=60) for name in start.batches or runner.handlers)
    print(f"Working on {where} ({processes}): {names}. Stop with Ctrl-C or SIGTERM.", file=sys.stderr)


async def _serve(runner: Runner, start: _Start, *, until_idle: bool) -> None:
    internals = internals_of(runner)
    is_new = not exists((start.store or internals.store).location)
    await internals.start(role="work", options=start.options, store=start.store, batches=start.batches)
    try:
        _print_place(runner, start, f"pid {os.getpid()}", is_new=is_new)
        if until_idle:
            await run_until_idle(runner)
        elif internals.engine_task is not None:
            await asyncio.wait({internals.engine_task})
    finally:
        await runner.stop()
    internals.raise_failure()
