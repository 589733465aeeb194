"""The command ``run``: run one batch, in the foreground or in the background, with signals, progress and a summary."""

from __future__ import annotations

import asyncio
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple, TextIO, cast

import typer

from asyncrunner.admin.arguments import failure_limit
from asyncrunner.batch.batch_run import BatchRun
from asyncrunner.batch.plan import check_batch, plan_of
from asyncrunner.batch.progress import Progress
from asyncrunner.batch.progress_display import Lines, view_of
from asyncrunner.batch.report import BatchReport
from asyncrunner.cli.command import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, Db, command, env
from asyncrunner.cli.item_files import ON_BAD_INPUT, ItemFile, is_stdin, read_items
from asyncrunner.cli.item_formats import FORMATS
from asyncrunner.cli.loader import load_handler, load_setup
from asyncrunner.cli.process.background import Detached, log_path, start_detached
from asyncrunner.cli.process.log_file import LogFile, log_to, open_log
from asyncrunner.cli.process.signals import Signals
from asyncrunner.cli.process.stdout import flush_stdout
from asyncrunner.cli.process.streams import make_stdout_lossy, stdout_failure
from asyncrunner.cli.render.plan import plan_json, plan_text
from asyncrunner.cli.render.summary import report_json, summary_text
from asyncrunner.domain.error_names import errors_named
from asyncrunner.domain.options import DEFAULT_DB, HandlerOptions, RunKeywords, RunnerOptions, RunOptions
from asyncrunner.domain.retry import RetryPolicy
from asyncrunner.errors import AsyncRunnerError, ConfigurationError
from asyncrunner.runner.runner import internals_of
from asyncrunner.serialization.codec import codecs_of
from asyncrunner.submission.encoder import Encoder
from asyncrunner.submission.naming import default_batch
from asyncrunner.text.durations import age
from asyncrunner.text.escaping import safe_text

