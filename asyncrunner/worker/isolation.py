"""Separate items that may have killed their workers: decide when a worker starts one of them. No I/O.

A suspect runs beside the worker's other items, but no other suspect starts within 30 s, so a loss in that time isolates
this suspect. An isolated suspect runs alone: the worker starts nothing else for up to 30 s before the suspect's start and
30 s after its claim. Each wait is bounded, so an item that hangs delays the others for a minute at most.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from asyncrunner.domain.item import MAX_ISOLATION_SECONDS as MAX_ISOLATION_SECONDS
from asyncrunner.domain.item import Suspicion

if TYPE_CHECKING:
    from collections.abc import Sequence

    from asyncrunner.domain.item import Claim
    from asyncrunner.worker.batch_queue import BatchQueue

_CHECK_SECONDS: Final = 1.0
"""How often a worker that waits checks in the store that the isolated item is still pending."""


class ClaimedSuspect(NamedTuple):
    """A suspect that the worker claimed, and the time of the claim (monotonic, seconds)."""

    queue: BatchQueue
    claim: Claim
    since: float


class Isolation:
    """The suspects that a worker claimed in the last 30 s, and the wait for an isolated one. Times are monotonic, in seconds.

    ``waiting_since``: the time since which the worker starts nothing else, because an isolated suspect is about to start;
    None if the worker does not wait.
    """

    def __init__(self) -> None:
        self.waiting_since: float | None = None
        self._checked_at = 0.0
        self._suspects: list[ClaimedSuspect] = []

    @property
    def is_active(self) -> bool:
        """Whether a suspect that was claimed in the last 30 s may run, or the worker waits for an isolated one."""
        return bool(self._suspects) or self.waiting_since is not None

    def take_in(self, queue: BatchQueue, claims: Sequence[Claim], now: float) -> list[Claim]:
        """Record the suspects among *claims* and return them."""
        suspects = [claim for claim in claims if claim.suspicion]
        for claim in suspects:
            self._suspects.append(ClaimedSuspect(queue, claim, now))
            self.waiting_since = None
        return suspects

    def take_overdue(self, now: float) -> list[ClaimedSuspect]:
        """Remove the suspects that have ended or were claimed 30 s ago; return those of them that still run."""
        if not self._suspects:
            return []
        running = [each for each in self._suspects if each.queue.holds(each.claim)]
        self._suspects = [each for each in running if now - each.since < MAX_ISOLATION_SECONDS]
        return [each for each in running if now - each.since >= MAX_ISOLATION_SECONDS]

    def blocks_others(self, now: float) -> bool:
        """Return whether no other item may start, because an isolated suspect runs or is about to start."""
        if self.waiting_since is not None and now - self.waiting_since < MAX_ISOLATION_SECONDS:
            return True
        return any(suspect.claim.suspicion is Suspicion.ISOLATED for suspect in self._newest(now))

    def requested(self, suspicion: Suspicion, others: int, now: float) -> Suspicion:
        """Return the suspicion to request: *suspicion*, which is that of the next suspect, or NONE if the suspect must wait.

        *others* is the number of other items that the worker holds. While an isolated suspect waits for them, the
        worker requests a lesser suspect once a second: the answer shows whether the isolated one is still pending.
        """
        if suspicion is Suspicion.NONE or self._newest(now):
            self.waiting_since = None
            return Suspicion.NONE
        if suspicion is Suspicion.SUSPECT:
            self.waiting_since = None
            return suspicion
        if self.waiting_since is None:
            self.waiting_since = self._checked_at = now
        if others <= 0 or now - self.waiting_since >= MAX_ISOLATION_SECONDS:
            return suspicion
        if now - self._checked_at < _CHECK_SECONDS:
            return Suspicion.NONE
        self._checked_at = now
        return Suspicion.SUSPECT

    def next_change(self, now: float) -> float | None:
        """Return the seconds until a wait ends or the store is checked; None without a wait."""
        ends = [suspect.since + MAX_ISOLATION_SECONDS for suspect in self._newest(now)]
        if self.waiting_since is not None:
            ends.append(min(self.waiting_since + MAX_ISOLATION_SECONDS, self._checked_at + _CHECK_SECONDS))
        return max(0.0, min(ends) - now) if ends else None

    def _newest(self, now: float) -> list[ClaimedSuspect]:
        """Return the suspects that run and were claimed within 30 s."""
        return [each for each in self._suspects if now - each.since < MAX_ISOLATION_SECONDS and each.queue.holds(each.claim)]
