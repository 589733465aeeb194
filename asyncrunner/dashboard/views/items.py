"""The list of items: filtered by state, error, age, id and content, 50 on a page."""

from __future__ import annotations

from typing import Any, Final

from asyncrunner.admin.read_models import ItemPage
from asyncrunner.dashboard.fields import Fields
from asyncrunner.dashboard.reads import Reads
from asyncrunner.dashboard.views.view import View
from asyncrunner.domain.item import Status
from asyncrunner.errors import ItemNotFound
from asyncrunner.store.snapshot import ItemSummary

PAGE_SIZE: Final = 50
_ORDERS: Final = ("newest", "input")
_KEPT: Final = "kept_"
"""The start of the names of hidden fields that have the filter of the list from which an action was chosen."""

_FILTERS: Final = ("status", "error", "older_than", "contains", "id")


def kept_filter(fields: Fields) -> dict[str, str]:
    """Return the filter of the list from which an action was chosen, and nothing else that the visitor has written."""
    return {name: text for name in (*_FILTERS, "order") if (text := fields.text(f"{_KEPT}{name}")) is not None}


def kept_fields(fields: Fields) -> list[tuple[str, str]]:
    """Return the hidden fields with that filter, for the next form."""
    return [(f"{_KEPT}{name}", text) for name, text in kept_filter(fields).items()]


async def items(reads: Reads, fields: Fields) -> View:
    """Return a page of the items of the field ``batch`` that match the other fields. Raises AsyncRunnerError."""
    name = fields.required("batch")
    chosen = {each: fields.text(each) for each in _FILTERS}
    order = fields.choice("order", _ORDERS, "newest")
    status = await reads.status(name)
    (batch,) = status.batches
    note = None
    try:
        page = await _page(reads, name, chosen, order, fields.text("after"))
    except ItemNotFound as error:
        page, note = ItemPage(name, [], None), str(error)
    values = {
        "status": status,
        "batch": batch,
        "items": page.items,
        "page": page,
        "note": note,
        "chosen": chosen | {"order": order},
        "filter": {name: value for name, value in (chosen | {"order": order}).items() if value},
        "kept": [(f"{_KEPT}{name}", value) for name, value in (chosen | {"order": order}).items() if value],
        "statuses": [each.value for each in Status],
        "orders": _ORDERS,
        "matching": await _matching(reads, name, chosen, batch.counts),
        "is_first": fields.text("after") is None,
    }
    return View("items", f"items of {batch.name}", status.at, values)


async def _page(reads: Reads, name: str, chosen: dict[str, str | None], order: str, after: str | None) -> ItemPage:
    prefix = chosen["id"]
    if prefix is not None:
        keys = await reads.read(lambda store: store.ids_with(prefix, name, limit=PAGE_SIZE + 1))
        shown = [await _summary(reads, name, key) for key in keys[:PAGE_SIZE]]
        return ItemPage(name, shown, None, len(shown) if len(keys) > PAGE_SIZE else None)
    return await reads.read(
        lambda store: store.items(
            name,
            status=chosen["status"],
            error=chosen["error"],
            older_than=chosen["older_than"],
            contains=chosen["contains"],
            newest=order == "newest" or chosen["contains"] is not None,
            limit=PAGE_SIZE,
            after=after,
        )
    )


async def _summary(reads: Reads, name: str, key: str) -> ItemSummary:
    item = await reads.read(lambda store: store.show(key, name))
    columns: dict[str, Any] = {field: getattr(item, field) for field in ItemSummary.__struct_fields__ if field != "payload"}
    return ItemSummary(**columns, payload="")


async def _matching(reads: Reads, name: str, chosen: dict[str, str | None], counts: Any) -> int | None:
    """Return how many items match, if the store keeps that number: without a filter, with a state, or with a cause."""
    if chosen["contains"] or chosen["older_than"] or chosen["id"]:
        return None
    if chosen["error"] is None:
        return int(counts.total if chosen["status"] is None else getattr(counts, chosen["status"]))
    causes = await reads.failures(name)
    exact = [cause.items for cause in causes if cause.fingerprint == chosen["error"]]
    return exact[0] if exact and chosen["status"] in (None, Status.FAILED) else None
