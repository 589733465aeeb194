"""Answers for programs: the documents of ``asyncrunner COMMAND --json``, two probes, metrics, and whole values of an item."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias

from starlette.responses import PlainTextResponse, Response

from asyncrunner.admin.read_models import Problem
from asyncrunner.dashboard.fields import Fields
from asyncrunner.dashboard.reads import Reads
from asyncrunner.dashboard.views.charts import DEFAULT_SPAN, SPANS
from asyncrunner.dashboard.views.items import PAGE_SIZE
from asyncrunner.errors import ConfigurationError, ItemNotFound
from asyncrunner.prometheus import metrics_text
from asyncrunner.text.escaping import json_text, safe_text

_MAX_ITEMS: Final = 1_000
_RAW: Final = ("payload", "result", "checkpoint")

Answer: TypeAlias = Callable[[Reads, Fields], Awaitable[Response]]


def json_response(document: Any) -> Response:
    """Return a JSON document as a response, with control characters escaped."""
    return Response(json_text(document), media_type="application/json")


async def status(reads: Reads, fields: Fields) -> Response:
    """Answer as ``asyncrunner status --json``."""
    batch = fields.text("batch")
    return json_response(await reads.status() if batch is None else await reads.read(lambda store: store.status(batch)))


async def check(reads: Reads, fields: Fields) -> Response:
    """Answer as ``asyncrunner check --json``."""
    del fields
    problems = await reads.check()
    return json_response({"ok": not problems, "problems": problems})


async def failures(reads: Reads, fields: Fields) -> Response:
    """Answer as ``asyncrunner failures --json``."""
    causes = await reads.failures(fields.text("batch"))
    return json_response(causes.to_dict())


async def workers(reads: Reads, fields: Fields) -> Response:
    """Answer as ``asyncrunner workers --json``."""
    batch = fields.text("batch")
    return json_response({"workers": await reads.read(lambda store: store.workers(batch))})


async def stuck(reads: Reads, fields: Fields) -> Response:
    """Answer as ``asyncrunner stuck --json``."""
    batch, older_than = fields.text("batch"), fields.text("older_than") or "5m"
    return json_response({"stuck": await reads.read(lambda store: store.stuck(batch, older_than=older_than))})


async def items(reads: Reads, fields: Fields) -> Response:
    """Answer as ``asyncrunner list --json``."""
    limit = fields.number("limit") or PAGE_SIZE
    if limit > _MAX_ITEMS:
        raise ConfigurationError(f"limit={limit}: give at most {_MAX_ITEMS:,}; `asyncrunner export` has all items")
    page = await reads.read(
        lambda store: store.items(
            fields.text("batch"),
            status=fields.text("status"),
            error=fields.text("error"),
            older_than=fields.text("older_than"),
            contains=fields.text("contains"),
            newest=fields.flag("newest"),
            limit=limit,
            after=fields.text("after"),
        )
    )
    return json_response(page)


async def item(reads: Reads, fields: Fields) -> Response:
    """Answer as ``asyncrunner show --json``."""
    key, batch = fields.required("id"), fields.text("batch")
    return json_response(await reads.read(lambda store: store.show(key, batch)))


async def history(reads: Reads, fields: Fields) -> Response:
    """Answer with ``Control.history()`` for a span of the charts."""
    span = SPANS[fields.choice("span", list(SPANS), DEFAULT_SPAN)]
    return json_response(await reads.history(fields.required("batch"), span.minutes, span.step))


async def raw(reads: Reads, fields: Fields) -> Response:
    """Answer with a whole value of an item, the JSON text as it is stored, as a download."""
    key, batch = fields.required("id"), fields.required("batch")
    name = fields.choice("value", _RAW, _RAW[0])
    record = await reads.read(lambda store: anext(store.export(batch, ids=[key]), None))
    text = None if record is None else getattr(record, name)  # None: it was deleted meanwhile
    if text is None:
        raise ItemNotFound(f"item {safe_text(key, limit=80)!r} has no {name}")
    headers = {"content-disposition": f'attachment; filename="{name}.json"'}
    return Response(text, media_type="application/json", headers=headers)


async def healthz(reads: Reads, fields: Fields) -> Response:
    """Answer 200 if the dashboard can read the store."""
    del fields
    await reads.status()
    return PlainTextResponse("ok\n")


async def readyz(reads: Reads, fields: Fields) -> Response:
    """Answer 200 if an item that is added now would start, else 503 with the reasons; see ``asyncrunner check --probe``."""
    batch = fields.text("batch")
    problems = await reads.read(lambda store: store.check(batch, probe="readiness"))
    return PlainTextResponse("".join(_problem_line(each) for each in problems) or "ok\n", 503 if problems else 200)


def _problem_line(problem: Problem) -> str:
    where = "" if problem.batch is None else f"{safe_text(problem.batch)}: "
    return f"{where}{safe_text(problem.message, limit=500)}\n"


async def metrics(reads: Reads, fields: Fields) -> Response:
    """Answer as ``asyncrunner metrics``, in Prometheus' text format."""
    return PlainTextResponse(metrics_text(await reads.status(fields.text("batch"))))


ANSWERS: Final[dict[str, Answer]] = {
    "/healthz": healthz,
    "/readyz": readyz,
    "/metrics": metrics,
    "/raw": raw,
    "/api/status.json": status,
    "/api/check.json": check,
    "/api/failures.json": failures,
    "/api/workers.json": workers,
    "/api/stuck.json": stuck,
    "/api/items.json": items,
    "/api/item.json": item,
    "/api/history.json": history,
}
"""The functions that answer programs, by path."""
