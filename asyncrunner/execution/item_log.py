"""Log the events of items, with the item, the batch and the attempt as fields of the log record.

The logger ``asyncrunner`` records the events of the runner. The logger ``asyncrunner.items`` records the events of
items: a retry, a put-off, a rerun or a cancelled item at INFO, a failed item at WARNING, every other start and end of
an attempt at DEBUG. This logger writes nothing in a program that has not configured logging, because the batch report
has the same facts.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from asyncrunner.domain.outcome import Cancelled, Failed, PutOff, Released, Retrying
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
        case PutOff():
            level, words = logging.INFO, f"put off for {outcome.delay:.3g} s; the attempt is refunded: {outcome.error}"
        case Failed():
            level, words = logging.WARNING, f"failed: {outcome.error}"
        case Released():
            words = "released; the attempt is refunded"
        case Cancelled():
            level, words = logging.INFO, "cancelled"
        case _:
            pass
    if item_log.isEnabledFor(level):
        item_log.log(level, "item %r of %r, attempt %d: %s", claim.id, batch, claim.attempt, words, extra=fields(batch, claim))


def log_rerun(batch: str, claim: Claim) -> None:
    """Log that an attempt ended whose item runs once more with the payload of a later submit."""
    item_log.info(
        "item %r of %r, attempt %d: ended; its outcome is dropped: the item was submitted again meanwhile and runs once more",
        claim.id,
        batch,
        claim.attempt,
        extra=fields(batch, claim),
    )


class AttemptFilter(logging.Filter):
    """A filter that adds the fields ``item``, ``batch`` and ``attempt`` to log records that do not have them.

    The values are those of the handler that writes the record; None outside of a handler. Add the filter to a logging
    handler, so that a log format can show the item of each record::

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
