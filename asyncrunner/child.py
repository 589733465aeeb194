"""A ``def`` handler in a process of its own, on anyio's worker processes: one item a process at a time.

So a handler may use a core for itself, and one that takes its process down (a segfault, ``os._exit``, the kernel's
out-of-memory killer) fails its own item and nobody else's. The item travels as its JSON; the handler is found by its name, in the
module that the program itself imported it from. Children are fresh interpreters: they share no file with their parent.
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
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import anyio
import anyio.to_process

from asyncrunner.attempt import Attempt, DescribedError, EncodedResult, current_attempt, running
from asyncrunner.codec import codecs_of
from asyncrunner.errors import AttemptError, ChildDied, ConfigurationError
from asyncrunner.failure import describe
from asyncrunner.item import Claim, ErrorInfo
from asyncrunner.retry import retry_after

if TYPE_CHECKING:
    from anyio import CapacityLimiter

__all__ = ["ChildCall", "ChildError"]


class ChildError(AttemptError):
    """Stands in for an exception that cannot travel between processes; ``headers`` has its ``Retry-After``."""

    def __init__(self, message: str, after: float | None = None) -> None:  # from its message alone it is made in the parent
        super().__init__(message)
        self.headers = {} if after is None else {"Retry-After": str(after)}


class ChildCall:
    """The handler's stand-in in the parent. Raises ConfigurationError for a function that a child could not find."""

    def __init__(self, handler: Callable[..., Any], limiter: Callable[[], CapacityLimiter]) -> None:
        self._limiter = limiter
        self._module, self._name = _address(handler)
        self.__name__ = self._name

    async def __call__(self, item: object) -> EncodedResult:
        del item  # it travels as its JSON
        if self._module == "__main__":
            sys.modules.setdefault("__mp_main__", sys.modules["__main__"])  # the children's name of it, in what they raise
        attempt = current_attempt()
        try:
            answer = await anyio.to_process.run_sync(
                _run_here, self._module, self._name, attempt.batch, tuple(attempt.claim), attempt.max_attempts,
                cancellable=True, limiter=self._limiter(),
            )  # fmt: skip
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
            f'run_in="process" needs a `def` at the top of a module, which the process can find by name; {handler!r} is not one'
        )
    if inspect.iscoroutinefunction(handler):
        raise ConfigurationError(f'run_in="process" is for a `def`; {name} is an `async def`, which runs in the loop')
    return module, name


_PR_SET_PDEATHSIG: Final = 1
_NOT_FOUND: Final = "the process cannot find {name} in {module}; is it at the top of that module, under that name?"


def _run_here(module: str, name: str, batch: str, claim: tuple[Any, ...], max_attempts: int) -> str | _Failure:
    # In the child. Ctrl-C goes to the whole group; what becomes of this item is the parent's to say.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _die_with_parent()
    try:
        handler = _find(module, name)
        items, results = codecs_of(handler)
        attempt = Attempt(batch, Claim(*claim), max_attempts, None)
        with running(attempt), _streams_to_nowhere():
            return results.encode_result(handler(items.decode(attempt.claim.payload)))
    except BaseException as error:  # noqa: BLE001 - a handler may raise anything; it is that item's failure
        info = describe(error)
        kind = info.type.replace("__mp_main__", "__main__")
        return _Failure(_travelling(error, info), (kind, info.message, info.traceback, info.fingerprint))


@contextmanager
def _streams_to_nowhere() -> Generator[None, None, None]:
    """The child's first two descriptors are its line to the parent: what a handler starts must not write or read there."""
    kept = os.dup(0), os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    try:
        os.dup2(nowhere, 0)
        os.dup2(nowhere, 1)
        yield
    finally:
        if sys.__stdout__ is not None:
            sys.__stdout__.flush()
        for number, copy_of in enumerate(kept):
            os.dup2(copy_of, number)
            os.close(copy_of)
        os.close(nowhere)


def _die_with_parent() -> None:
    # Or an item that was recovered elsewhere would go on running here, too.
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _find(module: str, name: str) -> Callable[[Any], Any]:
    found: Any = sys.modules["__main__"] if module == "__main__" else importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    function: Callable[[Any], Any] | None = getattr(found, "function", found)  # under a decorator of a runner
    if not callable(function):
        raise ChildDied(_NOT_FOUND.format(name=name, module=module))
    return function


def _travelling(error: BaseException, info: ErrorInfo) -> BaseException:
    """*error*, or what stands in for it if it could not be made again in the parent."""
    try:
        is_named = "<" not in type(error).__qualname__
        if is_named and not isinstance(error, KeyboardInterrupt | SystemExit) and type(copy.deepcopy(error)) is type(error):
            return error
    except BaseException:  # noqa: BLE001, S110 - a constructor of its own, with parts that cannot be copied
        pass
    return ChildError(str(info), retry_after(error, time.time()))
