"""A store for tests of the heartbeat and the watchdog."""

from __future__ import annotations

from collections.abc import Sequence

from asyncrunner.domain.outcome import ErrorInfo
from asyncrunner.store.workers import Beat, Peer, Stop, Vitals


class FakeStore:
    """A store with only the methods that a heartbeat and a watchdog call."""

    def __init__(self) -> None:
        self.found: list[Peer] = []
        self.recovered: list[tuple[str | None, str]] = []
        self.pulses: list[str | None] = []  # the arguments of each recovery
        self.beats = 0
        self.outcast = False
        self.stop = Stop.NO
        self.stops: list[Stop] = []
        self.error: Exception | None = None

    async def peers(self, worker_id: str) -> Sequence[Peer]:
        return list(self.found)

    async def recover(self, worker_id: str | None, error: ErrorInfo, *, pulse: str | None = None) -> int:
        self.recovered.append((worker_id, error.message))
        self.pulses.append(pulse)
        return 1 if worker_id is None else 3

    async def beat(self, worker_id: str, vitals: Vitals) -> Beat:
        if self.error is not None:
            raise self.error
        self.beats += 1
        return Beat(self.outcast, stop=self.stop)
