"""Run a ``def`` handler in a child process (``run_in="process"``), one of anyio's worker processes, one item at a time.

A handler may use a whole core. If its process ends (a segfault, ``os._exit``, the kernel's out-of-memory killer), only
that attempt fails. The parent sends the item as JSON; the child imports the handler's module and looks up the handler
by name. Each child is a new interpreter that inherits no open file of its parent.
"""

from __future__ import annotations

import copy
import ctypes
import importlib
import inspect
import os
import signal
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import anyio.to_process

from asyncrunner.domain.http_errors import requested_delay
from asyncrunner.domain.item import Claim
from asyncrunner.domain.outcome import ErrorInfo
from asyncrunner.errors import AttemptError, ChildDied, ConfigurationError
from asyncrunner.execution.attempt import current_execution
from asyncrunner.execution.execution import Execution, running
from asyncrunner.execution.executor import DescribedError, EncodedResult
from asyncrunner.execution.handler_file import file_of, import_file
from asyncrunner.serialization.codec import codecs_of
from asyncrunner.serialization.error_info import describe

if TYPE_CHECKING:
    from anyio import CapacityLimiter


class ChildError(AttemptError):
    """The replacement of an exception that cannot be sent between processes.

    ``headers`` has the ``Retry-After`` of the exception, in seconds.
    """

    def __init__(self, message: str, after: float | None = None) -> None:  # pickle calls it with the message
        super().__init__(message)
        self.headers = {} if after is None else {"Retry-After": str(after)}


class ChildCall:
    """The replacement of a handler in the parent process: a call runs the handler in a child process.

    Raises ConfigurationError for a handler that a child cannot find by name. A call raises ChildDied if the child ends
    without an answer, and DescribedError for an error of the handler.
    """

    def __init__(self, handler: Callable[..., Any], limiter: Callable[[], CapacityLimiter]) -> None:
        self._limiter = limiter
        self._module, self._name = _address(handler)
        self._file = file_of(self._module)
        self.__name__ = self._name

    async def __call__(self, item: object) -> EncodedResult:
        del item  # the child decodes the item from the claim's JSON
        if self._module == "__main__":
            sys.modules.setdefault("__mp_main__", sys.modules["__main__"])  # the module's name in a child's exceptions
        execution = current_execution.get()
        try:
            answer = await anyio.to_process.run_sync(
                _run_here,
                self._module,
                self._file,
                self._name,
                execution.batch,
                tuple(execution.claim),
                execution.max_attempts,
                cancellable=True,
                limiter=self._limiter(),
            )
        except anyio.BrokenWorkerProcess as error:
            raise ChildDied(
                f"the process that ran {self._name} ended without an answer: a segfault, os._exit, or a kill"
            ) from error
        if isinstance(answer, _Failure):
            raise DescribedError(answer.error, ErrorInfo(*answer.info))
        return EncodedResult(answer)


class _Failure(NamedTuple):
    error: BaseException
    info: tuple[str, str, str, str]


def _address(handler: Callable[..., Any]) -> tuple[str, str]:
    name = getattr(handler, "__qualname__", None)
    module = getattr(handler, "__module__", None)
    if not inspect.isfunction(handler) or name is None or module is None or "<" in name:
        raise ConfigurationError(
            f'run_in="process" needs a `def` at the top level of a module, to be found by name; {handler!r} is not one'
        )
    if inspect.iscoroutinefunction(handler):
        raise ConfigurationError(f'run_in="process" is for a `def`; {name} is an `async def`, which runs in the event loop')
    return module, name


_PR_SET_PDEATHSIG: Final = 1  # from <linux/prctl.h>
_NOT_FOUND: Final = "the process cannot find {name} in {module}; define it at the top level of that module, under that name"


def _run_here(module: str, file: str | None, name: str, batch: str, claim: tuple[Any, ...], max_attempts: int) -> str | _Failure:
    # This runs in the child. Ctrl-C signals the whole process group; the parent decides whether the attempt ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _die_with_parent()
    try:
        handler = _find(module, file, name)
        items, results = codecs_of(handler)
        execution = Execution(batch, Claim(*claim), max_attempts)
        with running(execution), _redirect_streams_to_null():
            return results.encode_result(handler(items.decode(execution.claim.payload)))
    except BaseException as error:  # noqa: BLE001 - a handler may raise any exception, which fails its attempt
        info = describe(error)
        kind = info.type.replace("__mp_main__", "__main__")
        return _Failure(_sendable(error, info), (kind, info.message, info.traceback, info.fingerprint))


@contextmanager
def _redirect_streams_to_null() -> Generator[None, None, None]:
    """Redirect descriptors 0 and 1 to /dev/null inside the ``with`` block.

    The descriptors connect the child to its parent, so neither the handler nor a program that it starts may use them.
    """
    saved = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    try:
        os.dup2(null, 0)
        os.dup2(null, 1)
        yield
    finally:
        if sys.__stdout__ is not None:
            sys.__stdout__.flush()
        for number, saved_descriptor in enumerate(saved):
            os.dup2(saved_descriptor, number)
            os.close(saved_descriptor)
        os.close(null)


def _die_with_parent() -> None:
    # Otherwise the child continues to run an item that another worker has recovered.
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _find(module: str, file: str | None, name: str) -> Callable[[Any], Any]:
    target: Any = sys.modules.get(module)
    if target is None:
        target = importlib.import_module(module) if file is None else import_file(Path(file), module)
    for part in name.split("."):
        target = getattr(target, part, None)
    function: Callable[[Any], Any] | None = getattr(target, "function", target)  # a decorator wraps the function
    if not callable(function):
        raise ChildDied(_NOT_FOUND.format(name=name, module=module))
    return function


def _sendable(error: BaseException, info: ErrorInfo) -> BaseException:
    """Return *error*, or a ChildError in its place if the parent could not rebuild the error or must not raise it."""
    try:
        is_named = "<" not in type(error).__qualname__
        if is_named and not isinstance(error, KeyboardInterrupt | SystemExit) and type(copy.deepcopy(error)) is type(error):
            return error
    except BaseException:  # noqa: BLE001, S110 - the error cannot be constructed or copied
        pass
    return ChildError(str(info), requested_delay(error, time.time()))
