"""One action of a visitor: its fields, who sends it, and where the browser goes afterwards."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from starlette.responses import RedirectResponse, Response

from asyncrunner.dashboard.access import Visitor
from asyncrunner.dashboard.actions.jobs import Job, Jobs
from asyncrunner.dashboard.fields import Fields
from asyncrunner.dashboard.reads import Reads
from asyncrunner.dashboard.rendering import link
from asyncrunner.dashboard.views.items import kept_filter
from asyncrunner.text.escaping import counted, safe_text

log = logging.getLogger("asyncrunner.dashboard")

PAGES: Final = {"overview": "", "batch": "batch", "items": "items", "item": "item", "causes": "causes", "workers": "workers",
    "file": "file"}  # fmt: skip
"""The names of the pages in links and forms, with their addresses."""

_NOTICES: Final[Mapping[str, str]] = {
    "pause": "The batch is paused: running handlers finish, and no more items start.",
    "resume": "The batch is resumed.",
    "concurrency": "The concurrency is set; workers apply it within a second.",
    "stop": "The workers are asked to stop: running handlers finish.",
    "stop-now": "The workers are asked to stop now: running handlers are cancelled.",
    "changed": "{items} changed{left}.",
    "recovered": "{items} recovered.",
}


def notice_of(fields: Fields) -> str | None:
    """Return what the action did that led to this page, or None. The text is ours; only its numbers are in the address."""
    template = _NOTICES.get(fields.text("did") or "")
    if template is None:
        return None
    left = fields.number("left")
    return template.format(
        items=counted(fields.number("done") or 0, "item"), left=f", {left:,} were not to be changed" if left else ""
    )


@dataclass(frozen=True)
class Call:
    """An action of a visitor. ``reads`` looks at the store again after it."""

    db: str
    fields: Fields
    visitor: Visitor
    jobs: Jobs
    reads: Reads

    def __post_init__(self) -> None:
        """Check the page to return to, before anything is changed. Raises ConfigurationError."""
        self._page()

    def _page(self) -> str:
        default = "batch" if self.fields.text("batch") else "overview"
        return PAGES[self.fields.choice("page", list(PAGES), default)]

    def log(self, what: str, outcome: str = "done") -> None:
        """Log what the visitor did."""
        log.info("%s, by %s: %s", safe_text(what, limit=500), self.visitor.name, safe_text(outcome, limit=500))

    def back(self, did: str, *, done: int | None = None, left: int | None = None) -> Response:
        """Send the browser to the page that had the button, which shows what was done."""
        self.reads.forget()
        page = self._page()
        keys = self.fields.texts("ids")
        where = {"batch": self.fields.text("batch"), "id": keys[0] if keys and page == "item" else None}
        if page == "items":
            where |= kept_filter(self.fields)
        return RedirectResponse(link(page, **where, did=did, done=done, left=left), 303)

    def to_job(self, job: Job) -> Response:
        """Send the browser to the page of a job."""
        self.reads.forget()
        return RedirectResponse(link("job", job=job.number), 303)
