"""Send the error of a handler from a child process to its parent, so that it leads to the same outcome there.

Only pickled objects can be sent, and an exception may hold anything: a lock, an open response, a lambda. Pickling also
loses the causes that ``raise ... from`` sets. Therefore each error, each part of a group and each cause is sent
separately: the error itself if it survives pickling, otherwise its type, its message and the attributes that survive
pickling. The kind (``Fail``, ``Retry``, ``Later``) is always sent.
"""

from __future__ import annotations

import pickle
import time
from contextlib import suppress
from typing import Any, Final, NamedTuple, cast

from asyncrunner.domain.http_errors import answer_of, requested_delay
from asyncrunner.errors import AttemptError, Fail, Later, Retry

_MAX_DEPTH: Final = 20  # groups in groups and causes of causes; a chain of causes may be endless


class ChildError(AttemptError):
    """The replacement of an exception that cannot be sent between processes.

    ``headers`` has the ``Retry-After`` of the exception, in seconds.
    """

    def __init__(self, message: str, after: float | None = None) -> None:  # pickle calls it with the message
        super().__init__(message)
        self.headers = {} if after is None else {"Retry-After": str(after)}


class SentError(NamedTuple):
    """An error that can be pickled. ``restore()`` returns the error, or one that leads to the same outcome."""

    pickled: bytes | None
    message: str
    kind: tuple[Any, ...]
    after: float | None
    parts: tuple[SentError, ...]
    cause: SentError | None

    def restore(self) -> BaseException:
        """Return the error with its parts and causes."""
        if self.parts:
            error: BaseException = BaseExceptionGroup(self.message, [part.restore() for part in self.parts])
        else:
            error = self._restore_alone()
        if self.cause is not None:
            error.__cause__ = self.cause.restore()
        return error

    def _restore_alone(self) -> BaseException:
        if self.pickled is not None:
            with suppress(Exception):  # its module cannot be imported here
                loaded = pickle.loads(self.pickled)  # noqa: S301 - from the child of this process
                return loaded if isinstance(loaded, BaseException) else _rebuilt(*loaded)
        match self.kind:
            case ("fail",):
                return Fail(self.message)
            case ("retry", after, pause):
                return Retry(self.message, after=after, pause=pause)
            case ("later", after):
                return Later(self.message, after=after)
            case _:
                return ChildError(self.message, self.after)


def sendable(error: BaseException, message: str, depth: int = 0) -> SentError:
    """Return *error* in a form that can be pickled; *message* replaces a message that cannot be shown."""
    with suppress(BaseException):
        message = str(error)
    parts: tuple[SentError, ...] = ()
    group = _group(error)
    if depth < _MAX_DEPTH and group is not None:
        message = group.message
        parts = tuple(sendable(part, message, depth + 1) for part in group.exceptions)
    cause = error.__cause__ if depth < _MAX_DEPTH else None
    return SentError(
        None if parts else _pickled(error, message),
        message,
        _kind_of(error),
        requested_delay(error, time.time()),
        parts,
        None if cause is None else sendable(cause, message, depth + 1),
    )


def _group(error: BaseException) -> BaseExceptionGroup[BaseException] | None:
    return cast("BaseExceptionGroup[BaseException]", error) if isinstance(error, BaseExceptionGroup) else None


def _kind_of(error: BaseException) -> tuple[Any, ...]:
    with suppress(Exception):
        if isinstance(error, Fail):
            return ("fail",)
        if isinstance(error, Retry):
            Retry(after=error.after, pause=error.pause)  # a subclass may have set anything
            return ("retry", error.after, error.pause)
        if isinstance(error, Later):
            Later(after=error.after)
            return ("later", error.after)
    return ()


def _pickled(error: BaseException, message: str) -> bytes | None:
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return None  # the parent must not raise it
    with suppress(Exception):
        data = pickle.dumps(error)
        copy = pickle.loads(data)  # noqa: S301 - it was pickled in the line before
        if type(copy) is type(error) and _kind_of(copy) == _kind_of(error) and _status_of(copy) == _status_of(error):
            return data
    for kind in type(error).__mro__:
        if kind in (Exception, BaseException):
            break
        with suppress(Exception):
            form = (kind, message, _attributes_of(error), _status_of(error), requested_delay(error, time.time()))
            data = pickle.dumps(form)
            _rebuilt(*pickle.loads(data))  # noqa: S301 - as above
            return data
    return None


def _attributes_of(error: BaseException) -> dict[str, Any]:
    """Return the attributes of *error* that survive pickling."""
    attributes: dict[str, Any] = {}
    for name, value in vars(error).items():
        with suppress(Exception):
            pickle.loads(pickle.dumps(value))  # noqa: S301 - as above
            attributes[name] = value
    return attributes


def _status_of(error: BaseException) -> int | None:
    answer = answer_of(error)
    return None if answer is None else answer.status


def _rebuilt(
    kind: type[BaseException], message: str, attributes: dict[str, Any], status: int | None, after: float | None
) -> BaseException:
    """Return an error of *kind* without a call of its ``__init__``, which may need other arguments."""
    error = kind.__new__(kind, message)
    error.args = (message,)
    error.__dict__.update(attributes)
    if status is not None and _status_of(error) != status:
        error.__dict__.update(response=None, status_code=status, headers={} if after is None else {"Retry-After": str(after)})
    return error
