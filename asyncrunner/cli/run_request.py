"""The arguments and options of the command ``run``, and the options of the run that they give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Final, cast, get_args

from asyncrunner.cli.command import Argument, Db, Option, env
from asyncrunner.cli.completers import batch_names, files, one_of
from asyncrunner.cli.item_files import ON_BAD_INPUT
from asyncrunner.cli.item_formats import FORMATS
from asyncrunner.cli.loader import load_setup
from asyncrunner.domain import DEFAULT_DB
from asyncrunner.domain.error_names import errors_named
from asyncrunner.domain.item import OnChange
from asyncrunner.domain.options import (
    NO_LIMIT,
    Durability,
    HandlerOptions,
    Leftovers,
    NanPolicy,
    RunIn,
    RunKeywords,
    RunnerOptions,
    RunOptions,
)
from asyncrunner.domain.retry import Jitter, RetryPolicy
from asyncrunner.errors import ConfigurationError
from asyncrunner.text.durations import age
from asyncrunner.text.validation import checked_count

_RUNNER: Final = RunnerOptions()
_HANDLER: Final = HandlerOptions()
_RETRY: Final = RetryPolicy()


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """The arguments and options of ``asyncrunner run``."""

    target: Annotated[str, Argument("TARGET", help="The handler: package.module:name or path/to/file.py:name.")]
    items: Annotated[
        str | None,
        Argument(
            "ITEMS",
            help="A file: .txt (an item per line), .jsonl, .json (an array of items), .csv or .tsv (a dict per row), each also "
            ".gz; a pipe; or - for stdin. [default: the stored items]",
            complete=files,
        ),
    ] = None
    db: Db = DEFAULT_DB
    batch: Annotated[
        str | None,
        Option(envvar=env("batch"), help="Name of this set of items. [default: the handler's]", complete=batch_names),
    ] = None
    key: Annotated[
        str | None,
        Option(
            envvar=env("key"),
            help="Field whose value identifies an item, or several, separated by commas. [default: the item itself]",
        ),
    ] = None
    item_format: Annotated[
        str | None,
        Option(
            "--format",
            envvar=env("format"),
            help=f"Format of ITEMS: {', '.join(FORMATS)}. [default: by name]",
            complete=one_of(FORMATS),
        ),
    ] = None
    fields: Annotated[
        str | None,
        Option(
            envvar=env("fields"),
            help="The columns, or names of an object, to use of each item, separated by commas. [default: all]",
        ),
    ] = None
    limit: Annotated[int | None, Option(envvar=env("limit"), help="Read only the first N items. [default: all]")] = None
    set_arguments: Annotated[
        list[str] | None,
        Option(
            "--set",
            envvar=env("set"),
            help="NAME=VALUE: pass a value to another parameter of the handler; may be repeated. Needs --batch, because another "
            "value gives other results.",
        ),
    ] = None
    on_bad_input: Annotated[
        str,
        Option(
            envvar=env("on_bad_input"),
            help="For a line that cannot become an item: stop (the items before it are saved), skip (it is counted and "
            "reported at the end) or fail (the whole input is read first, and no item of it is accepted).",
            complete=one_of(ON_BAD_INPUT),
        ),
    ] = ON_BAD_INPUT[0]
    concurrency: Annotated[
        int, Option("--concurrency", "-c", envvar=env("concurrency"), help="Maximum number of concurrent handlers.")
    ] = _RUNNER.concurrency
    processes: Annotated[
        int,
        Option(
            envvar=env("processes"),
            help="Run the handlers in this many child processes, which share the concurrency; 1: in this process.",
        ),
    ] = RunOptions().processes
    max_attempts: Annotated[int, Option(envvar=env("max_attempts"), help="Maximum attempts per item, including the first.")] = (
        _HANDLER.max_attempts
    )
    setup: Annotated[
        str | None,
        Option(
            envvar=env("setup"),
            help="A function, named as the handler is, that opens what the handlers share: an async generator with one yield. "
            "The value is the handler's second argument. [default: none]",
        ),
    ] = None
    timeout: Annotated[float | None, Option(envvar=env("timeout"), help="Seconds for one attempt. [default: none]")] = None
    retry_initial: Annotated[float, Option(envvar=env("retry_initial"), help="Maximum seconds before the first retry.")] = (
        _RETRY.initial
    )
    retry_factor: Annotated[
        float, Option(envvar=env("retry_factor"), help="Factor by which the delay grows with each retry.")
    ] = _RETRY.factor
    retry_cap: Annotated[float, Option(envvar=env("retry_cap"), help="Maximum delay before a retry, in seconds.")] = _RETRY.cap
    retry_jitter: Annotated[
        str,
        Option(
            envvar=env("retry_jitter"),
            help="equal: a random delay between half of the computed delay and all of it; full: between 0 and all of it; none: "
            "exactly the computed delay.",
            complete=one_of(get_args(Jitter)),
        ),
    ] = _RETRY.jitter
    permanent: Annotated[
        list[str] | None,
        Option(
            envvar=env("permanent"),
            help="More errors that are not retried, besides missing names and modules and HTTP 4xx other than 408, 409, 425 and "
            "429: names of exception types, as in ValueError or httpx.HTTPStatusError, separated by commas; may be repeated.",
        ),
    ] = None
    throttled_for: Annotated[
        str,
        Option(
            envvar=env("throttled_for"),
            help="An item that a service puts off (HTTP 429) for longer than this time fails, as in 6h or 30m.",
        ),
    ] = str(_RETRY.throttled_for)
    retry_failed: Annotated[
        bool,
        Option("--retry-failed", envvar=env("retry_failed"), help="Run all failed items again, with all their attempts."),
    ] = False
    leftovers: Annotated[
        str,
        Option(
            envvar=env("leftovers"),
            help="For unfinished items of earlier runs that are not in ITEMS: run them too, or leave them pending.",
            complete=one_of(get_args(Leftovers)),
        ),
    ] = RunOptions().leftovers
    on_change: Annotated[
        str,
        Option(
            envvar=env("on_change"),
            help="For a known key with a changed payload: error, keep or rerun.",
            complete=one_of(get_args(OnChange)),
        ),
    ] = _HANDLER.on_change
    version: Annotated[
        str | None,
        Option(
            "--batch-version",
            envvar=env("batch_version"),
            help="Name of what the handler does now, as in prompt-3: items that another version completed run again, and keep "
            "their old result until then. (--version prints the version of asyncrunner.) [default: nothing runs again]",
        ),
    ] = None
    max_failures: Annotated[
        str | None,
        Option(
            envvar=env("max_failures"),
            help="Stop after this many failed items, or this share of the newest 100 attempts (20%). [default: never]",
        ),
    ] = None
    deadline: Annotated[
        float | None, Option(envvar=env("deadline"), help="Seconds after which the run stops; the rest stays pending.")
    ] = None
    rate_limit: Annotated[
        str | None, Option(envvar=env("rate_limit"), help="Maximum starts per time, as in 50/s or 100/min. [default: none]")
    ] = None
    run_in: Annotated[
        str | None,
        Option(
            envvar=env("run_in"),
            help="Where a `def` runs: thread or process. [default: thread]",
            complete=one_of(get_args(RunIn)),
        ),
    ] = None
    nan: Annotated[
        str,
        Option(
            envvar=env("nan"),
            help="For NaN and infinity in items and results: refuse, or null, as which they are stored.",
            complete=one_of(get_args(NanPolicy)),
        ),
    ] = _HANDLER.nan
    durability: Annotated[
        str,
        Option(
            envvar=env("durability"),
            help="full, or normal: a power failure may lose the last commits.",
            complete=one_of(get_args(Durability)),
        ),
    ] = _RUNNER.durability
    stale_after: Annotated[
        float,
        Option(envvar=env("stale_after"), help="Seconds without a heartbeat after which a hung process loses its items."),
    ] = _RUNNER.stale_after
    shutdown_timeout: Annotated[
        float, Option(envvar=env("shutdown_timeout"), help="Seconds that handlers have to finish after the first Ctrl-C.")
    ] = _RUNNER.shutdown_timeout
    retention: Annotated[
        str | None,
        Option(envvar=env("retention"), help="Delete completed items after this time: 30d, 12h. [default: never]"),
    ] = None
    log_file: Annotated[
        Path | None,
        Option(envvar=env("log_file"), help="Append the log to this file. [default: warnings to stderr]"),
    ] = None
    on_end: Annotated[
        str | None,
        Option(
            envvar=env("on_end"),
            help="A shell command to run at the end of the run. Its environment has ASYNCRUNNER_EXIT_CODE, ASYNCRUNNER_DB, "
            "ASYNCRUNNER_BATCH, the counts, as in ASYNCRUNNER_COUNT_FAILED, and ASYNCRUNNER_SUMMARY (JSON).",
        ),
    ] = None
    dry_run: Annotated[bool, Option("--dry-run", envvar=env("dry_run"), help="Print what would run, and run nothing.")] = False
    detach: Annotated[
        bool,
        Option(
            "--detach",
            envvar=env("detach"),
            help="Run in the background, with a log next to the file or, for a server, in this folder.",
        ),
    ] = False
    quiet: Annotated[bool, Option("--quiet", "-q", envvar=env("quiet"), help="No progress; a summary only if items failed.")] = (
        False
    )
    as_json: Annotated[bool, Option("--json", envvar=env("json"), help="Print the summary as JSON on stdout.")] = False

    def checked_limit(self) -> int | None:
        """Return the number of items to read, or None for all. Raises ConfigurationError."""
        if self.limit is None:
            return None
        if self.items is None:
            raise ConfigurationError("--limit reads only the first items of ITEMS, and there is no ITEMS; give a file")
        return checked_count("--limit", self.limit, at_most=NO_LIMIT)

    def checked_arguments(self) -> Sequence[str]:
        """Return the texts NAME=VALUE of ``--set``. Raises ConfigurationError."""
        if self.set_arguments and self.batch is None:
            raise ConfigurationError(
                "--set changes what the handler does, so its items and results need a batch of their own; name it with --batch"
            )
        if self.set_arguments and self.run_in == "process":
            raise ConfigurationError(
                "--set cannot be combined with --run-in process, because a child finds the handler by its name; read the "
                "value from an environment variable in the handler"
            )
        return self.set_arguments or ()

    def again(self) -> Sequence[str]:
        """Return the options without which the same command with the items in the file would do something else."""
        options = [part for text in self.set_arguments or () for part in ("--set", text)]
        options += [] if self.setup is None else ["--setup", self.setup]
        return options + ([] if self.version is None else ["--batch-version", self.version])

    def run_options(self) -> RunOptions:
        """Return the options of the run. Raises ConfigurationError for a value out of range."""
        options = {name: getattr(self, name) for name in _RUN_OPTIONS}
        options["max_failures"] = _failure_limit(self.max_failures)
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


def _failure_limit(text: str | None) -> float | None:
    """Return the number or the share in the text of ``--max-failures``. Raises ConfigurationError."""
    if text is None:
        return None
    try:
        if text.endswith("%"):
            return float(text[:-1]) / 100
        return float(text) if "." in text else int(text)
    except ValueError as error:
        raise ConfigurationError(f"--max-failures {text!r}: give a number of items, or a share, as in 20% or 0.2") from error
