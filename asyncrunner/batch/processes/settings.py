"""The settings of a child process of a run, as JSON: the handler by its place in a module, and the options."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import msgspec

from asyncrunner.backends import full_location
from asyncrunner.domain.failure_limit import FailureShare
from asyncrunner.domain.options import HandlerOptions, RunnerOptions, RunOptions
from asyncrunner.domain.retry import ErrorMatch, RetryPolicy
from asyncrunner.errors import ConfigurationError
from asyncrunner.submission.importable import Reference, imported, reference_of


class Errors(msgspec.Struct, frozen=True, omit_defaults=True):
    """A set of errors: ``types``, or a ``predicate``; with neither, there is none."""

    types: Sequence[Reference] = ()
    predicate: Reference | None = None


class ChildSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of a child process of a run. ``concurrency`` is the child's share of the run's.

    The deadline, the retention and the progress are the parent's, and so is ``on_change``, because the parent adds the items.
    """

    handler: Reference
    setup: Reference | None
    db: str
    batch: str
    concurrency: int
    durability: str
    stale_after: float
    shutdown_timeout: float
    max_attempts: int
    retry: dict[str, Any]
    retry_on: Errors | None
    permanent: Errors
    throttled: Errors | None
    timeout: float | None
    version: str | None
    max_failures: int | float | dict[str, Any] | None
    rate_limit: str | None
    run_in: str | None
    nan: str
    only_given: bool

    def load(self) -> tuple[Callable[..., Any], RunnerOptions, HandlerOptions]:
        """Import the handler, and return it with its options. Raises the exceptions of the import."""
        runner = RunnerOptions(
            db=self.db,
            concurrency=self.concurrency,
            durability=cast("Any", self.durability),
            stale_after=self.stale_after,
            shutdown_timeout=self.shutdown_timeout,
            setup=None if self.setup is None else imported(self.setup),
        )
        errors = {"on": self.retry_on, "permanent": self.permanent, "throttled": self.throttled}
        matches: dict[str, Any] = {name: None if each is None else _match(each) for name, each in errors.items()}
        options = HandlerOptions(
            batch=self.batch,
            max_attempts=self.max_attempts,
            retry=RetryPolicy(**self.retry, **matches),
            timeout=self.timeout,
            version=self.version,
            max_failures=FailureShare(**self.max_failures) if isinstance(self.max_failures, dict) else self.max_failures,
            rate_limit=self.rate_limit,
            run_in=cast("Any", self.run_in),
            nan=cast("Any", self.nan),
        )
        return imported(self.handler), runner, options


def shares_of(concurrency: int, processes: int) -> list[int]:
    """Divide *concurrency* among up to *processes* processes: as equal as possible, and at least 1 each."""
    count = min(concurrency, processes)
    return [concurrency // count + (number < concurrency % count) for number in range(count)]


def settings_of(handler: Callable[..., Any], batch: str, options: RunOptions, option: str) -> list[bytes]:
    """Return the settings of each child, as JSON; *option* is ``processes=`` as the caller writes it.

    Raises ConfigurationError if another process cannot run *handler*.
    """
    runner, of_handler = options.runner, options.handler
    if of_handler.run_in == "process":
        raise ConfigurationError(
            f"{option} and run_in='process' cannot be combined, because each runs handlers in several processes; leave out one "
            "of them: processes= has less overhead, and run_in='process' fails only the item that kills its process"
        )
    policy = of_handler.retry
    limit = of_handler.max_failures
    settings = ChildSettings(
        handler=reference_of(handler, "the handler", option),
        setup=None if runner.setup is None else reference_of(runner.setup, "setup=", option),
        db=full_location(runner.db),
        batch=batch,
        concurrency=1,
        durability=runner.durability,
        stale_after=runner.stale_after,
        shutdown_timeout=runner.shutdown_timeout,
        max_attempts=of_handler.max_attempts,
        retry={
            "initial": policy.initial,
            "factor": policy.factor,
            "cap": policy.cap,
            "jitter": policy.jitter,
            "retry_after_cap": policy.retry_after_cap,
            "throttled_for": policy.throttled_seconds,
        },
        retry_on=None if policy.on is None else _errors(policy.on, "RetryPolicy(on=...)", option),
        permanent=_errors(policy.permanent, "RetryPolicy(permanent=...)", option),
        throttled=None if policy.throttled is None else _errors(policy.throttled, "RetryPolicy(throttled=...)", option),
        timeout=of_handler.timeout,
        version=of_handler.version,
        max_failures={"share": limit.share, "of": limit.of, "rest": limit.rest} if isinstance(limit, FailureShare) else limit,
        rate_limit=of_handler.rate_limit,
        run_in=of_handler.run_in,
        nan=of_handler.nan,
        only_given=options.leftovers == "leave",
    )
    shares = shares_of(min(runner.concurrency, of_handler.concurrency), options.processes)
    return [msgspec.json.encode(msgspec.structs.replace(settings, concurrency=share)) for share in shares]


def parent_options(options: RunOptions) -> RunnerOptions:
    """Return the options of the parent's runner: it runs no handler, so it does not enter ``setup``."""
    return replace(options.runner, setup=None)


def _errors(match: ErrorMatch, what: str, option: str) -> Errors:
    if isinstance(match, type | tuple):
        types = cast("Sequence[type]", match if isinstance(match, tuple) else (match,))
        return Errors(types=[reference_of(each, what, option) for each in types])
    return Errors(predicate=reference_of(match, what, option))


def _match(errors: Errors) -> ErrorMatch:
    if errors.predicate is not None:
        return cast("ErrorMatch", imported(errors.predicate))
    return tuple(imported(each) for each in errors.types)
