"""Encode the outcomes that are not completions, as the function settle reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from asyncrunner.domain.outcome import Cancelled, Failed, PutOff, Released, Retrying

if TYPE_CHECKING:
    from collections.abc import Sequence

    from asyncrunner.domain.outcome import Settlement


def encoded_outcomes(settlements: Sequence[Settlement], now: float, skew: float = 0.0) -> str | None:
    """Return the settlements as JSON; None if there are none.

    *skew*: the seconds by which the store's clock is ahead of the clock of the settlements' times.
    """
    if not settlements:
        return None
    return msgspec.json.encode([_fields(settlement, now, skew) for settlement in settlements]).decode()


def _fields(settlement: Settlement, now: float, skew: float) -> dict[str, Any]:
    claim, outcome = settlement.claim, settlement.outcome
    fields: dict[str, Any] = {
        "seq": claim.seq,
        "claim": claim.number,
        "attempt": claim.attempt,
        "started": settlement.started_at + skew,
        "ended": settlement.finished_at + skew,
        "crashed": False,
    }
    match outcome:
        case Retrying():
            fields |= {
                "kind": "retrying",
                "due": now + outcome.delay if outcome.delay > 0 else None,
                "crashed": outcome.crashed,
                "suspect": int(outcome.suspicion),
                "refunded": int(outcome.refunded),
                "pause": outcome.pause,
            }
        case PutOff():
            fields |= {"kind": "put_off", "due": now + outcome.delay if outcome.delay > 0 else None}
        case Failed():
            fields |= {"kind": "failed", "permanent": outcome.permanent, "crashed": outcome.crashed}
        case Released():
            fields["kind"] = "released"
        case Cancelled():
            fields["kind"] = "cancelled"
        case _:
            raise TypeError(f"{outcome!r} is settled with its result")
    if isinstance(outcome, Retrying | PutOff | Failed):
        error = outcome.error
        fields |= {
            "error": storable(str(error)),
            "error_type": storable(error.type),
            "message": storable(error.message),
            "traceback": storable(error.traceback),
            "fingerprint": storable(error.fingerprint),
        }
    return fields


def storable(text: str) -> str:
    """Return *text* without the characters that PostgreSQL's text cannot have."""
    if "\0" in text:
        text = text.replace("\0", "\N{REPLACEMENT CHARACTER}")
    return text.encode("utf-8", "replace").decode()
