"""Which items an action is for: those with ids, with a cause of failure, or all in a state; never all by accident."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

from asyncrunner.admin.inspection.inspection import Inspection
from asyncrunner.dashboard.fields import Fields
from asyncrunner.domain.item import Status
from asyncrunner.errors import ConfigurationError
from asyncrunner.text.escaping import counted, safe_text


class Verb(StrEnum):
    """What an action does to items."""

    RETRY = "retry"
    RERUN = "rerun"
    CANCEL = "cancel"


class Selection(NamedTuple):
    """The items of a batch that a visitor has chosen: exactly one of ``ids``, ``error`` and ``is_all`` is given.

    ``is_all``: every failed item for a retry, every pending item for a cancellation. ``error``: the failed items with this
    cause or text in their error.
    """

    verb: Verb
    batch: str
    ids: Sequence[str] = ()
    error: str | None = None
    is_all: bool = False

    @classmethod
    def of(cls, verb: Verb, fields: Fields) -> Selection:
        """Return the selection that the fields describe. Raises ConfigurationError if they select nothing, or by two ways."""
        chosen = cls(verb, fields.required("batch"), fields.texts("ids"), fields.text("error"), fields.flag("all"))
        if [bool(chosen.ids), chosen.error is not None, chosen.is_all].count(True) != 1:
            raise ConfigurationError("no items are chosen: tick some, or choose all that failed, are pending, or have a cause")
        if verb is Verb.CANCEL and chosen.error is not None:
            raise ConfigurationError("items with an error have ended, so there is nothing to cancel")
        if verb is Verb.RERUN and not chosen.ids:
            raise ConfigurationError("completed items run again only if each is chosen")
        return chosen

    @property
    def status(self) -> Status:
        """The state of the items that are not chosen by their ids."""
        return Status.PENDING if self.verb is Verb.CANCEL else Status.FAILED

    @property
    def title(self) -> str:
        """What the action does, for a heading and the log."""
        if self.ids:
            what = f"item {safe_text(self.ids[0], limit=80)}" if len(self.ids) == 1 else f"{counted(len(self.ids), 'item')}"
        elif self.error is not None:
            what = f"the failed items with the cause {safe_text(self.error, limit=80)}"
        else:
            what = f"all {self.status.value} items"
        return f"{self.verb.value} {what} of {safe_text(self.batch, limit=80)}"

    def fields(self) -> list[tuple[str, str]]:
        """Return the fields of a form that describe the selection."""
        pairs = [("batch", self.batch), *(("ids", key) for key in self.ids)]
        if self.error is not None:
            pairs.append(("error", self.error))
        if self.is_all:
            pairs.append(("all", "1"))
        return pairs

    async def number_in(self, store: Inspection) -> int:
        """Return the number of items that are selected now."""
        if self.ids:
            return len(set(self.ids))
        return await store.count(self.batch, status=self.status, error=self.error)
