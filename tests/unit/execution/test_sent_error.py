"""An error that a child process sends leads to the same outcome in the parent, whatever the error holds."""

from __future__ import annotations

import pickle
import random
import threading
from typing import Any

import httpx
import pytest

from asyncrunner import Fail, Later, Retry, RetryPolicy
from asyncrunner.domain.outcome import ErrorInfo
from asyncrunner.domain.retry import conclude
from asyncrunner.execution.sent_error import sendable


class OddFail(Fail):
    def __init__(self, *, code: int) -> None:
        super().__init__(f"code {code}")
        self.code = code


class OwnError(Exception):
    pass


class Unpicklable(Exception):
    def __reduce__(self) -> Any:
        raise RuntimeError("not to be pickled")


class Unshowable(Fail):
    def __str__(self) -> str:
        raise RuntimeError("not to be shown")


def holding(error: Any, value: object) -> Any:
    error.held = value
    return error


def local(kind: Any, *arguments: Any, **options: Any) -> BaseException:
    class Local(kind):  # type: ignore[misc]
        pass

    error: BaseException = Local(*arguments, **options)
    return error


def caused(error: Any, cause: BaseException) -> Any:
    error.__cause__ = cause
    return error


def http(status: int, **headers: str) -> Any:
    response = httpx.Response(status, headers=headers, request=httpx.Request("GET", "http://localhost/"))
    with pytest.raises(httpx.HTTPStatusError) as raised:
        response.raise_for_status()
    return holding(raised.value, threading.Lock())


ENDLESS = ValueError("a cause of itself")
ENDLESS.__cause__ = ENDLESS

ERRORS: dict[str, BaseException] = {
    "plain": ValueError("plain"),
    "fail with a lock": holding(Fail("no"), threading.Lock()),
    "fail with a lambda": holding(Fail("no"), lambda: 1),
    "retry with a lock": holding(Retry("again", after=30.0, pause=True), threading.Lock()),
    "later with a lock": holding(Later("wait", after=40.0), threading.Lock()),
    "fail of another signature": OddFail(code=7),
    "fail without a message": Unshowable(),
    "local fail": local(Fail, "no"),
    "local retry": local(Retry, "again", after=30.0, pause=True),
    "local later": local(Later, "wait", after=40.0),
    "own error with a lock": holding(OwnError("own"), threading.Lock()),
    "local own error": local(OwnError, "own"),
    "own error in a chain": caused(RuntimeError("outside"), holding(OwnError("own"), threading.Lock())),
    "without a form": Unpicklable("x"),
    "fail as a cause": caused(RuntimeError("outside"), holding(Fail("inside"), threading.Lock())),
    "fail in a group": ExceptionGroup("two", [ValueError(1), caused(KeyError(2), holding(Fail("no"), threading.Lock()))]),
    "all later in a group": ExceptionGroup("two", [Later(after=10.0), holding(Later(after=40.0), threading.Lock())]),
    "404": http(404),
    "429": http(429, **{"Retry-After": "77"}),
    "503": http(503, **{"Retry-After": "77"}),
    "500": http(500),
    "interrupt": KeyboardInterrupt(),
    "exit": SystemExit(3),
    "endless": ENDLESS,
}

POLICY = RetryPolicy(permanent=OwnError, jitter="none")


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_that_was_sent_leads_to_the_same_outcome(name: str) -> None:
    error = ERRORS[name]
    restored = pickle.loads(pickle.dumps(sendable(error, "(no message)"))).restore()

    def outcome(of: BaseException) -> object:
        info = ErrorInfo(name, name)
        return conclude(of, info, attempt=1, max_attempts=3, policy=POLICY, rng=random.Random(1), now=0.0)

    assert outcome(restored) == outcome(error)


def test_the_kind_survives_also_where_the_type_cannot_be_imported() -> None:
    for error in (Fail("no"), Retry("again", after=3, pause=True), Later("wait", after=4)):
        form = sendable(error, "")._replace(pickled=b"cnowhere\nnothing\n.")
        restored = form.restore()
        assert type(restored) is type(error)
        assert (str(restored), vars(restored)) == (str(error), vars(error))
