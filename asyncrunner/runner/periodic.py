"""Run the periodic tasks of the engine."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from asyncrunner.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from asyncrunner.domain.clock import Clock

log = logging.getLogger("asyncrunner")


async def every(seconds: float, duty: Callable[[], Awaitable[object]], *, clock: Clock, immediately: bool = False) -> None:
    """Run *duty* again and again until cancelled, each time after a pause of *seconds*.

    With *immediately*, the first run has no pause before it. StoreUnavailable is logged at DEBUG, and the next run
    tries again; other exceptions are raised.
    """
    if immediately:
        await _try(duty)
    while True:
        await clock.sleep(seconds)
        await _try(duty)


async def _try(duty: Callable[[], Awaitable[object]]) -> None:
    try:
        await duty()
    except StoreUnavailable as error:
        log.debug("the store is unavailable; the next run tries again: %s", error)
