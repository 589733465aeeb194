"""Publish the outcomes of a committed turn to the counters, the observers and the log."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from asyncrunner.domain.item import Suspicion
from asyncrunner.domain.outcome import Cancelled, Completed
from asyncrunner.events import Events, Settled, Stopped
from asyncrunner.execution.item_log import fields, item_log, log_outcome, log_rerun
from asyncrunner.text.durations import duration_text
from asyncrunner.text.escaping import counted

if TYPE_CHECKING:
    from asyncrunner.domain.item import Claim
    from asyncrunner.domain.outcome import Outcome, Settlement
    from asyncrunner.worker.batch_queue import BatchQueue

log = logging.getLogger("asyncrunner")


class OutcomePublisher:
    """The publisher of committed outcomes to the counters of *queues* (by batch id), the observers and the log.

    ``log_attempts``: whether the log records every attempt, because its level is DEBUG.
    """

    def __init__(self, events: Events, queues: Mapping[int, BatchQueue]) -> None:
        self._events = events
        self._queues = queues
        self._observers = events.observers_of(Settled)
        self.log_attempts = item_log.isEnabledFor(logging.DEBUG)

    def publish(self, settled: Sequence[Settlement], lost: Sequence[Claim], reruns: Sequence[Claim] = ()) -> None:
        """Publish the outcomes *settled*, except those of *lost* claims and of *reruns*, which the store dropped.

        Call this after the turn of the outcomes is committed.
        The log level is read once per turn.
        """
        self.log_attempts = item_log.isEnabledFor(logging.DEBUG)
        committed = self._without_dropped(settled, lost, reruns) if lost or reruns else settled
        kinds = {(settlement.claim.batch_id, type(settlement.outcome)) for settlement in committed}
        for batch_id, kind in kinds:
            count = len(committed) if len(kinds) == 1 else _count(committed, batch_id, kind)
            self._queues[batch_id].tally[kind] += count
        has_observers = bool(self._observers)
        if not has_observers and not self.log_attempts and all(kind is Completed for _, kind in kinds):
            return
        for settlement in committed:
            name = self._queues[settlement.claim.batch_id].name
            if has_observers:
                self._events.publish(Settled.of(name, settlement))
            if self.log_attempts or type(settlement.outcome) is not Completed:
                log_outcome(name, settlement)

    def publish_cancelled(self, queue: BatchQueue, settled: Settlement | None) -> None:
        """Publish that the handler of a cancelled item has ended.

        The cancellation has already settled the item in the store.
        """
        queue.tally[Cancelled] += 1
        if settled is not None and self._observers:
            self._events.publish(Settled.of(queue.name, msgspec.structs.replace(settled, outcome=Cancelled())))

    def publish_stop(self, queue: BatchQueue, reason: str) -> None:
        """Publish that this worker has stopped a batch for *reason*; call this after the store has recorded the stop."""
        log.error("batch %r is stopped: %s; its remaining items stay pending", queue.name, reason, extra={"batch": queue.name})
        self._events.publish(Stopped(queue.name, reason))

    def log_rest(self, queue: BatchQueue, reason: str, seconds: float) -> None:
        """Log that this worker lets a batch rest for *seconds*, and why."""
        log.warning(
            "batch %r rests for %s: %s; then one item runs as a test", queue.name, duration_text(seconds), reason,
            extra={"batch": queue.name},
        )  # fmt: skip

    def log_suspect(self, queue: BatchQueue, claim: Claim, *, others: int) -> None:
        """Log that a suspect starts beside *others* items, and which items do not start meanwhile."""
        log.info(
            "item %r of %r starts %s: %s died while it ran; %s",
            claim.id,
            queue.name,
            f"beside {counted(others, 'other item')}" if others else "alone",
            counted(claim.crashes, "worker"),
            "for 30 s, no other item starts in this worker"
            if claim.suspicion is Suspicion.ISOLATED
            else "for 30 s, no other item whose workers died starts in this worker",
            extra=fields(queue.name, claim),
        )

    def log_isolation_wait(self, others: int) -> None:
        """Log that the worker starts no items until its *others* items have ended, because an isolated item is due."""
        log.info(
            "the worker waits up to 30 s for %s to end, and starts no others meanwhile: the next item runs alone, because "
            "workers died while it ran",
            counted(others, "item"),
        )

    def log_overdue(self, queue: BatchQueue, claim: Claim) -> None:
        """Log that a suspect still runs 30 s after its claim, so that the items that waited for it may start."""
        log.info(
            "item %r of %r has not ended within 30 s: %s start beside it",
            claim.id,
            queue.name,
            "other items" if claim.suspicion is Suspicion.ISOLATED else "other items whose workers died",
            extra=fields(queue.name, claim),
        )

    def _without_dropped(
        self, settled: Sequence[Settlement], lost: Sequence[Claim], reruns: Sequence[Claim]
    ) -> Sequence[Settlement]:
        lost_claims = {(claim.seq, claim.number) for claim in lost}
        rerun_claims = {(claim.seq, claim.number) for claim in reruns}
        committed: list[Settlement] = []
        for settlement in settled:
            claim = settlement.claim
            if (claim.seq, claim.number) in lost_claims:
                name = self._queues[claim.batch_id].name
                log.warning(
                    "item %r of %r: its claim was lost, so its outcome is dropped", claim.id, name, extra=fields(name, claim)
                )
            elif (claim.seq, claim.number) in rerun_claims:
                log_rerun(self._queues[claim.batch_id].name, claim)
            else:
                committed.append(settlement)
        return committed


def _count(settled: Sequence[Settlement], batch_id: int, kind: type[Outcome]) -> int:
    return sum(settlement.claim.batch_id == batch_id and type(settlement.outcome) is kind for settlement in settled)
