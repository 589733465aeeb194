"""The arguments and the results of a turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from asyncrunner.domain.item import Claim, Suspicion
from asyncrunner.domain.rate_limit import Rate
from asyncrunner.store.batches import BatchState


class Want(NamedTuple):
    """A request for up to ``limit`` items of a batch.

    ``max_attempts``: the maximum number of attempts of an item. ``rate``: the batch's rate limit, which the claims
    obey. ``suspicion``: in addition to these items, the worker requests one item that may have killed its workers, of
    that suspicion or less; NONE: no such item. ``version``: the number of the version of the batch's handler that the
    worker runs; if the batch has another version, the turn claims none of its items. None: any version. ``only_given``:
    request only items that ``EngineStore.give`` has named, and the state of the batch counts only these.
    """

    batch_id: int
    limit: int
    max_attempts: int
    rate: Rate | None = None
    suspicion: Suspicion = Suspicion.NONE
    version: int | None = None
    only_given: bool = False


class ClaimRequest(NamedTuple):
    """A request of a worker to claim the new items of an add with the add; see ``EngineStore.add``."""

    worker_id: str
    want: Want


class Checkpoint(NamedTuple):
    """A checkpoint, as JSON, that an attempt saves for the item's next attempt."""

    claim: Claim
    checkpoint: str


class LostClaim(NamedTuple):
    """A claim that is no longer current. ``cancelled``: whether the reason is that the item was cancelled."""

    claim: Claim
    cancelled: bool


class Turn(NamedTuple):
    """The result of a turn. ``outcast``: the worker had been declared lost, and its claims were recovered.

    ``lost``: the claims of settlements and checkpoints that were no longer current. ``reruns``: the current claims of
    settlements whose item is pending again with a new payload, because a rerun was requested meanwhile; the outcome is
    dropped.
    """

    claims: Sequence[Claim]
    lost: Sequence[Claim]
    batches: Mapping[int, BatchState]
    outcast: bool = False
    reruns: Sequence[Claim] = ()

    def claims_by_batch(self, wants: Sequence[Want]) -> Mapping[int, Sequence[Claim]]:
        """Return the claims of each batch of *wants*, by its id."""
        if len(wants) == 1:
            return {wants[0].batch_id: self.claims}
        return {want.batch_id: [claim for claim in self.claims if claim.batch_id == want.batch_id] for want in wants}
