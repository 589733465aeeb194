"""Log records with the item, batch and attempt they are about as fields, not only as text.

The logger ``asyncrunner`` records what happens to the runner, ``asyncrunner.items`` what happens to items: a retry at INFO, a
failed item at WARNING, start and end of every attempt at DEBUG. ``asyncrunner.items`` is silent in a program that has not
configured logging, because the batch report has the same facts in a better form.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from asyncrunner.domain.outcome import Cancelled, Failed, Released, Retrying
from asyncrunner.execution.attempt import current_attempt

if TYPE_CHECKING:
    from asyncrunner.domain.item import Claim
    from asyncrunner.domain.outcome import Settlement


item_log = logging.getLogger("asyncrunner.items")

item_log.addHandler(logging.NullHandler())


def fields(batch: str, claim: Claim) -> dict[str, Any]:
    """Return the ``extra`` of a log record about *claim*."""
    return {"item": claim.id, "batch": batch, "attempt": claim.attempt}


def log_outcome(batch: str, settled: Settlement) -> None:
    """Log the outcome of an attempt; call this after the outcome is committed."""
    claim, outcome = settled.claim, settled.outcome
    level, words = logging.DEBUG, "completed"
    match outcome:
        case Retrying():
            level, words = logging.INFO, f"retry in {outcome.delay:.3g} s at the earliest: {outcome.error}"
        case Failed():
            level, words = logging.WARNING, f"failed: {outcome.error}"
        case Released():
            words = "released, the attempt refunded"
        case Cancelled():
            level, words = logging.INFO, "cancelled"
        case _:
            pass
    if item_log.isEnabledFor(level):
        item_log.log(level, "item %r, attempt %d: %s", claim.id, claim.attempt, words, extra=fields(batch, claim))


class AttemptFilter(logging.Filter):
    """Adds the fields ``item``, ``batch`` and ``attempt`` of the handler that logs to every record; None outside of one.

    Add it to a logging handler, so that a log format can show which item your own code logs about::

        handler.addFilter(AttemptFilter())
        handler.setFormatter(logging.Formatter("%(message)s item=%(item)s attempt=%(attempt)s"))
    """

    def filter(self, record: logging.LogRecord) -> bool:
        if not hasattr(record, "item"):
            try:
                attempt = current_attempt()
            except LookupError:
                record.item = record.batch = record.attempt = None
            else:
                record.item, record.batch, record.attempt = attempt.key, attempt.batch, attempt.number
        return True
