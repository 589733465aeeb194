"""End runs in order at Ctrl-C in programs that do not handle it: ``run_until_complete(run_batch(...))``, a cell of IPython.

``asyncio.run()`` handles Ctrl-C itself: it cancels the program's task. In other programs, Python raises KeyboardInterrupt
anywhere in the event loop; the loop then stops, and the items of the run stay claimed.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Final

_interrupts: Final[dict[object, Callable[[], None]]] = {}  # one for each run that Ctrl-C ends
_interrupted: Final[set[object]] = set()


def handle_ctrl_c(interrupt: Callable[[], object]) -> Callable[[], None]:
    """Call *interrupt* in the running loop at the first Ctrl-C; raise KeyboardInterrupt at the next one.

    The function does nothing if the program handles SIGINT, and outside of the main thread. It returns a function that
    removes the handling.
    """
    if threading.current_thread() is not threading.main_thread():
        return lambda: None
    if signal.getsignal(signal.SIGINT) not in (signal.default_int_handler, _on_signal):
        return lambda: None
    loop = asyncio.get_running_loop()
    run = object()

    def interrupt_soon() -> None:
        loop.call_soon_threadsafe(interrupt)

    def end() -> None:
        _interrupts.pop(run, None)
        _interrupted.discard(run)
        if not _interrupts and signal.getsignal(signal.SIGINT) is _on_signal:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    _interrupts[run] = interrupt_soon
    signal.signal(signal.SIGINT, _on_signal)
    return end


def _on_signal(number: int, frame: FrameType | None) -> None:
    runs = [run for run in _interrupts if run not in _interrupted]
    if not runs:
        signal.default_int_handler(number, frame)
    for run in runs:
        _interrupted.add(run)
        with suppress(RuntimeError):  # the loop of the run was closed
            _interrupts[run]()
