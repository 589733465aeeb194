"""The page of an item: its timeline, its failed attempts with tracebacks, and its values."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from asyncrunner.admin.read_models import ItemDetails
from asyncrunner.dashboard.fields import Fields
from asyncrunner.dashboard.reads import Reads
from asyncrunner.dashboard.rendering import json_lines, lines, now_text
from asyncrunner.dashboard.views.view import View
from asyncrunner.domain.item import Status

VALUES: Final = ("payload", "result", "checkpoint", "rerun_payload")


class ShownValue(NamedTuple):
    """A JSON value of an item as text. ``size``: its size in bytes if the text is only its start."""

    name: str
    text: str
    size: int | None


async def item(reads: Reads, fields: Fields) -> View:
    """Return the page of the item with the ``id`` in the ``batch``. Raises ItemNotFound, BatchNotFound."""
    name, key = fields.required("batch"), fields.required("id")
    details = await reads.read(lambda store: store.show(key, name))
    status = Status(details.status)
    values = {
        "item": details,
        "shown_values": [_shown_value(details, each) for each in VALUES if getattr(details, each) is not None],
        "can_retry": status in (Status.FAILED, Status.CANCELLED),
        "can_rerun": status is Status.COMPLETED,
        "can_cancel": status in (Status.PENDING, Status.PROCESSING),
    }
    return View("item", f"{details.status}: {details.id}", now_text(), values)


def _shown_value(details: ItemDetails, name: str) -> ShownValue:
    value: Any = getattr(details, name)
    size = details.cut.get(name)
    return ShownValue(name, json_lines(value) if size is None else lines(value), size)
