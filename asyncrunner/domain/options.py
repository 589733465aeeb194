"""The single definition of every option of runners, handlers and runs: its name, default, unit and validation."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any, Final, Literal, TypeAlias, TypedDict, cast, get_args

from asyncrunner.domain import DEFAULT_DB
from asyncrunner.domain.failure_limit import FailureLimit, FailureShare
from asyncrunner.domain.item import OnChange
from asyncrunner.domain.rate_limit import Rate
from asyncrunner.domain.retry import RetryPolicy
from asyncrunner.errors import ConfigurationError
from asyncrunner.text.durations import Duration, seconds_of
from asyncrunner.text.suggestions import unexpected_option
from asyncrunner.text.validation import (
    argument,
    checked_choice,
    checked_count,
    checked_flag,
    checked_moment,
    checked_name,
    checked_path,
    checked_seconds,
)

Durability: TypeAlias = Literal["full", "normal"]
"""What a power loss may lose.

``full``: every commit survives power loss. ``normal``: every commit survives kill -9; power loss may lose the last
ones.
"""

RunIn: TypeAlias = Literal["thread", "process"]
"""Where a ``def`` handler runs: in a thread or in a child process."""

NanPolicy: TypeAlias = Literal["refuse", "null"]
"""The treatment of NaN and infinity, which JSON lacks: they are refused, or stored as null."""

Key: TypeAlias = "str | int | tuple[str | int, ...]"
"""A key as a caller gives it; the parts of a tuple are the key together."""

KeyOption: TypeAlias = "Callable[[Any], Key] | str | Sequence[str]"
"""How the key of an item is found: a function of the item, the name of a field, or the names of several fields."""

Leftovers: TypeAlias = Literal["run", "leave"]
"""What a run does with unfinished items of the batch that it was not given: it runs them too, or leaves them pending."""

MAX_PROCESSES: Final = 1_000
NO_LIMIT: Final = 1_000_000_000  # more than any run needs, and small enough for every column


class HandlerKeywords(TypedDict, total=False):
    """The keyword options of ``Runner.handler``; see ``HandlerOptions`` for their meanings."""

    batch: str | None
    key: KeyOption | None
    concurrency: int
    max_attempts: int
    retry: RetryPolicy
    timeout: float | None
    on_change: OnChange
    version: str | None
    max_failures: float | FailureShare | None
    deadline: float | datetime | None
    rate_limit: str | None
    run_in: RunIn | None
    nan: NanPolicy


SetupFunction: TypeAlias = "Callable[[], AbstractAsyncContextManager[Any]]"


class RunKeywordsWithoutSetup(HandlerKeywords, total=False):
    """The keyword options of ``run_batch``, except ``setup``, whose type depends on the handler's."""

    db: str | os.PathLike[str]
    retry_failed: bool
    leftovers: Leftovers
    progress: bool | Callable[[Any], object] | None
    processes: int
    durability: Durability
    stale_after: float
    shutdown_timeout: float
    retention: Duration | None


class RunKeywords(RunKeywordsWithoutSetup, total=False):
    """The keyword options of ``run_batch``, ``stream_batch`` and ``plan_batch``; see ``RunOptions``."""

    setup: SetupFunction | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerOptions:
    """The options of a runner, for all its handlers.

    ``db``: the path of the store, as text. ``concurrency``: the maximum number of handlers that run at the same time.
    ``durability``: with "full" every commit survives power loss, with "normal" only kill -9. ``stale_after``: seconds
    without a heartbeat after which a hung process loses its items. ``shutdown_timeout``: the seconds that running
    handlers have to end when the runner is stopped. ``retention``: how long completed items stay in the store, in
    seconds, as a timedelta or as in "30d". Then they are deleted, and an item that is added again runs again.
    ``setup``: a function that returns an async context manager, or an async generator with one ``yield``. A process enters
    it before its first handler runs and leaves it after the last one; its value is the second argument of the handlers that
    take one. Raises ConfigurationError at construction for a value out of range.
    """

    db: str = field(default=DEFAULT_DB, repr=False)  # it may have a password
    concurrency: int = 10
    durability: Durability = "full"
    stale_after: float = 300.0
    shutdown_timeout: float = 30.0
    retention: Duration | None = None
    setup: SetupFunction | None = None

    def __post_init__(self) -> None:
        if hasattr(type(self.setup), "__aenter__") or hasattr(type(self.setup), "__anext__"):
            function = getattr(self.setup, "func", self.setup)
            name = getattr(function, "__name__", "...")
            raise ConfigurationError(
                f"setup= has the result of a call; give the function itself: setup={name}, not setup={name}()"
            )
        if self.setup is not None and not callable(self.setup):
            raise ConfigurationError(f"{argument('setup', self.setup)}: give an async context manager function")
        object.__setattr__(self, "db", checked_path("db", self.db))
        checked_count("concurrency", self.concurrency, at_most=NO_LIMIT)
        checked_choice("durability", self.durability, get_args(Durability))
        checked_seconds("stale_after", self.stale_after, zero=False)
        checked_seconds("shutdown_timeout", self.shutdown_timeout)
        _ = self.retention_seconds

    @property
    def retention_seconds(self) -> float | None:
        """``retention`` in seconds. Raises ConfigurationError."""
        return None if self.retention is None else seconds_of("retention", self.retention)


