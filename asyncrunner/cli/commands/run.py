"""``asyncrunner run``: one batch in the foreground, with signals, progress and a summary."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

from asyncrunner.batch.batch_run import BatchRun
from asyncrunner.batch.plan import plan_of
from asyncrunner.batch.progress import Progress
from asyncrunner.batch.progress_display import Lines, view_of
from asyncrunner.batch.report import BatchReport
from asyncrunner.cli.background import Detached, log_path, start_detached
from asyncrunner.cli.item_files import items_of
from asyncrunner.cli.loader import load_target
from asyncrunner.cli.log_file import LogFile, log_to, open_log
from asyncrunner.cli.render.plan import plan_json, plan_text
from asyncrunner.cli.render.summary import as_json, summary
from asyncrunner.cli.signals import Signals
from asyncrunner.domain.options import RunOptions, Settings
from asyncrunner.domain.retry import RetryPolicy
from asyncrunner.errors import AsyncRunnerError, ConfigurationError
from asyncrunner.serialization.codec import codecs_of
from asyncrunner.text.escaping import safe_text

EXIT_FAILED: Final = 1

EXIT_USAGE: Final = 2

EXIT_INTERRUPTED: Final = 130


@dataclass(frozen=True, slots=True)
class RunRequest:
    """The arguments of ``asyncrunner run``; ``options`` are those of Settings, ``retry`` those of RetryPolicy."""

    target: str
    items: str | None
    item_format: str | None
    options: dict[str, Any]
    retry: dict[str, Any]
    quiet: bool
    as_json: bool
    log_file: Path | None = None
    detach: bool = False
    dry_run: bool = False


def run_target(request: RunRequest) -> int:
    """Run the batch, plan it or detach it, and return the exit code. Raises AsyncRunnerError for errors the user can correct."""
    if request.dry_run:
        if request.detach:
            raise ConfigurationError("--dry-run cannot be combined with --detach; remove one of them")
        return _plan(request)
    if not request.detach:
        return _run(request, None)
    if request.items == "-":
        raise ConfigurationError("a detached run cannot read stdin; write the items to a file and give its path")
    return start_detached(partial(_run, request), as_json=request.as_json)


class _Prepared(NamedTuple):
    """A checked request: mistakes in the command line have been reported by now."""

    settings: Settings
    handler: Callable[[Any], Any]
    items: AsyncIterator[Any] | None


def _prepare(request: RunRequest) -> _Prepared:
    settings = Settings.of("run", cast("RunOptions", {**request.options, "retry": RetryPolicy(**request.retry)}))
    handler = load_target(request.target)
    items: AsyncIterator[Any] | None = None
    if request.items is not None:
        items = items_of(request.items, request.item_format, codecs_of(handler)[0])
    return _Prepared(settings, handler, items)


def _plan(request: RunRequest) -> int:
    settings, handler, items = _prepare(request)
    try:
        plan = asyncio.run(plan_of(items, handler, settings))
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except AsyncRunnerError:
        raise
    except Exception as error:  # noqa: BLE001 - the error comes from the input: one line, no traceback
        print(f"Error: the input cannot be read: {safe_text(repr(error), limit=1000)}", file=sys.stderr)
        return EXIT_USAGE
    print(plan_json(plan) if request.as_json else plan_text(plan, settings, has_input=items is not None))
    return 0


def _run(request: RunRequest, detached: Detached | None) -> int:
    settings, handler, items = _prepare(request)
    run: BatchRun[Any, Any] = BatchRun(items, handler, settings)
    log_file = _start_logging(request, run, detached)
    signals = Signals(run.runner, run.request_stop, run.request_cancel)
    try:
        report = asyncio.run(_run_batch(run, signals, detached))
    except (KeyboardInterrupt, asyncio.CancelledError):
        return EXIT_INTERRUPTED
    except AsyncRunnerError:
        if detached is not None:
            detached.give_back()
        raise
    except Exception as error:  # noqa: BLE001 - the error comes from the input: one line, no traceback
        print(f"Error: the run failed with {safe_text(repr(error), limit=1000)}; finished items are saved", file=sys.stderr)
        return EXIT_USAGE
    if log_file is not None:
        print(summary(report, request.target, request.options["batch"]), file=log_file)
    code = _print_report(request, report, interrupted=signals.received > 0 or run.asked_to_stop)
    if log_file is not None:
        log_file.check()
    return code


def _start_logging(request: RunRequest, run: BatchRun[Any, Any], detached: Detached | None) -> LogFile | None:
    """Set up the log and the progress display; return the log file of a run in the foreground, if it has one.

    A run in the foreground logs to the file and the terminal, a detached run only to its log.
    """
    if detached is not None:
        detached.begin_to_log(request.log_file or log_path(Path(request.options["db"]), run.handler.batch))
        run.progress = None if request.quiet else Progress(Lines(sys.stderr, is_dated=True))
        return None
    if request.log_file is None:
        return None
    log_file = open_log(request.log_file)
    log_to(log_file, always=True)
    lines = Lines(log_file, is_dated=True)
    run.progress = Progress(lines) if request.quiet else Progress(view_of(sys.stderr), lines)
    return log_file


async def _run_batch(run: BatchRun[Any, Any], signals: Signals, detached: Detached | None) -> BatchReport[Any, Any]:
    signals.listen()
    async with run:
        if detached is not None:
            detached.has_begun(run.handler.batch, run.runner.store.location)
        return await run.finish()


def _print_report(request: RunRequest, report: BatchReport[Any, Any], *, interrupted: bool) -> int:
    if request.as_json:
        print(as_json(report))
    if not request.quiet or report.failed:
        print(summary(report, request.target, request.options["batch"]), file=sys.stderr)
    if interrupted:
        return EXIT_INTERRUPTED
    return EXIT_FAILED if report.failed or report.stopped else 0
