"""Stores in which a test replaces some methods."""

from __future__ import annotations

import math

from asyncrunner.backends import open_engine
from asyncrunner.domain.clock import SystemClock
from asyncrunner.store.retrying import RetryingStore


class Overridden(RetryingStore):
    """A store of any kind whose methods a subclass overrides; it repeats no call, since its deadline is past."""

    def __init__(self, db: str) -> None:
        super().__init__(open_engine(db), SystemClock(), deadline=-math.inf)
