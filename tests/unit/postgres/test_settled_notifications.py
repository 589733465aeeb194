"""Among many workers a store notifies less often that items have ended; of new items it notifies as soon as ever."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from asyncrunner.postgres import sql
from asyncrunner.postgres.connection.address import parse_address
from asyncrunner.postgres.listener import Listener


class RecordingSession:
    """A session without a server, which records the payloads of notifications."""

    def __init__(self, peers: int) -> None:
        self._peers = peers
        self.sent: asyncio.Queue[str] = asyncio.Queue()

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def fetch(self, statement: str, *arguments: Any) -> list[Any]:
        if statement == sql.workers.PEERS:
            return [(f"w{number}", "1", "h", 1, True) for number in range(self._peers)]
        for payload in arguments[1]:
            self.sent.put_nowait(payload)
        return []


async def listener_among(peers: int) -> tuple[Listener, RecordingSession]:
    listener = Listener(parse_address("postgresql://h/d"), lambda: None)
    session = RecordingSession(peers)
    listener.session = session  # type: ignore[assignment]
    await listener.open()
    await listener.peers("me")
    return listener, session


async def test_among_many_workers_settlements_wait_and_new_items_do_not() -> None:
    listener, session = await listener_among(100)
    listener.notify_settled(1)
    assert await session.sent.get() == "1"
    began = asyncio.get_running_loop().time()
    listener.notify_settled(1)
    listener.notify_settled(1)
    listener.notify(2)
    assert await session.sent.get() == "2"
    assert await session.sent.get() == "1"
    assert asyncio.get_running_loop().time() - began > 0.9
    listener.notify_settled(3)
    await listener.close()
    assert session.sent.empty()


@pytest.mark.parametrize("peers", [0, 7])
async def test_among_few_workers_settlements_do_not_wait(peers: int) -> None:
    listener, session = await listener_among(peers)
    for _ in range(3):
        began = asyncio.get_running_loop().time()
        listener.notify_settled(1)
        assert await session.sent.get() == "1"
        assert asyncio.get_running_loop().time() - began < 0.5
    await listener.close()