_RUNNER: Final = RunnerOptions()
_HANDLER: Final = HandlerOptions()
_RETRY: Final = RetryPolicy()


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """The arguments and options of ``asyncrunner run``."""

    target: Annotated[str, typer.Argument(help="The handler: package.module:name or path/to/file.py:name.")]
    items: Annotated[
        str | None,
        typer.Argument(
            help="A file: .txt (an item per line), .jsonl, .json (an array of items), .csv or .tsv (a dict per row), each also "
            ".gz; a pipe; or - for stdin. [default: items in the file]"
        ),
    ] = None
    db: Db = DEFAULT_DB
    batch: Annotated[
        str | None, typer.Option(envvar=env("batch"), help="Name of this set of items in the file. [default: the handler's]")
    ] = None
    key: Annotated[
        str | None,
        typer.Option(
            envvar=env("key"),
            help="Field whose value identifies an item, or several, separated by commas. [default: the item itself]",
        ),
    ] = None
    item_format: Annotated[
        str | None,
        typer.Option("--format", envvar=env("format"), help=f"Format of ITEMS: {', '.join(FORMATS)}. [default: by name]"),
    ] = None
    fields: Annotated[
        str | None,
        typer.Option(
            envvar=env("fields"),
            help="The columns, or names of an object, to use of each item, separated by commas. [default: all]",
        ),
    ] = None
    on_bad_input: Annotated[
        str,
        typer.Option(
            envvar=env("on_bad_input"),
            help="For a line that cannot become an item: stop (the items before it are saved), skip (it is counted and "
            "reported at the end) or fail (the whole input is read first, and no item of it is accepted).",
        ),
    ] = ON_BAD_INPUT[0]
    concurrency: Annotated[
        int, typer.Option("--concurrency", "-c", envvar=env("concurrency"), help="Maximum number of concurrent handlers.")
    ] = _RUNNER.concurrency
    max_attempts: Annotated[
        int, typer.Option(envvar=env("max_attempts"), help="Maximum attempts per item, including the first.")
    ] = _HANDLER.max_attempts
    setup: Annotated[
        str | None,
        typer.Option(
            envvar=env("setup"),
            help="A function, named as the handler is, that opens what the handlers share: an async generator with one yield. "
            "The value is the handler's second argument. [default: none]",
        ),
    ] = None
    timeout: Annotated[float | None, typer.Option(envvar=env("timeout"), help="Seconds for one attempt. [default: none]")] = None
    retry_initial: Annotated[float, typer.Option(envvar=env("retry_initial"), help="Maximum seconds before the first retry.")] = (
        _RETRY.initial
    )
    retry_factor: Annotated[
        float, typer.Option(envvar=env("retry_factor"), help="Factor by which the delay grows with each retry.")
    ] = _RETRY.factor
    retry_cap: Annotated[float, typer.Option(envvar=env("retry_cap"), help="Maximum delay before a retry, in seconds.")] = (
        _RETRY.cap
    )
    retry_jitter: Annotated[
        str,
        typer.Option(
            envvar=env("retry_jitter"),
            help="equal: a random delay between half of the computed delay and all of it; full: between 0 and all of it; none: "
            "exactly the computed delay.",
        ),
    ] = _RETRY.jitter
    permanent: Annotated[
        list[str] | None,
        typer.Option(
            envvar=env("permanent"),
            help="More errors that are not retried, besides missing names and modules and HTTP 4xx other than 408, 409, 425 and "
            "429: names of exception types, as in ValueError or httpx.HTTPStatusError, separated by commas; may be repeated.",
        ),
    ] = None
    throttled_for: Annotated[
        str,
        typer.Option(
            envvar=env("throttled_for"),
            help="An item that a service puts off (HTTP 429) for longer than this time fails, as in 6h or 30m.",
        ),
    ] = str(_RETRY.throttled_for)
    retry_failed: Annotated[
        bool,
        typer.Option("--retry-failed", envvar=env("retry_failed"), help="Run all failed items again, with all their attempts."),
    ] = False
    leftovers: Annotated[
        str,
        typer.Option(
            envvar=env("leftovers"),
            help="For unfinished items of earlier runs that are not in ITEMS: run them too, or leave them pending.",
        ),
    ] = RunOptions().leftovers
    on_change: Annotated[
        str, typer.Option(envvar=env("on_change"), help="For a known key with a changed payload: error, keep or rerun.")
    ] = _HANDLER.on_change
    version: Annotated[
        str | None,
        typer.Option(
            "--batch-version",
            envvar=env("batch_version"),
            help="Name of what the handler does now, as in prompt-3: items that another version completed run again, and keep "
            "their old result until then. (--version prints the version of asyncrunner.) [default: nothing runs again]",
        ),
    ] = None
    max_failures: Annotated[
        str | None,
        typer.Option(
            envvar=env("max_failures"),
            help="Stop after this many failed items, or this share of the newest 100 attempts (20%). [default: never]",
        ),
    ] = None
    deadline: Annotated[
        float | None, typer.Option(envvar=env("deadline"), help="Seconds after which the run stops; the rest stays pending.")
    ] = None
    rate_limit: Annotated[
        str | None, typer.Option(envvar=env("rate_limit"), help="Maximum starts per time, as in 50/s or 100/min. [default: none]")
    ] = None
    run_in: Annotated[
        str | None, typer.Option(envvar=env("run_in"), help="Where a `def` runs: thread or process. [default: thread]")
    ] = None
    nan: Annotated[
        str,
        typer.Option(
            envvar=env("nan"), help="For NaN and infinity in items and results: refuse, or null, as which they are stored."
        ),
    ] = _HANDLER.nan
    durability: Annotated[
        str, typer.Option(envvar=env("durability"), help="full, or normal: a power failure may lose the last commits.")
    ] = _RUNNER.durability
    stale_after: Annotated[
        float,
        typer.Option(envvar=env("stale_after"), help="Seconds without a heartbeat after which a hung process loses its items."),
    ] = _RUNNER.stale_after
    shutdown_timeout: Annotated[
        float, typer.Option(envvar=env("shutdown_timeout"), help="Seconds that handlers have to finish after the first Ctrl-C.")
    ] = _RUNNER.shutdown_timeout
    retention: Annotated[
        str | None,
        typer.Option(envvar=env("retention"), help="Delete completed items after this time: 30d, 12h. [default: never]"),
    ] = None
    log_file: Annotated[
        Path | None,
        typer.Option(envvar=env("log_file"), help="Append the log to this file. [default: warnings to stderr]"),
    ] = None
    dry_run: Annotated[bool, typer.Option("--dry-run", envvar=env("dry_run"), help="Print what would run, and run nothing.")] = (
        False
    )
    detach: Annotated[
        bool, typer.Option("--detach", envvar=env("detach"), help="Run in the background, with a log next to the file.")
    ] = False
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", envvar=env("quiet"), help="No progress; a summary only if items failed.")
    ] = False
    as_json: Annotated[bool, typer.Option("--json", envvar=env("json"), help="Print the summary as JSON on stdout.")] = False

    def run_options(self) -> RunOptions:
        """Return the options of the run. Raises ConfigurationError for a value out of range."""
        options = {name: getattr(self, name) for name in _RUN_OPTIONS}
        options["max_failures"] = failure_limit(self.max_failures)
        options["key"] = _key_fields(self.key)
        options["progress"] = not self.quiet
        options["setup"] = load_setup(self.setup)
        options["retry"] = RetryPolicy(
            initial=self.retry_initial,
            factor=self.retry_factor,
            cap=self.retry_cap,
            jitter=cast("Any", self.retry_jitter),
            permanent=errors_named("--permanent", _names_of_errors(self.permanent)) if self.permanent else (),
            throttled_for=age(self.throttled_for, option="--throttled-for"),
        )
        return RunOptions.of("run", cast("RunKeywords", options))


