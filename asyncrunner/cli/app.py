"""The commands and their options. What they do is in the modules beside this one."""

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

from asyncrunner.cli import change, keep, look
from asyncrunner.cli.doctor import run_doctor
from asyncrunner.cli.items import FORMATS
from asyncrunner.cli.options import BatchOption, Db, env
from asyncrunner.cli.output import check_written, code_unread, drop_output, lost_output
from asyncrunner.cli.run import RunRequest, run_target
from asyncrunner.cli.status import show_status
from asyncrunner.cli.stop import stop as run_stop
from asyncrunner.cli.work import work as run_worker
from asyncrunner.errors import AsyncRunnerError, ConfigurationError
from asyncrunner.retry import RetryPolicy
from asyncrunner.settings import DEFAULT_DB, Settings
from asyncrunner.text import safe_text

__all__ = ["app", "main"]

_PATIENCE_SECONDS = 1.0
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
    """Run the command line and exit: 0 all good, 1 some items failed, 2 usage or configuration, 130 interrupted."""
    code = 0
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # what an old locale cannot say is escaped
    try:
        code = _called()
        check_written()
    except BrokenPipeError:
        drop_output()
        code = code_unread(*sys.argv[1:2])
    except OSError as error:
        if error.filename is not None:
            raise  # not our output
        drop_output()
        _complain(lost_output(error, *sys.argv[1:2]))
        code = 2
    _leave(code)


def _called() -> int:
    """The exit code of the command. Raises OSError where its output cannot be written."""
    try:
        app(prog_name="asyncrunner")
    except AsyncRunnerError as error:
        _complain(error)
        return 2
    except KeyboardInterrupt:
        return 130
    except SystemExit as done:
        if isinstance(done.__context__, BrokenPipeError):  # typer ends with 1 then
            raise done.__context__ from None
        return done.code if isinstance(done.code, int) else 0
    return 0


def _leave(code: int) -> NoReturn:
    """Exit, also if a `def` handler hangs in its thread: it cannot be stopped, and must not keep the program."""
    give_up_at = time.monotonic() + _PATIENCE_SECONDS
    try:
        for thread in threading.enumerate():
            if thread is not threading.main_thread() and not thread.daemon:
                thread.join(max(0.0, give_up_at - time.monotonic()))
                if thread.is_alive():
                    _leave_at_once(code)
    except KeyboardInterrupt:  # once more
        _leave_at_once(code)
    sys.exit(code)


def _leave_at_once(code: int) -> NoReturn:
    sys.stderr.flush()
    if sys.stdout is not None:
        sys.stdout.flush()
    os._exit(code)


def _complain(error: object) -> None:
    print("Error:", "\n".join(safe_text(line, limit=2000) for line in str(error).splitlines()), file=sys.stderr)


