"""The outcomes of the items of lost workers, and of orphaned items."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from asyncrunner.domain.item import Claim, Suspicion
from asyncrunner.domain.outcome import Released, Settlement
from asyncrunner.domain.retry import conclude_loss
from asyncrunner.store.batches import BatchOptions

if TYPE_CHECKING:
    from collections.abc import Sequence, Set

    from asyncrunner.domain.outcome import ErrorInfo


def loss_settlements(
    claims: Sequence[tuple[Claim, float | None]],
    error: ErrorInfo,
    now: float,
    options_of: Callable[[int], BatchOptions],
    *,
    running: Set[int] | None = None,
    other_items: int = 0,
    other_workers: int = 0,
) -> list[Settlement]:
    """Return the settlements of *claims* of a lost worker, or of orphaned items, each with the time at which it started.

    *options_of* returns the options of a batch by its id. *running* has the seqs of the items that the worker's slots ran
    last, None if they are unknown: the other items had not started, so they are released without a crash. *other_items* is
    the number of items that may have caused the crash and are not recovered now. *other_workers* is the number of other
    workers that died in the same process: the items of those workers may have caused the crash.
    """
    started = [(claim, start) for claim, start in claims if running is None or claim.seq in running]
    neighbours = len(started) - 1 + other_items
    suspects = sum(claim.suspicion > Suspicion.NONE for claim, _ in started)
    options: dict[int, BatchOptions] = {}
    settlements = [
        Settlement(claim, Released(), now, now) for claim, _ in claims if running is not None and claim.seq not in running
    ]
    rng = random.Random()  # noqa: S311 - it only spreads the retries
    for claim, started_at in started:
        if claim.batch_id not in options:
            options[claim.batch_id] = options_of(claim.batch_id)
        batch = options[claim.batch_id]
        outcome = conclude_loss(
            _loss_error(error, claim, batch.max_attempts, neighbours, other_workers),
            attempt=claim.attempt,
            crashes=claim.crashes + 1,
            max_attempts=batch.max_attempts,
            suspicion=claim.suspicion,
            only_suspect=suspects == 1 and not other_workers,
            alone=not neighbours and not other_workers,
            policy=batch.policy(),
            rng=rng,
        )
        start = now if started_at is None else started_at
        settlements.append(Settlement(claim, outcome, start, max(now, start)))
    return settlements


def _loss_error(error: ErrorInfo, claim: Claim, max_attempts: int, neighbours: int, other_workers: int) -> ErrorInfo:
    others = f"other items of the worker: {neighbours:,}"
    if other_workers:
        others += f"; other workers in its process: {other_workers}"
    return msgspec.structs.replace(
        error,
        message=f"{error.message}. Attempt {claim.attempt} of {max_attempts}; {others}; "
        f"crashes of this item: {claim.crashes + 1}",
    )
