"""Assemble the dashboard: an ASGI application that any framework can mount, and that opens nothing before its first request."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Awaitable, Callable, Collection
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.responses import HTMLResponse, Response, StreamingResponse
from starlette.routing import Route

from asyncrunner.backends import MEMORY, full_location, open_inspection, shown_location
from asyncrunner.dashboard import api
from asyncrunner.dashboard.access import Access, Allow, Token, Visitor
from asyncrunner.dashboard.actions import controls, pages
from asyncrunner.dashboard.actions.call import Call, notice_of
from asyncrunner.dashboard.actions.jobs import Jobs
from asyncrunner.dashboard.actions.selection import Verb
from asyncrunner.dashboard.door import BODY, STORES, VISITOR, App, Door, DoorOptions
from asyncrunner.dashboard.fields import Fields
from asyncrunner.dashboard.live import Live
from asyncrunner.dashboard.reads import Reads
from asyncrunner.dashboard.rendering import assets, link, now_text, prepare, render
from asyncrunner.dashboard.views.batch import batch
from asyncrunner.dashboard.views.causes import causes
from asyncrunner.dashboard.views.file import file
from asyncrunner.dashboard.views.item import item
from asyncrunner.dashboard.views.items import items
from asyncrunner.dashboard.views.overview import overview
from asyncrunner.dashboard.views.view import View, ViewFunction
from asyncrunner.dashboard.views.workers import workers
from asyncrunner.domain import DEFAULT_DB
from asyncrunner.errors import AsyncRunnerError, BatchNotFound, ConfigurationError, ItemNotFound, StoreError
from asyncrunner.text.escaping import safe_text
from asyncrunner.text.validation import checked_flag, checked_ids, checked_path, checked_text

if TYPE_CHECKING:
    from starlette.requests import Request

log = logging.getLogger("asyncrunner.dashboard")

TOKEN_VARIABLE: Final = "ASYNCRUNNER_DASHBOARD_TOKEN"  # noqa: S105 - its name
_VIEWS: Final[dict[str, ViewFunction]] = {
    "": overview,
    "batch": batch,
    "items": items,
    "item": item,
    "causes": causes,
    "workers": workers,
    "file": file,
}
_LIVE: Final = frozenset({"", "batch", "causes", "item", "workers", "job"})
"""The pages that change while they are open; people type into the others."""

_OFFERS: Final = frozenset({"confirm", "confirm_purge", "confirm_stop"})
"""The pages that only offer an action; who may only read has no use for them."""

_ACTIONS: Final[dict[str, Callable[[Call], Awaitable[Response]]]] = {
    "pause": controls.pause,
    "resume": controls.resume,
    "concurrency": controls.concurrency,
    "stop": controls.stop,
    "recover": controls.recover,
    "purge": controls.purge_items,
    "diagnose": controls.diagnose,
    "backup": controls.backup,
    "abort": controls.abort,
    **{verb.value: partial(controls.change_items, verb=verb) for verb in Verb},
}
_FOREVER: Final = {"cache-control": "public, max-age=31536000, immutable"}


class Dashboard(Door):
    """The ASGI application that ``dashboard()`` returns. ``token``: the secret of its link, None with ``allow``."""

    def __init__(self, app: App, options: DoorOptions, pages: Pages, token: str | None) -> None:
        super().__init__(app, options)
        self._pages = pages
        self.token = token

    @property
    def watchers(self) -> int:
        """The number of open streams, one for each page that is shown and kept up to date."""
        return self._pages.live.watchers

    def close_streams(self) -> None:
        """End the streams of open pages soon, so that a server can stop; the browsers try to reach it again."""
        self._pages.live.close()

    async def close(self) -> None:
        """Close the connection to the store now, and not after a minute without a request."""
        await self._pages.reads.close()


def dashboard(
    db: str | os.PathLike[str] = DEFAULT_DB,
    *,
    token: str | None = None,
    allow: Allow | None = None,
    hosts: Collection[str] | None = None,
    read_only: bool = False,
    label: str | None = None,
    user_header: str | None = None,
) -> Dashboard:
    """Return the dashboard of a file or a server as an ASGI application: ``app.mount("/jobs", dashboard("jobs.db"))``.

    It works in every ASGI framework, under any prefix; nothing has to be started or closed. The store is opened by the first
    request and closed after a minute without one. It is never created.

    Who may enter: ``allow`` is a function of the ASGI scope of a request, such as one that looks at ``scope["user"]`` or
    ``scope["session"]``, that returns an ``Access``, or an ``Access`` and the user's name for the log of actions, or a
    coroutine of these. Without it, a browser needs a link with the ``token``, by default that of the environment variable
    ASYNCRUNNER_DASHBOARD_TOKEN, or else a random one, which is logged as a warning.

    ``hosts``: the names of hosts under which the dashboard is reached, such as ``["jobs.example.com"]``; those of the
    machine itself are always known. A request for another name is refused, because a page of another site may have sent it.
    With ``allow``, None means any. ``read_only``: no action exists. ``label``: a word for the head of each page, such as
    "production". ``user_header``: the name of the header in which a proxy sends the user's name, for the log of actions.

    Raises ConfigurationError for an invalid argument.
    """
    location = checked_path("db", db)
    if location == MEMORY:
        raise ConfigurationError("a store in memory cannot be shown: only the program that made it can read it; give a file")
    if allow is not None and token is not None:
        raise ConfigurationError("give either allow or token")
    for name, text in (("token", token), ("label", label), ("user_header", user_header)):
        if text is not None and not checked_text(name, text).strip():
            raise ConfigurationError(f"{name} is empty")
    names = None if hosts is None else [_host(host) for host in checked_ids("hosts", hosts)]
    secret = None if allow is not None else _secret(token, location)
    options = DoorOptions(
        None if secret is None else Token(secret), allow, names if names is not None or allow is not None else (), user_header
    )
    prepare()
    open_inspection(full_location(location))  # imports what the first request would wait for, and refuses a wrong URL now
    shown_pages = Pages(location, label, read_only=checked_flag("read_only", read_only))
    app = Starlette(routes=shown_pages.routes())
    app.router.redirect_slashes = False  # it redirects to absolute addresses, which are wrong behind a proxy
    return Dashboard(app, options, shown_pages, secret)


def _host(name: str) -> str:
    if not name or not all(character.isalnum() or character in "-._:[]" for character in name):
        raise ConfigurationError(
            f"the host {safe_text(repr(name), limit=100)}: give the name of a host, as in 'jobs.example.com', or with a port"
        )
    return name.lower()


def _secret(given: str | None, location: str) -> str:
    token = given or os.environ.get(TOKEN_VARIABLE)
    if token is not None:
        if not token.isascii() or not all(character.isalnum() or character in "-._~" for character in token) or len(token) < 16:
            raise ConfigurationError("a token has at least 16 letters, digits and -._~; without one, a random token is made")
        return token
    token = random_token()
    log.warning(
        "the dashboard of %s has neither token nor allow: until this process ends, add ?token=%s to the address",
        shown_location(location), token,
    )  # fmt: skip
    return token


def random_token() -> str:
    """Return a token that cannot be guessed."""
    return secrets.token_urlsafe(24)


class Pages:
    """The routes of a dashboard, and what they share."""

    def __init__(self, db: str, label: str | None, *, read_only: bool) -> None:
        self._shown_db = shown_location(db)
        self._db = full_location(db)
        self._label = label
        self._is_read_only = read_only
        self.reads = Reads(self._db)
        self.live = Live()
        self._jobs = Jobs()

    def routes(self) -> list[Route]:
        """Return the routes. In read-only mode those of the actions do not exist."""
        views: dict[str, ViewFunction] = dict(_VIEWS)
        if not self._is_read_only:
            views |= {
                "confirm": pages.confirm,
                "confirm_purge": pages.confirm_purge,
                "confirm_stop": pages.confirm_stop,
                "job": self._job,
            }
        found = [Route(f"/{name}", partial(self._page, name=name, view=view), methods=["GET"]) for name, view in views.items()]
        found += [Route(path, partial(self._answer, answer=answer), methods=["GET"]) for path, answer in api.ANSWERS.items()]
        found += [Route("/live", partial(self._stream, views=views)), Route("/static/{name}", _static)]
        if not self._is_read_only:
            found += [Route(f"/{name}", partial(self._act, act=act), methods=["POST"]) for name, act in _ACTIONS.items()]
            found.append(Route("/confirm", partial(self._page, name="confirm", view=pages.confirm), methods=["POST"]))
        return found

    async def _job(self, _reads: Reads, fields: Fields) -> View:
        return await pages.job(self._jobs, fields)

    async def _page(self, request: Request, *, name: str, view: ViewFunction) -> Response:
        if name in _OFFERS and request.scope[VISITOR].access < Access.ACT:
            return self._message(request, "you may only read here; nothing was changed", 403)
        try:
            fields = _fields(request)
            shown = await view(self.reads, fields)
            notice = notice_of(fields)
        except AsyncRunnerError as error:
            return self._problem(request, error)
        values = self._values(request, name, shown) | {"notice": notice}
        return HTMLResponse(render(f"{shown.template}.html", values))

    def _values(self, request: Request, name: str, view: View) -> dict[str, Any]:
        visitor: Visitor = request.scope[VISITOR]
        query = quote(request.scope["query_string"], safe="%&=+")
        return {
            "db": self._shown_db,
            "label": self._label,
            "has_list": STORES in request.scope,
            "page_name": name or "overview",
            "title": view.title,
            "now": view.now,
            "can_act": visitor.access is Access.ACT and not self._is_read_only,
            "live": link("live", of=name or "overview") + (f"&{query}" if query else "") if name in _LIVE else None,
            **view.values,
        }

    def _problem(self, request: Request, error: AsyncRunnerError) -> Response:
        """Answer with a page that has the message of *error*."""
        return self._message(request, safe_text(error, limit=2_000), _status_of(error))

    def _message(self, request: Request, message: str, status: int) -> Response:
        """Answer with a page that says why there is no other."""
        view = View(
            "problem", "problem", now_text(), {"message": message, "status_code": status, "batch_name": _batch_of(request)}
        )
        return HTMLResponse(render("problem.html", self._values(request, "problem", view) | {"notice": None}), status)

    async def _answer(self, request: Request, *, answer: api.Answer) -> Response:
        try:
            return await answer(self.reads, _fields(request))
        except AsyncRunnerError as error:
            response = api.json_response({"error": str(error)})
            response.status_code = _status_of(error)
            return response

    async def _stream(self, request: Request, *, views: dict[str, ViewFunction]) -> Response:
        """Answer with the changing part of a page, once a second."""
        try:
            fields = _fields(request)
            name = fields.choice("of", sorted(each or "overview" for each in _LIVE if each in views), "overview")
        except ConfigurationError as error:
            return self._problem(request, error)
        page = "" if name == "overview" else name
        view = views[page]

        async def fragment() -> tuple[str, str]:
            shown = await view(self.reads, fields)
            return safe_text(shown.title, limit=100), render(f"live/{shown.template}.html", self._values(request, page, shown))

        visitor: Visitor = request.scope[VISITOR]
        key = f"{visitor.access} {request.scope['query_string']!r}"
        return StreamingResponse(
            self.live.stream(key, fragment), media_type="text/event-stream", headers={"x-accel-buffering": "no"}
        )

    async def _act(self, request: Request, *, act: Callable[[Call], Awaitable[Response]]) -> Response:
        try:
            fields = Fields(request.scope[BODY])
            return await act(Call(self._db, fields, request.scope[VISITOR], self._jobs, self.reads))
        except AsyncRunnerError as error:
            return self._problem(request, error)


def _status_of(error: AsyncRunnerError) -> int:
    return 404 if isinstance(error, BatchNotFound | ItemNotFound) else 503 if isinstance(error, StoreError) else 400


def _batch_of(request: Request) -> str | None:
    """Return the batch that a request names, if it can be read, for a way back from the page of a problem."""
    try:
        return _fields(request).text("batch")
    except ConfigurationError:
        return None


def _fields(request: Request) -> Fields:
    """Return the fields of the form, or of the address."""
    return Fields(request.scope[BODY] if request.method == "POST" else request.scope["query_string"])


async def _static(request: Request) -> Response:
    """Answer with an asset; its name has a hash of its content, so browsers may keep it forever."""
    for asset in assets().values():
        if asset.name == request.path_params["name"]:
            return Response(asset.content, media_type=asset.media_type, headers=_FOREVER)
    return Response("404: there is no such file.\n", 404, media_type="text/plain")
