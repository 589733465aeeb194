"""Decode the row of an item for people, and build the errors for items that do not exist or cannot be changed.

No I/O.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from asyncrunner.admin.read_models import ItemDetails, Moment
from asyncrunner.domain.item import Status
from asyncrunner.errors import ConfigurationError, ItemNotFound
from asyncrunner.store.admin_protocol import ItemSet
from asyncrunner.store.snapshot import StoredItem
from asyncrunner.text.durations import duration_text
from asyncrunner.text.escaping import counted, safe_text
from asyncrunner.text.suggestions import did_you_mean, variants
from asyncrunner.text.timestamps import from_text

_NOT_RETRIABLE = (Status.PROCESSING.value, Status.COMPLETED.value)


def details_of(item: StoredItem) -> ItemDetails:
    """Return the item with its JSON values decoded, and its timeline."""
    fields: dict[str, Any] = msgspec.structs.asdict(item)
    fields["cut"] = dict(item.cut)
    for name in ("payload", "rerun_payload", "result", "checkpoint"):
        if name not in item.cut:
            fields[name] = _value(fields[name])
    fields["failures"] = list(item.failures)
    fields["timeline"] = list(_timeline(item))
    return ItemDetails(**fields)


def _value(text: str | None) -> Any:
    if text is None:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text  # the row was edited by hand


def _timeline(item: StoredItem) -> Iterator[Moment]:
    yield Moment(item.created_at, "accepted")
    for failure in item.failures:
        duration = "" if failure.duration is None else f" after {duration_text(failure.duration)}"
        yield Moment(failure.failed_at, f"attempt {failure.attempt} failed{duration}: {failure.error}")
    if item.started_at is not None and item.status in (Status.PROCESSING, Status.COMPLETED):
        by = f" by worker {item.worker_id}" if item.worker_id is not None else ""
        yield Moment(item.started_at, f"attempt {item.attempts} started{by}")
    if item.completed_at is not None and item.status in (Status.COMPLETED, Status.FAILED, Status.CANCELLED):
        # A failure is recorded slightly after the handler ends: take the later time, to keep the timeline in order.
        failed_at = item.failures[-1].failed_at if item.failures and item.status == Status.FAILED else ""
        took = _seconds_between(item.started_at, item.completed_at) if item.status == Status.COMPLETED else None
        after = "" if took is None else f" after {duration_text(took)}"
        yield Moment(max(item.completed_at, failed_at), f"{item.status}{after}")
    if item.due_at is not None and item.status == Status.PENDING:
        if item.put_off_at is not None:
            what = f"runs next, after {item.put_offs} put-off{'s' * (item.put_offs != 1)}"
        else:
            what = "may run again" if item.failures else "may run"
        yield Moment(item.due_at, what)


def _seconds_between(start: str | None, end: str | None) -> float | None:
    started, ended = from_text(start), from_text(end)
    return None if started is None or ended is None else max(0.0, ended - started)


def batch_of(key: str, names: Sequence[str], batches: int) -> str | None:
    """Return the name of the batch that has an item with that *key*; None if the store's only batch has no such item.

    *names*: the batches that have such an item. *batches*: the number of batches in the store. Raises ItemNotFound if
    the store has several batches and *names* is empty, and ConfigurationError if there are several *names*.
    """
    if len(names) > 1:
        raise ConfigurationError(
            f"{key!r} is in several batches: {', '.join(map(repr, names))}; give one of them with --batch (in Python: batch=)"
        )
    if not names and batches > 1:
        raise ItemNotFound(f"there is no item {safe_text(key, limit=80)!r} in any of the {batches} batches")
    return names[0] if names else None


def no_such_item(batch: str, missing: Sequence[str], similar: Sequence[str], other_batches: Sequence[str]) -> ItemNotFound:
    """Return the error for *missing* keys; its message names the first key.

    *similar*: keys that resemble the first missing key. *other_batches*: the batches that have an item with that key.
    """
    key = missing[0]
    if other_batches:
        hint = f"it is in the batch {other_batches[0]!r}"
    elif similar and similar[0] in variants(key):
        hint = f"did you mean {safe_text(similar[0], limit=80)!r}?"
    else:
        hint = did_you_mean(key, similar)
    more = f" (and {len(missing) - 1} more are missing)" if len(missing) > 1 else ""
    return ItemNotFound(f"there is no item {safe_text(key, limit=80)!r} in {batch!r}{more}; {hint}")


def no_such_error(batch: str, error: str, status: Status | None) -> ItemNotFound:
    """Return the error for an error pattern or fingerprint that no item matches."""
    kind = "" if status is None else f"{status.value} "
    return ItemNotFound(f"no {kind}item of {batch!r} has {error!r} in its error; `asyncrunner failures` lists the causes")


def check_retriable(items: ItemSet) -> None:
    """Raise ConfigurationError if one of the items is processing or completed."""
    refused = {status: items.counts[status] for status in sorted(items.counts) if status in _NOT_RETRIABLE}
    if refused:
        reasons = " and ".join(f"{count} {'is' if count == 1 else 'are'} {status}" for status, count in refused.items())
        raise ConfigurationError(
            f"{sum(refused.values()):,} of {counted(len(items.numbers), 'item')} cannot be retried: {reasons}; only failed and "
            "cancelled items can. Nothing was changed"
        )
