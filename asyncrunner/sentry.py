"""Report failed items to Sentry, one event for each.

Install with ``pip install 'asyncrunner[sentry]'``, call ``sentry_sdk.init(...)``, and then ``instrument(runner)``.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

import sentry_sdk
from sentry_sdk.scope import use_isolation_scope
from sentry_sdk.utils import event_from_exception

from asyncrunner.domain.outcome import Failed
from asyncrunner.events import Settled
from asyncrunner.execution.execution import Execution, Interruption
from asyncrunner.runner.runner import Runner, internals_of
from asyncrunner.serialization.error_info import MESSAGE_LIMIT, storable

if TYPE_CHECKING:
    from sentry_sdk.types import Event

    from asyncrunner.domain.item import Claim
    from asyncrunner.domain.outcome import ErrorInfo

__all__ = ["instrument"]
_MAX_ERRORS: Final = 10_000  # that wait for the commit of their outcome; the outcome of a lost claim is never committed
_MAX_PAYLOAD: Final = 8_000  # characters


class _Raised(NamedTuple):
    error: BaseException
    scope: sentry_sdk.Scope


def instrument(runner: Runner, *, include_payload: bool = False) -> Callable[[], None]:
    """Report each failed item of *runner* to Sentry; return a function that ends the reports.

    An event is sent once the failure is committed. It has the exception with its stack, the tags ``asyncrunner.batch``,
    ``asyncrunner.item`` (the key) and ``asyncrunner.attempt``, and what the handler added to its scope. Events with one
    cause, see ``asyncrunner failures``, are one issue. Attempts that are retried, put off or interrupted have no event.
    An item that fails because its workers died has none either, because no process has its exception.

    The event contains no payload and no local variables, and messages lose the same secrets as stored errors do. With
    *include_payload*, it has the payload, up to 8,000 characters, and the local variables if the client sends them.
    """
    raised: dict[tuple[int, int], _Raised] = {}
    internals = internals_of(runner)

    @contextmanager
    def remember(execution: Execution) -> Generator[None, None, None]:
        with sentry_sdk.isolation_scope() as scope:
            try:
                yield
            except BaseException as error:
                if execution.interruption in (None, Interruption.TIMEOUT):
                    if len(raised) >= _MAX_ERRORS:
                        del raised[next(iter(raised))]
                    raised[_id_of(execution.claim)] = _Raised(error, scope)
                raise

    def on_settled(event: Settled) -> None:
        cause = raised.pop(_id_of(event.claim), None)
        if isinstance(event.outcome, Failed):
            _report(event, event.outcome.error, cause, include_payload=include_payload)

    internals.around.append(remember)
    unsubscribe = internals.events.on(Settled, on_settled)

    def end() -> None:
        internals.around.remove(remember)
        unsubscribe()

    return end


def _id_of(claim: Claim) -> tuple[int, int]:
    return claim.seq, claim.number


def _report(settled: Settled, info: ErrorInfo, cause: _Raised | None, *, include_payload: bool) -> None:
    client = sentry_sdk.get_client()
    if not client.is_active():
        return
    event: dict[str, Any] = {"exception": {"values": [{}]}}
    hint: dict[str, Any] = {}
    if cause is not None:
        options = dict(client.options)
        options["include_local_variables"] = include_payload and options.get("include_local_variables", True)
        mechanism = {"type": "asyncrunner", "handled": True}
        described = event_from_exception(cause.error, client_options=options, mechanism=mechanism)
        event, hint = cast("dict[str, Any]", described[0]), described[1]
    exceptions = event["exception"]["values"]
    for exception in exceptions:
        exception["value"] = storable(exception.get("value") or "", MESSAGE_LIMIT)
    exceptions[-1] |= {"type": info.type, "value": info.message}  # of a timeout, the exception in the handler is a cancellation
    event |= {
        "level": "error",
        "logger": "asyncrunner",
        "fingerprint": ["asyncrunner", settled.batch, info.fingerprint or info.type],
        "transaction": settled.batch,
    }
    tags = {"batch": settled.batch, "item": settled.id, "attempt": str(settled.attempt)}
    event["tags"] = {f"asyncrunner.{name}": value for name, value in tags.items()}
    if include_payload:
        event["contexts"] = {"item": {"payload": settled.claim.payload[:_MAX_PAYLOAD]}}
    with use_isolation_scope(sentry_sdk.get_isolation_scope() if cause is None else cause.scope):
        sentry_sdk.capture_event(cast("Event", event), hint)