def _print_version(wanted: bool) -> None:
    if wanted:
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
    short_help="Run a handler over items, or go on with what the file holds.",
)
def run(
    target: Annotated[str, typer.Argument(help="The handler: package.module:name or path/to/file.py:name.")],
    items: Annotated[
        str | None,
        typer.Argument(help="A .txt (a line an item), .jsonl, .csv (a dict a row) or - for stdin. Without it the run goes on."),
    ] = None,
    db: Db = Path(DEFAULT_DB),
    batch: Annotated[
        str | None, typer.Option(envvar=env("batch"), help="Name of this set of items in the file. [default: the handler's]")
    ] = None,
    key: Annotated[
        str | None, typer.Option(envvar=env("key"), help="Field that identifies an item. [default: the item itself]")
    ] = None,
    item_format: Annotated[
        str | None,
        typer.Option("--format", envvar=env("format"), help=f"Form of ITEMS: {', '.join(FORMATS)}. [default: by name]"),
    ] = None,
    concurrency: Annotated[
        int, typer.Option("--concurrency", "-c", envvar=env("concurrency"), help="Handlers that run at once.")
    ] = _DEFAULT.concurrency,
    max_attempts: Annotated[
        int, typer.Option(envvar=env("max_attempts"), help="Runs of an item, the first included.")
    ] = _DEFAULT.max_attempts,
    timeout: Annotated[float | None, typer.Option(envvar=env("timeout"), help="Seconds for one attempt. [default: none]")] = None,
    retry_initial: Annotated[
        float, typer.Option(envvar=env("retry_initial"), help="Seconds before the first retry, at most.")
    ] = _RETRY.initial,
    retry_factor: Annotated[
        float, typer.Option(envvar=env("retry_factor"), help="By how much that grows with each retry.")
    ] = _RETRY.factor,
    retry_cap: Annotated[float, typer.Option(envvar=env("retry_cap"), help="The longest wait, in seconds.")] = _RETRY.cap,
    retry_jitter: Annotated[
        str, typer.Option(envvar=env("retry_jitter"), help="full: anything up to that wait; none: just that wait.")
    ] = _RETRY.jitter,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", envvar=env("retry_failed"), help="Give every failed item a fresh start.")
    ] = False,
    on_change: Annotated[
        str, typer.Option(envvar=env("on_change"), help="A known key with another payload: error, keep or rerun.")
    ] = _DEFAULT.on_change,
    max_failures: Annotated[
        str | None,
        typer.Option(
            envvar=env("max_failures"),
            help="Stop when that many items have failed, or that share of the newest 100 attempts (20%). [default: never]",
        ),
    ] = None,
    deadline: Annotated[
        float | None, typer.Option(envvar=env("deadline"), help="Seconds after which the run stops; the rest stays pending.")
    ] = None,
    rate_limit: Annotated[
        str | None, typer.Option(envvar=env("rate_limit"), help="Starts per time, as in 50/s or 100/min. [default: none]")
    ] = None,
    run_in: Annotated[
        str | None, typer.Option(envvar=env("run_in"), help="Where a `def` runs: thread or process. [default: thread]")
    ] = None,
    durability: Annotated[
        str, typer.Option(envvar=env("durability"), help="full; or normal: a power cut may take the last commits.")
    ] = _DEFAULT.durability,
    stale_after: Annotated[
        float, typer.Option(envvar=env("stale_after"), help="Seconds of silence after which a hung process loses its items.")
    ] = _DEFAULT.stale_after,
    shutdown_timeout: Annotated[
        float, typer.Option(envvar=env("shutdown_timeout"), help="Seconds that handlers have to end after the first Ctrl-C.")
    ] = _DEFAULT.shutdown_timeout,
    retention: Annotated[
        str | None,
        typer.Option(envvar=env("retention"), help="Forget completed items after that time: 30d, 12h. [default: never]"),
    ] = None,
    log_file: Annotated[
        Path | None,
        typer.Option(envvar=env("log_file"), help="Append the log to that file. [default: warnings to stderr]"),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", envvar=env("dry_run"), help="Say what would be run, and run nothing.")
    ] = False,
    detach: Annotated[
        bool, typer.Option("--detach", envvar=env("detach"), help="Run in the background, with a log beside the file.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", envvar=env("quiet"), help="No progress; a summary only of failures.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", envvar=env("json"), help="The summary as JSON on stdout.")] = False,
) -> None:
    """Run a handler over items, each item's state kept in one SQLite file.

    Run it again after a crash or Ctrl-C and it goes on: what is done is not done again. Ctrl-C or SIGTERM once lets
    running handlers end, twice cancels them. Exit code 0: all good, 1: some items failed, 2: usage or configuration,
    130: interrupted.
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
    short_help="Run a service's handlers in a process of their own.",
)
def work(
    target: Annotated[str, typer.Argument(help="The Runner: package.module:name or path/to/file.py:name.")],
    concurrency: Annotated[
        int | None,
        typer.Option("-c", "--concurrency", envvar=env("concurrency"), help="Handlers at once. [default: its own]"),
    ] = None,
    until_idle: Annotated[
        bool, typer.Option("--until-idle", envvar=env("until_idle"), help="End when nothing is left to do.")
    ] = False,
    log_level: Annotated[
        str, typer.Option(envvar=env("log_level"), help="debug, info, warning or error; the log goes to stderr.")
    ] = "info",
) -> None:
    """Run the handlers of a Runner until Ctrl-C or SIGTERM.

    Start several on one file, beside a web process or not; what one that dies held goes to the others within a second.
    The first signal lets running handlers end, the second cancels them; what is not finished is given back. Exit code 0: stopped
    by SIGTERM or idle, 2: usage, configuration or an unusable file, 130: interrupted by Ctrl-C.
    """
    raise typer.Exit(run_worker(target, concurrency=concurrency, until_idle=until_idle, log_level=log_level))


@app.command(
    epilog="Example: asyncrunner stop --db asyncrunner.db --batch prices:fetch",
    short_help="Stop the runs and workers of a file, from outside.",
)
def stop(
    db: Db = Path(DEFAULT_DB),
    batch: Annotated[str | None, typer.Option(envvar=env("batch"), help="Only the runs of that batch. [default: all]")] = None,
    now: Annotated[
        bool, typer.Option("--now", envvar=env("now"), help="Cancel running handlers instead of letting them end.")
    ] = False,
    wait: Annotated[float, typer.Option("--wait", envvar=env("wait"), help="Seconds to wait for their end.")] = 60.0,
    as_json: Annotated[bool, typer.Option("--json", envvar=env("json"), help="One JSON document on stdout.")] = False,
) -> None:
    """Stop the runs and workers of a file, wherever they were started, and wait until they have ended.

    Like one Ctrl-C there, with --now like two: what is not finished is given back, and the next run takes it up. A runner inside
    a service is left alone, and with --batch so is a worker that has other batches, too. Exit code 0: all have ended, or
    nothing was running; 1: somebody has not ended in time; 2: usage, or no such file or batch.
    """
    raise typer.Exit(run_stop(db, batch, now=now, timeout=wait, as_json=as_json))


@app.command(epilog="Example: asyncrunner doctor --db jobs.db --fix", short_help="Look for what may be wrong with a file.")
def doctor(
    db: Db = Path(DEFAULT_DB),
    batch: BatchOption = None,
    fix: Annotated[bool, typer.Option("--fix", envvar=env("fix"), help="Put right what can be put right without risk.")] = False,
    full: Annotated[
        bool, typer.Option("--full", envvar=env("full"), help="Check every index entry too; minutes for a large file.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", envvar=env("json"), help="One JSON document on stdout.")] = False,
) -> None:
    """Look for what may be wrong with a file: SQLite, its place, permissions, schema, integrity, counts, workers, clock.

    Only reads, unless --fix is given; works also while a run is going on. --fix never touches a finished item. With --batch
    the counts and controls of that batch alone are looked at, and all else of the file. Exit code 0: nothing is wrong, 1:
    something is, 2: usage, or no file that could be looked at.
    """
    raise typer.Exit(run_doctor(db, batch, fix=fix, full=full, as_json=as_json))


# --- the operator's verbs: the functions are in the modules beside this one --------------------------------------------

_settings = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Set how a batch runs, also while it runs.")
app.add_typer(_settings, name="set", short_help="Set how a batch runs, also while it runs.")


def _add(name: str, function: Callable[..., None], short_help: str, *examples: str, to: typer.Typer = app) -> None:
    shown = "\n\n".join(f"Example: asyncrunner {example}" for example in examples)
    to.command(name, short_help=short_help, epilog=shown)(function)


_add("status", show_status, "Show how the batches of a file stand.", "status --db jobs.db --watch", "status --json")
_add(
    "list", look.list_items, "List items, by state, error or age.",
    "list --status failed --error 'timed out*example.com'", "list --status processing --older-than 10m",
)  # fmt: skip
_add("show", look.show_item, "Show everything about an item.", "show welcome-42")
_add("failures", look.show_failures, "Show why items fail, a line a cause.", "failures --db jobs.db")
_add("stuck", look.show_stuck, "Show items that are being processed for long.", "stuck --older-than 15m")
_add("workers", look.show_workers, "Show the workers, their slots and what they hold.", "workers --json")
_add(
    "retry", change.retry, "Give failed or cancelled items a fresh start.",
    "retry welcome-42 welcome-43", "retry --error 'ConnectionError'", "retry --failed --batch shop.jobs:welcome",
)  # fmt: skip
_add("cancel", change.cancel, "Cancel items, also running ones.", "cancel welcome-42", "cancel --pending")
_add("pause", change.pause, "Let nothing more of a batch start.", "pause --batch shop.jobs:welcome")
_add("resume", change.resume, "Let a batch go on.", "resume --batch shop.jobs:welcome")
_add(
    "concurrency", change.set_concurrency, "Set how many handlers run at once in each worker.",
    "set concurrency 5", "set concurrency default", to=_settings,
)  # fmt: skip
_add("recover", change.recover, "Take from dead workers what they held.", "recover --db jobs.db")
_add(
    "export", keep.export, "Export items as JSON Lines, CSV or Parquet.",
    "export failed.csv --status failed", "export --format jsonl | gzip > items.jsonl.gz",
)  # fmt: skip
_add(
    "purge", keep.purge, "Delete items that are done.",
    "purge --before 30d --dry-run", "purge --before 30d --status completed --status cancelled",
)  # fmt: skip
_add("backup", keep.backup, "Copy a file while workers run.", "backup jobs-monday.db --db jobs.db")
_add(
    "check", keep.check, "Say whether a batch needs a person, by exit code.",
    "check --max-failed 100 --max-pending-age 15m",
)  # fmt: skip
