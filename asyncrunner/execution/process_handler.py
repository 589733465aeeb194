"""Run a ``def`` handler in a child process (``run_in="process"``), one of anyio's worker processes, one item at a time.

A handler may use a whole core. If its process ends (a segfault, ``os._exit``, the kernel's out-of-memory killer), only
that attempt fails. The parent sends the item as JSON; the child imports the handler's module and looks up the handler
by name. Each child is a new interpreter that inherits no open file of its parent.
"""

from __future__ import annotations

import ctypes
import importlib
import inspect
import os
import signal
import sys
import types
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import anyio.to_process
import msgspec

from asyncrunner.domain.item import Claim
from asyncrunner.domain.options import NanPolicy
from asyncrunner.domain.outcome import ErrorInfo
from asyncrunner.errors import ChildDied, ConfigurationError
from asyncrunner.execution.answers import DescribedError, EncodedResult
from asyncrunner.execution.attempt import current_execution
from asyncrunner.execution.execution import Execution, running
from asyncrunner.execution.handler_file import file_of, import_file
from asyncrunner.execution.sent_error import SentError, sendable
from asyncrunner.serialization.codec import codecs_of
from asyncrunner.serialization.error_info import describe

if TYPE_CHECKING:
    from anyio import CapacityLimiter


class ChildCall:
    """The replacement of a handler in the parent process: a call runs the handler in a child process.

    Raises ConfigurationError for a handler that a child cannot find by name. A call raises ChildDied if the child ends
    without an answer, and DescribedError for an error of the handler.
    """

    def __init__(self, handler: Callable[..., Any], limiter: Callable[[], CapacityLimiter], *, nan: NanPolicy = "refuse") -> None:
        self._limiter = limiter
        self._nan: NanPolicy = nan
        self._module, self._name = _address(handler)
        self._file = file_of(self._module)
        self.__name__ = self._name

    async def __call__(self, item: object) -> EncodedResult:
        del item  # the child decodes the item from the claim's JSON
        if self._module == "__main__":
            sys.modules.setdefault("__mp_main__", sys.modules["__main__"])  # the module's name in a child's exceptions
        execution = current_execution.get()
        try:
            answer = await _with_blocked_signals(
                anyio.to_process.run_sync(
                    _run_here,
                    self._module,
                    self._file,
                    self._name,
                    execution.batch,
                    msgspec.structs.astuple(execution.claim),
                    execution.max_attempts,
                    self._nan,
                    cancellable=True,
                    limiter=self._limiter(),
                )
            )
        except anyio.BrokenWorkerProcess as error:
            raise ChildDied(
                f"the process that ran {self._name} ended without an answer: a segfault, os._exit, or a kill"
            ) from error
        if isinstance(answer, _Failure):
            raise DescribedError(answer.error.restore(), ErrorInfo(*answer.info))
        return EncodedResult(answer)


class _Failure(NamedTuple):
    error: SentError
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
    file = getattr(sys.modules.get("__main__"), "__file__", None)
    if module == "__main__" and (file is None or not Path(file).is_file()):
        raise ConfigurationError(
            f'run_in="process": {name} is defined in a notebook or at a prompt, where no other process can find it; move it to a '
            ".py file and import it from there"
        )
    return module, name


_ENDING_SIGNALS: Final = (signal.SIGTERM, signal.SIGHUP)
GROUP_SIGNALS: Final = (signal.SIGINT, *_ENDING_SIGNALS)
"""The signals that a terminal, systemd or a container's init sends to all processes of a group.

The parent decides whether the attempt ends; a child that ends by such a signal would fail an item that may finish.
"""


@types.coroutine
def _with_blocked_signals(coroutine: Coroutine[Any, Any, Any]) -> Generator[Any, Any, Any]:
    """Await *coroutine* with ``GROUP_SIGNALS`` blocked during each of its steps, but not while it waits.

    A child process that is created in a step inherits the block, until ``leave_signals_to_parent()`` runs in the child.
    """
    step: Callable[[], Any] = partial(coroutine.send, None)
    while True:
        previous = signal.pthread_sigmask(signal.SIG_BLOCK, GROUP_SIGNALS)
        try:
            waited_for = step()
        except StopIteration as stop:
            return stop.value
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, previous)
        try:
            value = yield waited_for
        except GeneratorExit:
            coroutine.close()
            raise
        except BaseException as thrown:  # noqa: BLE001 - the coroutine handles it
            step = partial(coroutine.throw, thrown)
        else:
            step = partial(coroutine.send, value)


@cache
def leave_signals_to_parent() -> None:
    """Ignore ``GROUP_SIGNALS`` in this child, but not in the programs and processes that its handlers start."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in _ENDING_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            # Programs would inherit SIG_IGN, so that a handler could not terminate them; they do not inherit a function.
            signal.signal(number, _ignore)
    # Without the block, a signal that arrives just after the fork would be lost in the forked process.
    os.register_at_fork(before=_block, after_in_parent=_unblock, after_in_child=_end_by_signals)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, GROUP_SIGNALS)


def _ignore(number: int, frame: FrameType | None) -> None:
    del number, frame


def _block() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING_SIGNALS)


def _unblock() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING_SIGNALS)


def _end_by_signals() -> None:
    for number in _ENDING_SIGNALS:
        if signal.getsignal(number) is _ignore:
            signal.signal(number, signal.SIG_DFL)
    _unblock()


_PR_SET_PDEATHSIG: Final = 1  # from <linux/prctl.h>
_NOT_FOUND: Final = "the process cannot find {name} in {module}; define it at the top level of that module, under that name"


def _run_here(
    module: str, file: str | None, name: str, batch: str, claim: tuple[Any, ...], max_attempts: int, nan: NanPolicy = "refuse"
) -> str | _Failure:
    # This runs in the child.
    leave_signals_to_parent()
    _die_with_parent()
    try:
        handler = _find(module, file, name)
        items, results = codecs_of(handler, nan=nan)
        execution = Execution(batch, Claim(*claim), max_attempts)
        with running(execution), _redirect_streams_to_null():
            return results.encode_result(handler(items.decode(execution.claim.payload, execution.claim.id)))
    except BaseException as error:  # noqa: BLE001 - a handler may raise any exception, which fails its attempt
        info = describe(error)
        kind = info.type.replace("__mp_main__", "__main__")
        return _Failure(sendable(error, str(info)), (kind, info.message, info.traceback, info.fingerprint))


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