# These options of the command have the same name as an option of a run.
_RUN_OPTIONS: Final = tuple(each.name for each in fields(RunRequest) if each.name in RunKeywords.__annotations__)


def _names_of_errors(texts: Sequence[str]) -> Sequence[str]:
    # The value of the environment variable is split at its spaces, so "ValueError, KeyError" arrives as two texts.
    return [text.removesuffix(",") for text in texts]


def _key_fields(text: str | None) -> str | Sequence[str] | None:
    names = [] if text is None else [name.strip() for name in text.split(",")]
    return text if len(names) < 2 else names


@command(
    "run",
    "Run a handler over items, or continue with the items in the file.",
    "run prices.py:fetch urls.txt --concurrency 50 --timeout 30",
    options=RunRequest,
)
def run(request: RunRequest) -> None:
    """Run a handler over items and keep the state of each item in one SQLite file.

    Run the same command again after a crash or Ctrl-C to continue: completed items are not run again. If the file has
    several batches, only the batch of this handler, or the one that --batch names, runs. The first Ctrl-C, SIGTERM or
    SIGHUP (unless nohup ignores it) lets running handlers finish, the second cancels them, and the third ends a process
    whose event loop a handler blocks. Exit code 0: success, 1: some items failed or the run stopped early, 2: wrong
    usage or configuration, 130: interrupted.
    """
    raise typer.Exit(_run_request(request))


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

    def print_skipped(self, file: TextIO | None = None) -> None:
        """Print which lines of the input were skipped, to stderr by default."""
        for line in [] if self.items is None else self.items.skipped_lines():
            print(line, file=file or sys.stderr)


def _prepare(request: RunRequest) -> _Prepared:
    options = request.run_options()
    options.check_items(request.items, "--leftovers leave")
    handler = load_handler(request.target)
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
    print(plan_json(plan) if request.as_json else plan_text(plan, options, has_input=items is not None))
    prepared.print_skipped()
    return 0


def _run(request: RunRequest, detached: Detached | None) -> int:
    make_stdout_lossy()
    prepared = _prepare(request)
    options, handler, items = prepared
    run: BatchRun[Any, Any] = BatchRun(items, handler, options, leave_option="--leftovers leave")
    log_file = _start_logging(request, run, detached)
    signals = Signals(run.runner, run.request_stop, run.request_cancel)
    try:
        report = asyncio.run(_run_batch(run, signals, detached))
    except (KeyboardInterrupt, asyncio.CancelledError):
        return EXIT_INTERRUPTED
    except AsyncRunnerError:
        if detached is not None:
            detached.restore_output()
        raise
    except Exception as error:  # noqa: BLE001 - the error comes from the input: one line, no traceback
        print(f"Error: the run failed with {safe_text(repr(error), limit=1000)}; finished items are saved", file=sys.stderr)
        return EXIT_USAGE
    if log_file is not None:
        print(summary_text(report, request.target, request.batch), file=log_file)
        prepared.print_skipped(log_file)
    skipped = 0 if items is None else items.skipped
    code = _print_report(request, report, skipped, interrupted=signals.received > 0 or run.stop_requested)
    prepared.print_skipped()
    if log_file is not None:
        log_file.check()
    return code


def _start_logging(request: RunRequest, run: BatchRun[Any, Any], detached: Detached | None) -> LogFile | None:
    """Set up the log and the progress display; return the log file of a run in the foreground, if it has one.

    A run in the foreground logs to the file and the terminal, a detached run only to its log.
    """
    if detached is not None:
        detached.redirect_to_log(request.log_file or log_path(Path(request.db), run.handler.batch))
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
        print(report_json(report, skipped))
        flush_stdout()
        failure = stdout_failure()
        if failure is not None:
            raise failure
    if not request.quiet or report.failed or report.leftovers.failed:
        print(summary_text(report, request.target, request.batch), file=sys.stderr)
    if interrupted:
        return EXIT_INTERRUPTED
    return EXIT_FAILED if report.failed or report.stopped else 0
