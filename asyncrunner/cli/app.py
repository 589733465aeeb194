"""Declare the commands and their options; the other modules of this package run them."""

from __future__ import annotations

import io
import os
import sys
import threading
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from asyncrunner.cli.commands import backup, change, check, export, inspect, purge
from asyncrunner.cli.commands.doctor import run_doctor
from asyncrunner.cli.commands.run import RunRequest, run_target
from asyncrunner.cli.commands.status import show_status
from asyncrunner.cli.commands.stop import stop as run_stop
from asyncrunner.cli.commands.work import work as run_worker
from asyncrunner.cli.item_files import FORMATS
from asyncrunner.cli.options import BatchOption, Db, env
from asyncrunner.cli.stdout import check_written, code_unread, drop_output, lost_output
from asyncrunner.domain.options import DEFAULT_DB, Settings
from asyncrunner.domain.retry import RetryPolicy
from asyncrunner.errors import AsyncRunnerError, ConfigurationError
from asyncrunner.text.escaping import safe_text

_EXIT_TIMEOUT_SECONDS = 1.0

_DEFAULT = Settings()

_RETRY = RetryPolicy()

app = typer.Typer(
    name="asyncrunner",
    help="Run a coroutine over many items and never lose one; every item's state is kept in one SQLite file.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def main() -> NoReturn:
    """Run the command line and exit: 0 success, 1 some items failed, 2 wrong usage or configuration, 130 interrupted."""
    code = 0
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # escape characters that an old locale cannot encode
    try:
        code = _run_command()
        check_written()
    except BrokenPipeError:
        drop_output()
        code = code_unread(*sys.argv[1:2])
    except OSError as error:
        if error.filename is not None:
            raise  # not an error of stdout
        drop_output()
        _print_error(lost_output(error, *sys.argv[1:2]))
        code = 2
    _exit(code)


def _run_command() -> int:
    """Run the command and return its exit code. Raises OSError if its output cannot be written."""
    try:
        app(prog_name="asyncrunner")
    except AsyncRunnerError as error:
        _print_error(error)
        return 2
    except KeyboardInterrupt:
        return 130
    except SystemExit as exit_request:
        if isinstance(exit_request.__context__, BrokenPipeError):  # typer turns it into exit code 1
            raise exit_request.__context__ from None
        return exit_request.code if isinstance(exit_request.code, int) else 0
    return 0


def _exit(code: int) -> NoReturn:
    """Exit within 1 s, also if the thread of a `def` handler hangs: a thread cannot be stopped and must not block the exit."""
    deadline = time.monotonic() + _EXIT_TIMEOUT_SECONDS
    try:
        for thread in threading.enumerate():
            if thread is not threading.main_thread() and not thread.daemon:
                thread.join(max(0.0, deadline - time.monotonic()))
                if thread.is_alive():
                    _exit_immediately(code)
    except KeyboardInterrupt:  # a second Ctrl-C
        _exit_immediately(code)
    sys.exit(code)


def _exit_immediately(code: int) -> NoReturn:
    sys.stderr.flush()
    if sys.stdout is not None:
        sys.stdout.flush()
    os._exit(code)


def _print_error(error: object) -> None:
    print("Error:", "\n".join(safe_text(line, limit=2000) for line in str(error).splitlines()), file=sys.stderr)


def _print_version(is_given: bool) -> None:
    if is_given:
        print(f"asyncrunner {version('asyncrunner')}")
        raise typer.Exit


@app.callback()
def _top(
    _version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


def _failure_limit(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        if text.endswith("%"):
            return float(text[:-1]) / 100
        return float(text) if "." in text else int(text)
    except ValueError as error:
        raise ConfigurationError(f"--max-failures {text!r}: give a number of items, or a share, as in 20% or 0.2") from error


@app.command(
    epilog="Example: asyncrunner run prices.py:fetch urls.txt --concurrency 50 --timeout 30",
    short_help="Run a handler over items, or continue with the items in the file.",
)
def run(
    target: Annotated[str, typer.Argument(help="The handler: package.module:name or path/to/file.py:name.")],
    items: Annotated[
        str | None,
        typer.Argument(
            help="A .txt (an item per line), .jsonl, .csv (a dict per row) or - for stdin. [default: items in the file]"
        ),
    ] = None,
    db: Db = Path(DEFAULT_DB),
    batch: Annotated[
        str | None, typer.Option(envvar=env("batch"), help="Name of this set of items in the file. [default: the handler's]")
    ] = None,
    key: Annotated[
        str | None, typer.Option(envvar=env("key"), help="Field whose value identifies an item. [default: the item itself]")
    ] = None,
    item_format: Annotated[
        str | None,
        typer.Option("--format", envvar=env("format"), help=f"Format of ITEMS: {', '.join(FORMATS)}. [default: by name]"),
    ] = None,
    concurrency: Annotated[
        int, typer.Option("--concurrency", "-c", envvar=env("concurrency"), help="Maximum number of concurrent handlers.")
    ] = _DEFAULT.concurrency,
    max_attempts: Annotated[
        int, typer.Option(envvar=env("max_attempts"), help="Maximum attempts per item, including the first.")
    ] = _DEFAULT.max_attempts,
    timeout: Annotated[float | None, typer.Option(envvar=env("timeout"), help="Seconds for one attempt. [default: none]")] = None,
    retry_initial: Annotated[
        float, typer.Option(envvar=env("retry_initial"), help="Maximum seconds before the first retry.")
    ] = _RETRY.initial,
    retry_factor: Annotated[
        float, typer.Option(envvar=env("retry_factor"), help="Factor by which the delay grows with each retry.")
    ] = _RETRY.factor,
    retry_cap: Annotated[
        float, typer.Option(envvar=env("retry_cap"), help="Maximum delay before a retry, in seconds.")
    ] = _RETRY.cap,
    retry_jitter: Annotated[
        str,
        typer.Option(
            envvar=env("retry_jitter"), help="full: a random delay up to the computed one; none: exactly the computed one."
        ),
    ] = _RETRY.jitter,
    retry_failed: Annotated[
        bool,
        typer.Option("--retry-failed", envvar=env("retry_failed"), help="Run all failed items again, with all their attempts."),
    ] = False,
    on_change: Annotated[
        str, typer.Option(envvar=env("on_change"), help="For a known key with a changed payload: error, keep or rerun.")
    ] = _DEFAULT.on_change,
    max_failures: Annotated[
        str | None,
        typer.Option(
            envvar=env("max_failures"),
            help="Stop after this many failed items, or this share of the newest 100 attempts (20%). [default: never]",
        ),
    ] = None,
    deadline: Annotated[
        float | None, typer.Option(envvar=env("deadline"), help="Seconds after which the run stops; the rest stays pending.")
    ] = None,
    rate_limit: Annotated[
        str | None, typer.Option(envvar=env("rate_limit"), help="Maximum starts per time, as in 50/s or 100/min. [default: none]")
    ] = None,
    run_in: Annotated[
        str | None, typer.Option(envvar=env("run_in"), help="Where a `def` runs: thread or process. [default: thread]")
    ] = None,
    durability: Annotated[
        str, typer.Option(envvar=env("durability"), help="full, or normal: a power failure may lose the last commits.")
    ] = _DEFAULT.durability,
    stale_after: Annotated[
        float,
        typer.Option(envvar=env("stale_after"), help="Seconds without a heartbeat after which a hung process loses its items."),
    ] = _DEFAULT.stale_after,
    shutdown_timeout: Annotated[
        float, typer.Option(envvar=env("shutdown_timeout"), help="Seconds that handlers have to finish after the first Ctrl-C.")
    ] = _DEFAULT.shutdown_timeout,
    retention: Annotated[
        str | None,
        typer.Option(envvar=env("retention"), help="Delete completed items after this time: 30d, 12h. [default: never]"),
    ] = None,
    log_file: Annotated[
        Path | None,
        typer.Option(envvar=env("log_file"), help="Append the log to this file. [default: warnings to stderr]"),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", envvar=env("dry_run"), help="Print what would run, and run nothing.")
    ] = False,
    detach: Annotated[
        bool, typer.Option("--detach", envvar=env("detach"), help="Run in the background, with a log next to the file.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", envvar=env("quiet"), help="No progress; a summary only if items failed.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", envvar=env("json"), help="Print the summary as JSON on stdout.")] = False,
) -> None:
    """Run a handler over items and keep the state of each item in one SQLite file.

    Run the same command again after a crash or Ctrl-C to continue: completed items are not run again. The first Ctrl-C or
    SIGTERM lets running handlers finish, the second cancels them. Exit code 0: success, 1: some items failed or the run stopped
    early, 2: wrong usage or configuration, 130: interrupted.
    """
    retry = {"initial": retry_initial, "factor": retry_factor, "cap": retry_cap, "jitter": retry_jitter}
    options = {
        "db": db, "batch": batch, "key": key, "concurrency": concurrency, "max_attempts": max_attempts, "timeout": timeout,
        "retry_failed": retry_failed, "on_change": on_change, "max_failures": _failure_limit(max_failures), "deadline": deadline,
        "rate_limit": rate_limit, "run_in": run_in, "durability": durability,
        "stale_after": stale_after, "shutdown_timeout": shutdown_timeout, "progress": not quiet, "retention": retention,
    }  # fmt: skip
    request = RunRequest(
        target,
        items,
        item_format,
        options,
        retry,
        quiet=quiet,
        as_json=as_json,
        log_file=log_file,
        detach=detach,
        dry_run=dry_run,
    )
    raise typer.Exit(run_target(request))


@app.command(
    epilog="Example: asyncrunner work shop.jobs:runner --concurrency 20",
    short_help="Run the handlers of a service in a separate process.",
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

    Several workers can run on one file, with or without a web process; the items of a worker that dies go to the others within a
    second. The first signal lets running handlers finish, the second cancels them; unfinished items are released. Exit code 0:
    stopped by SIGTERM or idle, 2: wrong usage, wrong configuration or an unusable file, 130: interrupted by Ctrl-C.
    """
    raise typer.Exit(run_worker(target, concurrency=concurrency, until_idle=until_idle, log_level=log_level))


@app.command(
    epilog="Example: asyncrunner stop --db asyncrunner.db --batch prices:fetch",
    short_help="Stop the runs and workers of a file.",
)
def stop(
    db: Db = Path(DEFAULT_DB),
    batch: Annotated[str | None, typer.Option(envvar=env("batch"), help="Only the runs of this batch. [default: all]")] = None,
    now: Annotated[
        bool, typer.Option("--now", envvar=env("now"), help="Cancel running handlers instead of letting them finish.")
    ] = False,
    wait: Annotated[float, typer.Option("--wait", envvar=env("wait"), help="Seconds to wait until they have ended.")] = 60.0,
    as_json: Annotated[bool, typer.Option("--json", envvar=env("json"), help="Print one JSON document on stdout.")] = False,
) -> None:
    """Stop the runs and workers of a file, wherever they were started, and wait until they have ended.

    Has the effect of one Ctrl-C in each process, with --now of two: unfinished items are released for the next run. A Runner
    inside a service is not stopped; with --batch, neither is a worker that also has other batches. Exit code 0: all have ended,
    or none was running, 1: a process has not ended in time, 2: wrong usage, or no such file or batch.
    """
    raise typer.Exit(run_stop(db, batch, now=now, timeout=wait, as_json=as_json))


@app.command(epilog="Example: asyncrunner doctor --db jobs.db --fix", short_help="Check a database file for problems.")
def doctor(
    db: Db = Path(DEFAULT_DB),
    batch: BatchOption = None,
    fix: Annotated[
        bool, typer.Option("--fix", envvar=env("fix"), help="Repair problems that can be repaired without risk.")
    ] = False,
    full: Annotated[
        bool, typer.Option("--full", envvar=env("full"), help="Also check every index entry; takes minutes for a large file.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", envvar=env("json"), help="Print one JSON document on stdout.")] = False,
) -> None:
    """Check a database file for problems: SQLite version, file system, permissions, schema, integrity, counts, workers, clock.

    Read-only without --fix; works while a run is active. --fix never changes a finished item. With --batch, the checks of
    counts and controls cover only that batch; all other checks cover the file. Exit code 0: nothing is wrong, 1: something
    is wrong, 2: wrong usage, or the file cannot be read.
    """
    raise typer.Exit(run_doctor(db, batch, fix=fix, full=full, as_json=as_json))


# --- the operator's commands: their functions are in change.py, keep.py, inspect.py and status.py --------------------------

_settings = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Change settings of a batch, also while it runs.")

app.add_typer(_settings, name="set", short_help="Change settings of a batch, also while it runs.")


def _add(name: str, function: Callable[..., None], short_help: str, *examples: str, to: typer.Typer = app) -> None:
    epilog = "\n\n".join(f"Example: asyncrunner {example}" for example in examples)
    to.command(name, short_help=short_help, epilog=epilog)(function)


_add("status", show_status, "Show the status of the batches of a file.", "status --db jobs.db --watch", "status --json")

_add(
    "list", inspect.list_items, "List items by status, error or age.",
    "list --status failed --error 'timed out*example.com'", "list --status processing --older-than 10m",
)  # fmt: skip

_add("show", inspect.show_item, "Show everything about an item.", "show welcome-42")

_add("failures", inspect.show_failures, "Show why items fail, one line per cause.", "failures --db jobs.db")

_add("stuck", inspect.show_stuck, "Show items that have been processing for a long time.", "stuck --older-than 15m")

_add("workers", inspect.show_workers, "Show the workers, their slots and claimed items.", "workers --json")

_add(
    "retry", change.retry, "Make failed or cancelled items pending again.",
    "retry welcome-42 welcome-43", "retry --error 'ConnectionError'", "retry --failed --batch shop.jobs:welcome",
)  # fmt: skip

_add("cancel", change.cancel, "Cancel items, including running ones.", "cancel welcome-42", "cancel --pending")

_add("pause", change.pause, "Pause a batch: no more items start.", "pause --batch shop.jobs:welcome")

_add("resume", change.resume, "Resume a paused or stopped batch.", "resume --batch shop.jobs:welcome")

_add(
    "concurrency", change.set_concurrency, "Set how many handlers run concurrently in each worker.",
    "set concurrency 5", "set concurrency default", to=_settings,
)  # fmt: skip

_add("recover", change.recover, "Recover the items of dead workers.", "recover --db jobs.db")

_add(
    "export", export.export, "Export items as JSON Lines, CSV or Parquet.",
    "export failed.csv --status failed", "export --format jsonl | gzip > items.jsonl.gz",
)  # fmt: skip

_add(
    "purge", purge.purge, "Delete finished items.",
    "purge --before 30d --dry-run", "purge --before 30d --status completed --status cancelled",
)  # fmt: skip

_add("backup", backup.backup, "Copy a file while workers run.", "backup jobs-monday.db --db jobs.db")

_add(
    "check", check.check, "Health check for monitoring: exits 1 if a batch needs attention.",
    "check --max-failed 100 --max-pending-age 15m",
)  # fmt: skip
