"""Errors of one cause have one fingerprint, errors of two causes have two: a collection of real errors."""

from __future__ import annotations

import asyncio
import decimal
import json
import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Awaitable, Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import httpx
import msgspec
import pydantic
import pytest
import requests

from asyncrunner.serialization.error_info import describe
from asyncrunner.serialization.fingerprint import fingerprint, without_variables

Provoke = Callable[[Any], Any]


async def provoked(handler: Provoke, item: Any) -> BaseException:
    """Return the error that *handler* raises for *item*."""
    try:
        result = handler(item)
        if isinstance(result, Awaitable):
            await result
    except BaseException as error:
        return error
    raise AssertionError(f"{handler} raised nothing for {item!r}")


def free_port() -> int:
    """Return a port on which no process listens."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


# --- handlers that fail ---------------------------------------------------------------------------------------------


async def httpx_get(url: str) -> None:
    async with httpx.AsyncClient(trust_env=False, timeout=5) as client:
        await client.get(url)


async def httpx_get_elsewhere(url: str) -> None:
    async with httpx.AsyncClient(trust_env=False, timeout=5) as client:
        await client.get(url)


def answer(request: httpx.Request) -> httpx.Response:
    return httpx.Response(int(request.url.params["status"]), text="no")


async def httpx_status(item: tuple[str, int]) -> None:
    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client:
        (await client.get(f"https://{item[0]}", params={"status": item[1]})).raise_for_status()


def slow(request: httpx.Request) -> httpx.Response:
    raise httpx.ReadTimeout("timed out", request=request)


async def httpx_timeout(url: str) -> None:
    async with httpx.AsyncClient(transport=httpx.MockTransport(slow)) as client:
        await client.get(url)


async def aiohttp_get(url: str) -> None:
    async with aiohttp.ClientSession() as session:
        await session.get(url)


async def aiohttp_status(item: tuple[str, int]) -> None:
    from aiohttp import web
    from aiohttp.test_utils import TestServer

    app = web.Application()

    async def say(request: web.Request) -> web.Response:
        return web.Response(status=item[1])

    app.router.add_get("/{tail:.*}", say)
    async with TestServer(app) as server, aiohttp.ClientSession() as session:
        (await session.get(server.make_url(f"/{item[0]}"))).raise_for_status()


def requests_get(url: str) -> None:
    session = requests.Session()
    session.trust_env = False
    session.get(url, timeout=5)


def no_such_host(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **options: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)


def load_json(text: str) -> None:
    json.loads(text)


def decode_msgspec(text: str) -> None:
    msgspec.json.decode(text, type=list[int])


class Order(pydantic.BaseModel):
    number: int


def validate(value: Any) -> None:
    Order(number=value)


def open_file(path: str) -> None:
    Path(path).read_text()


def missing_key(key: Any) -> None:
    {}[key]


def missing_key_twice(which: int) -> None:
    found: dict[str, int] = {}
    if which:
        found["a"]
    else:
        found["a"]


def missing_index(n: int) -> None:
    [][n]


def missing_attribute(name: str) -> None:
    getattr(None, name)


def as_int(text: str) -> None:
    int(text)


def as_date(text: str) -> None:
    datetime.fromisoformat(text)


def as_decimal(text: str) -> None:
    decimal.Decimal(text)


def as_uuid(text: str) -> None:
    uuid.UUID(text)


def decode_utf8(data: bytes) -> None:
    data.decode("utf-8")


def exits(code: int) -> None:
    subprocess.run([sys.executable, "-c", f"raise SystemExit({code})"], check=True)


def os_error(number: int) -> None:
    raise OSError(number, os.strerror(number), f"/data/{number}")


def unique(item: tuple[str, str]) -> None:
    raise asyncpg.UniqueViolationError.new(
        {
            "S": "ERROR", "V": "ERROR", "C": "23505", "n": item[0],
            "M": f'duplicate key value violates unique constraint "{item[0]}"',
            "D": f"Key (email)=({item[1]}) already exists.",
        }
    )  # fmt: skip


def sql(message: str) -> None:
    raise asyncpg.PostgresSyntaxError(message)


def deadlock(process: int) -> None:
    raise asyncpg.DeadlockDetectedError(f"deadlock detected\nDETAIL: Process {process} waits for ShareLock on {process + 7}")


def says(message: str) -> None:
    raise RuntimeError(message)


def says_as_value_error(message: str) -> None:
    raise ValueError(message)


def wraps(cause: Provoke) -> Provoke:
    def handler(item: Any) -> None:
        try:
            cause(item)
        except Exception as error:
            raise RuntimeError("the item could not be booked") from error

    return handler


def wraps_implicitly(cause: Provoke) -> Provoke:
    def handler(item: Any) -> None:
        try:
            cause(item)
        except Exception:
            raise RuntimeError("the item could not be booked")  # noqa: B904

    return handler


async def in_group(items: list[tuple[Provoke, Any]]) -> None:
    async def child(provoke: Provoke, item: Any) -> None:
        provoke(item)

    async with asyncio.TaskGroup() as group:
        for provoke, item in items:
            group.create_task(child(provoke, item))


async def times_out(seconds: float) -> None:
    async with asyncio.timeout(seconds):
        await asyncio.Event().wait()


async def resets(port: int) -> None:
    """Run a server that closes the connection in the middle of its answer."""

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.transport.abort()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    async with server:
        await httpx_get(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/{port}")


# --- pairs that are one cause ---------------------------------------------------------------------------------------

TOGETHER: dict[str, tuple[Provoke, Any, Any]] = {
    "httpx, a status": (httpx_status, ("a.example/1?x=1", 503), ("b.example/other/2", 503)),
    "httpx, a timeout": (httpx_timeout, "https://a.example/1", "https://b.example/2?c=3"),
    "httpx, a scheme": (httpx_get, "ftp://a.example/1", "ftp://b.example/2"),
    "httpx, hung up": (resets, 1, 2),
    "aiohttp, a status": (aiohttp_status, ("a/1", 500), ("b/c", 500)),
    "aiohttp, no URL": (aiohttp_get, "http://a:b:1/x", "http://long.example:c:2/y"),
    "json, positions": (load_json, '{"a": }', '{"a": 1, "bcd": }'),
    "json, delimiters": (load_json, "[1 2]", "[1, 2 3]"),
    "msgspec, places": (decode_msgspec, '[1, "a"]', '[1, 2, 3, "a"]'),
    "pydantic": (validate, "abc", "a much longer text"),
    "no file": (open_file, "/nowhere/a.txt", "/not/here/2026-11-23/b c.csv"),
    "a folder": (open_file, "/", "/tmp"),
    "KeyError": (missing_key, "a", "it's b"),
    "KeyError of numbers": (missing_key, 17, 4_000_000),
    "KeyError of tuples": (missing_key, ("a", 1), ("b", 2)),
    "IndexError": (missing_index, 3, 4),
    "int()": (as_int, "abc", "12,5 €"),
    "a date": (as_date, "2026-13-01", "2026-99-02"),
    "Decimal": (as_decimal, "x", "1.2.3"),
    "UUID": (as_uuid, "x", "1b4e28ba"),
    "UTF-8": (decode_utf8, b"a\xff", b"abcdef\xfe"),
    "an exit status": (exits, 3, 3),
    "asyncpg, unique": (unique, ("users_pkey", "ann@example.com"), ("users_pkey", "Bob Smith, Jr.")),
    "asyncpg, deadlock": (deadlock, 12, 99_113),
    "a raise from": (wraps(missing_key), "a", "b"),
    "a raise while handling": (wraps_implicitly(load_json), "[", '{"a": '),
    "a group": (in_group, [(missing_key, "a"), (as_int, "b")], [(missing_key, "c"), (as_int, "d"), (as_int, "e")]),
    "TimeoutError": (times_out, 0, 0.001),
}


@pytest.mark.parametrize("name", TOGETHER)
async def test_details_that_differ_between_items_do_not_split_a_cause(name: str) -> None:
    handler, one, other = TOGETHER[name]
    first, second = await provoked(handler, one), await provoked(handler, other)
    assert fingerprint(first) == fingerprint(second), (str(first), str(second))


@pytest.mark.parametrize("get", [httpx_get, aiohttp_get, requests_get])
async def test_refused_connections_are_one_cause_and_unknown_names_another(get: Provoke, monkeypatch: pytest.MonkeyPatch) -> None:
    async def mark(url: str) -> str:
        return fingerprint(await provoked(get, url))

    refused = await mark(f"http://127.0.0.1:{free_port()}/a")
    assert await mark(f"http://127.0.0.1:{free_port()}/b/c?d=e") == refused
    no_such_host(monkeypatch)
    unknown = await mark("http://no-such-host.example/1")
    assert await mark("http://another.invalid:8080/2") == unknown
    assert unknown != refused


# --- pairs that are two ---------------------------------------------------------------------------------------------

APART: dict[str, tuple[tuple[Provoke, Any], tuple[Provoke, Any]]] = {
    "httpx, statuses": ((httpx_status, ("a.example", 404)), (httpx_status, ("a.example", 503))),
    "aiohttp, statuses": ((aiohttp_status, ("a", 404)), (aiohttp_status, ("a", 503))),
    "statuses in words": ((says, "the server said status 404"), (says, "the server said status 503")),
    "statuses after HTTP": ((says, "HTTP 429 for item 7"), (says, "HTTP 500 for item 7")),
    "exit statuses": ((exits, 1), (exits, 2)),
    "types": ((says, "no"), (says_as_value_error, "no")),
    "messages": ((says, "the bank is closed"), (says, "the account is empty")),
    "places in one function": ((missing_key_twice, 0), (missing_key_twice, 1)),
    "functions": ((httpx_get, "ftp://a.example"), (httpx_get_elsewhere, "ftp://a.example")),
    "errnos": ((os_error, 28), (os_error, 5)),
    "no file and a folder": ((open_file, "/nowhere"), (open_file, "/")),
    "JSON, what was expected": ((load_json, "[1 2]"), (load_json, '{"a" 1}')),
    "attributes": ((missing_attribute, "text"), (missing_attribute, "status")),
    "constraints": ((unique, ("users_pkey", "a@b.c")), (unique, ("users_email", "a@b.c"))),
    "asyncpg, types": ((deadlock, 1), (sql, "deadlock detected")),
    "causes of one error": ((wraps(missing_key), "a"), (wraps(as_int), "a")),
    "implicit causes": ((wraps_implicitly(missing_key), "a"), (wraps_implicitly(as_int), "a")),
    "with and without a cause": ((wraps(says), "x"), (says, "the item could not be booked")),
    "parts of a group": ((in_group, [(missing_key, "a")]), (in_group, [(missing_key, "a"), (as_int, "b")])),
    "pydantic": ((validate, "abc"), (validate, None)),
    "a timeout and a refusal": ((httpx_timeout, "http://a.example"), (httpx_get, "http://127.0.0.1:1")),
}


@pytest.mark.parametrize("name", APART)
async def test_an_error_of_another_cause_has_another_fingerprint(name: str) -> None:
    (handler, item), (other_handler, other_item) = APART[name]
    first, second = await provoked(handler, item), await provoked(other_handler, other_item)
    assert fingerprint(first) != fingerprint(second), (str(first), str(second))


# --- messages that people write -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        (["no user 17", "no user u4711", "no user 1b4e28ba-2fa1-11d2-883f-b9a761bde3fb", "no user a@b.example"], "no user *"),
        (["GET https://a.example/x?y=1 failed", "GET http://[::1]:80/ failed"], "GET * failed"),
        (["cannot reach 10.0.0.7:443", "cannot reach db-1.internal:5432", "cannot reach localhost:80", "cannot reach ::1"],
         "cannot reach *"),
        (["cannot read /data/2026/a.csv", "cannot read ./b.csv", "cannot read in/c/d.csv", r"cannot read C:\x\y.csv"],
         "cannot read *"),
        (["took 1.5s at 0x7f3a", "took 1,204.75s at 0xdeadbeef"], "took * at *"),
        (["bad values 1, 2, 3", "bad values 4"], "bad values *"),
        (["order 'a' is 'b c'", "order 'x' is \"it's\""], "order * is *"),
        (["isn't there: don't ask"], "isn't there: don't ask"),
        (["unexpected mimetype: text/html"], "unexpected mimetype: text/html"),
        (["[Errno -2] Name or service not known"], "[Errno -2] Name or service not known"),
        (["status code: 503, attempt 3"], "status code: 503, attempt *"),
        (["code 123456"], "code *"),
    ],
)  # fmt: skip
def test_the_normalized_form_of_a_message(messages: list[str], expected: str) -> None:
    assert {without_variables(message) for message in messages} == {expected}


# --- what else must hold --------------------------------------------------------------------------------------------


def test_an_edit_elsewhere_in_the_file_does_not_move_a_cause(tmp_path: Path) -> None:
    source = "def handler(item):\n    raise ValueError(item)\n"
    marks = set()
    for before in ("", "import os\n\n\nX = 1\n"):
        scope: dict[str, Any] = {"__name__": "shop.handlers"}
        exec(compile(before + source, str(tmp_path / "h.py"), "exec"), scope)
        try:
            scope["handler"]("no")
        except ValueError as error:
            marks.add(fingerprint(error))
    assert len(marks) == 1


def test_a_broken_error_and_a_circle_of_causes_have_a_fingerprint() -> None:
    class Broken(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

        @property
        def status(self) -> int:
            raise RuntimeError("no")

    one, other = Broken(), ValueError("x")
    one.__cause__, other.__cause__ = other, one
    assert len(fingerprint(one)) == 16


def test_the_stored_form_carries_it() -> None:
    error = ValueError("x")
    assert describe(error).fingerprint == fingerprint(error)


@pytest.mark.parametrize(
    "part", ["a", "/", "a/", "1", "1.", "a.", ":", "::", "@", "a@", "'", "=(", "http://", "-1,", "0:", "status "]
)
def test_a_repetitive_message_is_read_without_delay(part: str) -> None:
    began = time.thread_time()
    without_variables(part * 100_000)
    assert time.thread_time() - began < 0.5