@dataclass(frozen=True, slots=True, kw_only=True)
class HandlerOptions:
    """The options of a handler and its batch. Raises ConfigurationError at construction for a value out of range.

    ``batch``: the name of the batch in the file, by default the handler's name. ``key``: a function that returns the
    key of an item, the name of the item's field that is its key, or the names of the fields that together are its key, as in
    ``key=("tenant", "number")``; a function may return a tuple too. A key is text, and an int stands for its decimal text,
    so 7 and "7" are one key. Without ``key`` the items 7 and "7" of a run have two keys. ``concurrency``: the maximum
    number of calls of this handler that run at the same time; by default only the runner's ``concurrency`` limits them.
    ``max_attempts``: the maximum number of attempts per item, including the first. ``retry``: which errors are retried,
    and after which delay. ``timeout``: seconds for one attempt. ``on_change``: the action when a key exists with another
    payload: "error", "keep" or "rerun".

    ``version``: a name for what the handler does now, as in "prompt-3". Once a run gives another version than the run before
    it, every item of the batch that is completed runs again, given or not, also items that were completed without a version.
    An item keeps its old result until the new one is committed, also if the new attempt fails or the run is stopped; until
    then its state is that of the new attempt. A change that a crash interrupts continues at the next start with this version,
    and no item runs twice for one version. An earlier version is another version too: its items run again. A start is refused
    with ConfigurationError while a live worker runs another version of the batch. None is no opinion: nothing runs again, the
    worker may run beside any version, and the items that it completes count as completed by the batch's newest version.

    ``max_failures``: stop the batch when that number of items has failed; as a share (0.2) or a FailureShare, when that
    share of the newest attempts has failed. ``deadline``: stop the batch that many seconds after the start, or at that
    moment (a datetime with a time zone). Both stop the batch in every process on the file until the batch is run again;
    its other items stay pending. ``rate_limit``: the maximum number of starts per time, as in "50/s" or "100/min",
    which all processes on the file share. ``run_in``: where a ``def`` handler runs: "thread" (the default) or
    "process". ``nan``: what happens to NaN and infinity in items and results: "refuse" (the item is refused, or fails)
    or "null" (they are stored as null, and so are NaT and NA of pandas).
    """

    batch: str | None = None
    key: KeyOption | None = None
    concurrency: int = NO_LIMIT
    max_attempts: int = 5
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    timeout: float | None = None
    on_change: OnChange = "error"
    version: str | None = None
    max_failures: float | FailureShare | None = None
    deadline: float | datetime | None = None
    rate_limit: str | None = None
    run_in: RunIn | None = None
    nan: NanPolicy = "refuse"

    def __post_init__(self) -> None:
        if self.batch is not None:
            checked_name("batch", self.batch)
        if self.key is not None and not callable(self.key) and not _are_fields(self.key):
            raise ConfigurationError(
                f"{argument('key', self.key)}: give a function of the item, the name of a field, or a tuple of different names"
            )
        checked_count("concurrency", self.concurrency, at_most=NO_LIMIT)
        checked_count("max_attempts", self.max_attempts, at_most=NO_LIMIT)
        if not isinstance(self.retry, RetryPolicy):
            raise ConfigurationError(f"{argument('retry', self.retry)}: give a RetryPolicy, as in retry=RetryPolicy(cap=60)")
        if self.timeout is not None:
            checked_seconds("timeout", self.timeout, zero=False)
        checked_choice("on_change", self.on_change, get_args(OnChange))
        if self.version is not None:
            checked_name("version", self.version)
        if isinstance(self.deadline, datetime):
            checked_moment("deadline", self.deadline, instead="seconds")
        elif self.deadline is not None:
            checked_seconds("deadline", self.deadline, zero=False, instead=", or a datetime with a time zone")
        if self.run_in is not None:
            checked_choice("run_in", self.run_in, get_args(RunIn))
        checked_choice("nan", self.nan, get_args(NanPolicy))
        _ = self.failure_limit, self.rate

    @classmethod
    def of(cls, keywords: HandlerKeywords) -> HandlerOptions:
        """Return the options of a call to ``Runner.handler``.

        Raises ConfigurationError for a value out of range, and TypeError for an option that a handler does not have.
        """
        for name in sorted(set(keywords) & (set(RunKeywords.__annotations__) - set(HandlerKeywords.__annotations__))):
            raise TypeError(f"{name} is an option of the runner or of run_batch, not of a handler")
        refuse_unknown("handler", keywords, HandlerKeywords)
        return cls(**keywords)

    @property
    def failure_limit(self) -> FailureLimit | None:
        """``max_failures`` as a number of items or a FailureShare. Raises ConfigurationError."""
        if self.max_failures is None or isinstance(self.max_failures, FailureShare):
            return self.max_failures
        if isinstance(self.max_failures, float) and 0 < self.max_failures < 1:
            return FailureShare(self.max_failures)
        if not isinstance(self.max_failures, int):
            raise ConfigurationError(
                f"{argument('max_failures', self.max_failures)}: give a whole number of items, or a share of the attempts "
                "between 0 and 1"
            )
        return checked_count("max_failures", self.max_failures, at_most=NO_LIMIT)

    @property
    def rate(self) -> Rate | None:
        """``rate_limit`` as a Rate. Raises ConfigurationError."""
        return None if self.rate_limit is None else Rate.parse(self.rate_limit)

    def seconds_to_deadline(self, now: float) -> float | None:
        """Return the seconds from *now*, the start, to the deadline; None without one, negative if it has passed."""
        return self.deadline.timestamp() - now if isinstance(self.deadline, datetime) else self.deadline


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """The options of a run: the options of its runner, of its only handler, and of the run itself.

    ``retry_failed``: make every failed item pending with fresh attempts. ``leftovers``: with "run", the run also runs the
    unfinished items that earlier runs left in the batch; with "leave", it runs and retries only what it is given, and the
    others stay pending, also over a crash. ``progress``: True shows a bar (lines if
    stderr is not a terminal); a function is called with each ProgressUpdate; False or None shows nothing. ``processes``: how
    many child processes run the handlers, which share ``concurrency``; with 1, this process runs them. The
    ``concurrency`` of a run is an option of its runner. Raises ConfigurationError at construction for a value out of
    range.
    """

    runner: RunnerOptions = field(default_factory=RunnerOptions)
    handler: HandlerOptions = field(default_factory=HandlerOptions)
    retry_failed: bool = False
    leftovers: Leftovers = "run"
    progress: bool | Callable[[Any], object] | None = None
    processes: int = 1

    def __post_init__(self) -> None:
        checked_flag("retry_failed", self.retry_failed)
        checked_count("processes", self.processes, at_most=MAX_PROCESSES)
        checked_choice("leftovers", self.leftovers, get_args(Leftovers))

    def check_items(self, items: object, option: str = "leftovers='leave'") -> None:
        """Raise ConfigurationError if no items are given to a run that runs only what is given."""
        if items is None and self.leftovers == "leave":
            raise ConfigurationError(
                f"{option} runs only what is given, and no items are given; give items, or leave out this option to continue "
                "with all items of the batch"
            )

    @classmethod
    def of(cls, caller: str, keywords: RunKeywords) -> RunOptions:
        """Return the options of a call to *caller*.

        Raises ConfigurationError for a value out of range, and TypeError for an unknown option.
        """
        refuse_unknown(caller, keywords, RunKeywords)
        given = cast("dict[str, Any]", keywords)
        for_runner = {each.name for each in fields(RunnerOptions)}
        for_run = {each.name for each in fields(cls)}
        return cls(
            runner=RunnerOptions(**{name: value for name, value in given.items() if name in for_runner}),
            handler=HandlerOptions(**{name: value for name, value in given.items() if name not in for_runner | for_run}),
            **{name: value for name, value in given.items() if name in for_run},
        )


def _are_fields(key: object) -> bool:
    if not isinstance(key, str | tuple | list):
        return False
    names = [key] if isinstance(key, str) else list(cast("Sequence[object]", key))
    return bool(names) and all(isinstance(name, str) and name for name in names) and len(set(names)) == len(names)


def refuse_unknown(caller: str, keywords: Mapping[str, object], options: type) -> None:
    """Raise TypeError, with a suggestion, if *keywords* has an option that the TypedDict *options* does not have."""
    for name in keywords:
        if name not in options.__annotations__:
            raise unexpected_option(caller, name, list(options.__annotations__))
