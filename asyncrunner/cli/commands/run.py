"""The command ``run``: run one batch, in the foreground or in the background, with signals, progress and a summary."""

from __future__ import annotations

import asyncio
import shlex
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TextIO

from asyncrunner.backends import exists, local_path
from asyncrunner.batch.batch_run import BatchRun
from asyncrunner.batch.plan import check_batch, plan_of
from asyncrunner.batch.progress import Progress
from asyncrunner.batch.progress_display import Lines, view_of
from asyncrunner.batch.report import BatchReport
from asyncrunner.cli.command import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, Exit, command
from asyncrunner.cli.item_files import ItemFile, is_stdin, read_items
from asyncrunner.cli.loader import load_handler, with_arguments
from asyncrunner.cli.process.background import Detached, log_path, start_detached
from asyncrunner.cli.process.log_file import LogFile, log_to, open_log
from asyncrunner.cli.process.on_end import run_on_end
from asyncrunner.cli.process.signals import Signals
from asyncrunner.cli.process.stdout import flush_stdout
from asyncrunner.cli.process.streams import make_stdout_lossy, stdout_failure
from asyncrunner.cli.render.plan import plan_json, plan_text
from asyncrunner.cli.render.summary import report_document, summary_text
from asyncrunner.cli.render.tables import terminal_width
from asyncrunner.cli.run_request import RunRequest
from asyncrunner.cli.session import print_lines
from asyncrunner.domain.options import RunOptions
from asyncrunner.errors import AsyncRunnerError, ConfigurationError, StoreUnavailable
from asyncrunner.runner.runner import internals_of
from asyncrunner.serialization.codec import codecs_of
from asyncrunner.submission.encoder import Encoder
from asyncrunner.submission.naming import default_batch
from asyncrunner.text.cells import wrapped
from asyncrunner.text.escaping import json_text, safe_text


@command(examples=["run prices.py:fetch urls.txt --concurrency 50 --timeout 30"], options=RunRequest)
def run(request: RunRequest) -> None:
    """Run a handler over items and keep the state of each item in a SQLite file or on a PostgreSQL server.

    Run the same command again after a crash or Ctrl-C to continue: completed items are not run again. With
    several batches, only the batch of this handler, or the one that --batch names, runs. The first Ctrl-C, SIGTERM or
    SIGHUP (unless nohup ignores it) lets running handlers finish, the second cancels them, and the third ends a process
    whose event loop a handler blocks. Exit code 0: success, 1: some items failed or the run stopped early, 2: wrong
    usage or configuration, 130: interrupted.
    """
    raise Exit(_run_request(request))


def _run_request(request: RunRequest) -> int:
    """Run the batch, plan it, or run it in the background, and return the exit code.

    Raises AsyncRunnerError for errors that the user can correct.
    """
    if request.dry_run:
        if request.detach:
            raise ConfigurationError("--dry-run cannot be combined with --detach; remove one of them")
        return _plan(request)
    if not request.detach:
        return _run(request, None)
    if request.items is not None and is_stdin(request.items):
        raise ConfigurationError("a detached run cannot read stdin; write the items to a file and give its path")
    return start_detached(partial(_run, request), as_json=request.as_json)


class _Prepared(NamedTuple):
    """A checked request; mistakes in the command line raise ConfigurationError before a request is prepared."""

    options: RunOptions
    handler: Callable[[Any], Any]
    items: ItemFile | None

    @property
    def skipped(self) -> int:
        """The number of lines of the input that were skipped."""
        return 0 if self.items is None else self.items.skipped

    def print_skipped(self, file: TextIO | None = None) -> None:
        """Print which lines of the input were skipped, to stderr by default."""
        for line in [] if self.items is None else self.items.skipped_lines():
            print(line, file=file or sys.stderr)


def _prepare(request: RunRequest) -> _Prepared:
    options = request.run_options()
    options.check_items(request.items, "--leftovers leave")
    limit = request.checked_limit()
    handler = with_arguments(load_handler(request.target), request.checked_arguments())
    items: ItemFile | None = None
    if request.items is None:
        asyncio.run(
            check_batch(
                options.runner.db, options.handler.batch or default_batch(handler), option="--{} ".format, quote=shlex.quote
            )
        )
    else:
        codec, _ = codecs_of(handler, has_setup=True, nan=options.handler.nan)
        items = read_items(
            request.items,
            request.item_format,
            codec,
            on_bad_input=request.on_bad_input,
            saves=not request.dry_run,
            fields=None if request.fields is None else [name.strip() for name in request.fields.split(",")],
            limit=limit,
        )
        if request.on_bad_input == "fail":
            items.check(Encoder(codec, options.handler.key).entry)
    return _Prepared(options, handler, items)


