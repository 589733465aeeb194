"""Keep items that may have killed their workers apart: decide when a worker starts one of them. No I/O.

A suspect runs beside the worker's other items, but no other suspect starts within 30 s, so that a loss convicts it. An
isolated suspect runs alone: the worker starts nothing else for up to 30 s before its start and 30 s after it. Each wait
is bounded, so an item that hangs delays the others for a minute at most.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from asyncrunner.domain.item import Suspicion

if TYPE_CHECKING:
    from collections.abc import Sequence

    from asyncrunner.domain.item import Claim
    from asyncrunner.worker.batch_queue import BatchQueue

MAX_WAIT_SECONDS: Final = 30.0
"""How long other suspects wait for a suspect, and how long other items wait for an isolated one."""


class _Held(NamedTuple):
    queue: BatchQueue
    claim: Claim
    since: float


class Isolation:
    """The suspects that a worker holds, and the wait for an isolated one. Times are monotonic, in seconds.

    ``waiting_since``: since when the worker starts nothing else, because an isolated suspect is about to start; None if
    it does not wait.
    """

    def __init__(self) -> None:
        self.waiting_since: float | None = None
        self._held: list[_Held] = []

    def take_in(self, queue: BatchQueue, claims: Sequence[Claim], now: float) -> None:
        """Record the suspects among *claims*."""
        for claim in claims:
            if claim.suspicion:
                self._held.append(_Held(queue, claim, now))
                self.waiting_since = None

    def holds_others_back(self, now: float) -> bool:
        """Return whether no other item may start, because an isolated suspect runs or is about to start."""
        if self.waiting_since is not None and now - self.waiting_since < MAX_WAIT_SECONDS:
            return True
        return any(held.claim.suspicion is Suspicion.ISOLATED for held in self._newest(now))

    def requested(self, suspicion: Suspicion, others: int, now: float) -> Suspicion:
        """Return the suspicion to request: that of the next suspect, *suspicion*, or NONE if it must wait.

        *others* is the number of other items that the worker holds.
        """
        if suspicion is Suspicion.NONE or self._newest(now):
            self.waiting_since = None
            return Suspicion.NONE
        if suspicion is Suspicion.SUSPECT:
            self.waiting_since = None
            return suspicion
        if self.waiting_since is None:
            self.waiting_since = now
        return suspicion if others <= 0 or now - self.waiting_since >= MAX_WAIT_SECONDS else Suspicion.NONE

    def next_change(self, now: float) -> float | None:
        """Return the seconds until a wait ends; None without a wait."""
        begins = [held.since for held in self._newest(now)]
        begins += [] if self.waiting_since is None else [self.waiting_since]
        return max(0.0, min(begins) + MAX_WAIT_SECONDS - now) if begins else None

    def _newest(self, now: float) -> list[_Held]:
        """Forget the suspects whose attempt has ended; return the others that were claimed within 30 s."""
        if not self._held:
            return self._held
        self._held = [held for held in self._held if held.queue.holds(held.claim)]
        return [held for held in self._held if now - held.since < MAX_WAIT_SECONDS]
