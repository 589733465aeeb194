"""The single definition of every option of a run: its name, default, unit and validation."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Literal, TypeAlias, TypedDict, get_args

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
"""``full``: every commit survives power loss. ``normal``: commits survive kill -9; power loss may lose the last ones."""

RunIn: TypeAlias = Literal["thread", "process"]
"""Where a ``def`` handler runs: in a thread or in a child process."""

DEFAULT_DB: Final = "asyncrunner.db"

NO_LIMIT: Final = 1_000_000_000  # far more than any run needs, and small enough for every column


class HandlerOptions(TypedDict, total=False):
    """The options of one handler; see ``Settings`` for defaults and meanings."""

    batch: str | None
    key: Callable[[Any], str | int] | str | None
    concurrency: int
    max_attempts: int
    retry: RetryPolicy
    timeout: float | None
    on_change: OnChange
    max_failures: float | FailureShare | None
    deadline: float | datetime | None
    rate_limit: str | None
    run_in: RunIn | None


class RunOptions(HandlerOptions, total=False):
    """The keyword options of ``run_batch`` and ``stream_batch``; see ``Settings`` for defaults and meanings."""

    db: str | os.PathLike[str]
    retry_failed: bool
    progress: bool | Callable[[Any], object] | None
    durability: Durability
    stale_after: float
    shutdown_timeout: float
    retention: Duration | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The options of a run. Raises ConfigurationError at construction for a value out of range.

    ``db``: the path of the file. ``batch``: the name of the batch in the file, by default the handler's name. ``key``: a
    function of the item, or the name of one of its fields, that returns the item's key. ``concurrency``: the maximum number
    of handlers that run at the same time. ``max_attempts``: the maximum number of attempts per item, including the first.
    ``retry``: which errors are retried, and with what delay. ``timeout``: seconds for one attempt.
    ``on_change``: the action when a key exists with another payload: "error", "keep" or "rerun". ``max_failures``: stop when
    that many items have failed, or, given as a share (0.2) or a FailureShare, that share of the newest attempts.
    ``deadline``: stop that many seconds after the start, or at that moment (a datetime with a time zone). Both stop the
    batch in every process on the file until the batch is run again; its other items stay pending. ``rate_limit``: the
    maximum number of starts per time, as in "50/s" or "100/min", shared by all processes on the file. ``run_in``: where a
    ``def`` handler runs: "thread" (the default) or "process". ``retry_failed``: reset every failed item to pending with
    all its attempts. ``progress``: True shows a bar (lines where stderr is not a terminal), a function is called with each
    ProgressUpdate, False or None shows nothing.
    ``durability``: "full" survives power loss, "normal" only kill -9. ``stale_after``: seconds without a heartbeat after
    which a hung process loses its items. ``shutdown_timeout``: seconds that handlers have to end when the run is stopped.
    ``retention``: how long completed items are kept, in seconds, as a timedelta or as in "30d"; then they are deleted, and
    the same item runs again when it is added again.
    """

    db: str | os.PathLike[str] = DEFAULT_DB
    batch: str | None = None
    key: Callable[[Any], str | int] | str | None = None
    concurrency: int = 10
    max_attempts: int = 3
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    timeout: float | None = None
    on_change: OnChange = "error"
    max_failures: float | FailureShare | None = None
    deadline: float | datetime | None = None
    rate_limit: str | None = None
    run_in: RunIn | None = None
    retry_failed: bool = False
    progress: bool | Callable[[Any], object] | None = None
    durability: Durability = "full"
    stale_after: float = 300.0
    shutdown_timeout: float = 30.0
    retention: Duration | None = None

    def __post_init__(self) -> None:
        checked_path("db", self.db)
        if self.batch is not None:
            checked_name("batch", self.batch)
        if self.key is not None and not (callable(self.key) or (isinstance(self.key, str) and self.key)):
            raise ConfigurationError(f"{argument('key', self.key)}: give a function of the item or the name of a field")
        for name in ("concurrency", "max_attempts"):
            checked_count(name, getattr(self, name), at_most=NO_LIMIT)
        _ = self.failure_limit, self.rate, self.retention_seconds
        if isinstance(self.deadline, datetime):
            checked_moment("deadline", self.deadline, instead="seconds")
        elif self.deadline is not None:
            checked_seconds("deadline", self.deadline, zero=False, instead=", or a datetime with a time zone")
        if self.run_in is not None:
            checked_choice("run_in", self.run_in, get_args(RunIn))
        if self.timeout is not None:
            checked_seconds("timeout", self.timeout, zero=False)
        checked_seconds("stale_after", self.stale_after, zero=False)
        checked_seconds("shutdown_timeout", self.shutdown_timeout)
        if not isinstance(self.retry, RetryPolicy):
            raise ConfigurationError(f"{argument('retry', self.retry)}: give a RetryPolicy, as in retry=RetryPolicy(cap=60)")
        checked_flag("retry_failed", self.retry_failed)
        checked_choice("on_change", self.on_change, get_args(OnChange))
        checked_choice("durability", self.durability, get_args(Durability))

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
        checked_count("max_failures", self.max_failures, at_most=NO_LIMIT)
        return self.max_failures

    @property
    def rate(self) -> Rate | None:
        """``rate_limit`` parsed. Raises ConfigurationError."""
        return None if self.rate_limit is None else Rate.parse(self.rate_limit)

    @property
    def retention_seconds(self) -> float | None:
        """``retention`` in seconds. Raises ConfigurationError."""
        return None if self.retention is None else seconds_of("retention", self.retention)

    def seconds_to_deadline(self, now: float) -> float | None:
        """Return the seconds from the start, *now*, to the deadline; negative if it has passed, None without a deadline."""
        return self.deadline.timestamp() - now if isinstance(self.deadline, datetime) else self.deadline

    @classmethod
    def of(cls, caller: str, options: RunOptions) -> Settings:
        """Build the settings of a call to *caller*. Raises TypeError for an unknown option and suggests the closest one."""
        known = [option.name for option in dataclasses.fields(cls)]
        for name in options:
            if name not in known:
                raise unexpected_option(caller, name, known)
        return cls(**options)