def _plan(request: RunRequest) -> int:
    prepared = _prepare(request)
    options, handler, items = prepared
    try:
        plan = asyncio.run(plan_of(items, handler, options))
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except AsyncRunnerError:
        raise
    except Exception as error:  # noqa: BLE001 - the error comes from the input: one line, no traceback
        print(f"Error: the input cannot be read: {safe_text(repr(error), limit=1000)}", file=sys.stderr)
        return EXIT_USAGE
    if request.as_json:
        print(plan_json(plan))
    else:
        lines = plan_text(plan, options, has_input=items is not None).splitlines()
        print_lines([part for line in lines for part in wrapped(line, terminal_width())])
    prepared.print_skipped()
    return 0


def _run(request: RunRequest, detached: Detached | None) -> int:
    make_stdout_lossy()
    prepared = _prepare(request)
    run: BatchRun[Any, Any] = BatchRun(prepared.items, prepared.handler, prepared.options, leave_option="--leftovers leave")
    code, summary = EXIT_USAGE, None
    try:
        if prepared.items is not None and not exists(prepared.options.runner.db):
            codec, _ = codecs_of(prepared.handler, has_setup=True, nan=prepared.options.handler.nan)
            prepared.items.check_first(Encoder(codec, prepared.options.handler.key).entry)
        code, report = _run_to_end(request, prepared, run, detached)
        summary = None if report is None else report_document(report, prepared.skipped)
    finally:
        if request.on_end is not None:
            run_on_end(request.on_end, code, internals_of(run.runner).store.location, run.handler.batch, summary)
    return code


def _run_to_end(
    request: RunRequest, prepared: _Prepared, run: BatchRun[Any, Any], detached: Detached | None
) -> tuple[int, BatchReport[Any, Any] | None]:
    """Run the batch and print its report. Return the exit code, and the report if the run ended with one."""
    log_file = _start_logging(request, run, detached)
    signals = Signals.of_runner(run.runner, run.request_stop, run.request_cancel)
    try:
        report = asyncio.run(_run_batch(run, signals, detached))
    except (KeyboardInterrupt, asyncio.CancelledError):
        return EXIT_INTERRUPTED, None
    except AsyncRunnerError as error:
        if isinstance(error, StoreUnavailable) and (signals.received or run.stop_requested):
            signals.print_unsaved(internals_of(run.runner).store.location)
            return EXIT_INTERRUPTED, None
        if detached is not None:
            detached.restore_output()
        raise
    except Exception as error:  # noqa: BLE001 - the error comes from the input: one line, no traceback
        print(f"Error: the run failed with {safe_text(repr(error), limit=1000)}; finished items are saved", file=sys.stderr)
        return EXIT_USAGE, None
    if log_file is not None:
        print(summary_text(report, request.target, request.batch, request.again()), file=log_file)
        prepared.print_skipped(log_file)
    code = _print_report(request, report, prepared.skipped, interrupted=signals.received > 0 or run.stop_requested)
    prepared.print_skipped()
    if log_file is not None:
        log_file.check()
    return code, report


def _start_logging(request: RunRequest, run: BatchRun[Any, Any], detached: Detached | None) -> LogFile | None:
    """Set up the log and the progress display; return the log file of a run in the foreground, if it has one.

    A run in the foreground logs to the file and the terminal, a detached run only to its log.
    """
    if detached is not None:
        detached.redirect_to_log(request.log_file or log_path(local_path(request.db), run.handler.batch))
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
    with signals.listening():
        async with run:
            if detached is not None:
                detached.report_start(run.handler.batch, internals_of(run.runner).store.location)
            return await run.finish()


def _print_report(request: RunRequest, report: BatchReport[Any, Any], skipped: int, *, interrupted: bool) -> int:
    if request.as_json:
        print(json_text(report_document(report, skipped)))
        flush_stdout()
        failure = stdout_failure()
        if failure is not None:
            raise failure
    if not request.quiet or report.failed or report.leftovers.failed:
        print(summary_text(report, request.target, request.batch, request.again()), file=sys.stderr)
    if interrupted:
        return EXIT_INTERRUPTED
    return EXIT_FAILED if report.failed or report.stopped else 0
