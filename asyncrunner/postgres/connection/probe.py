"""Find out whether a store exists, from a program that does not await."""

from __future__ import annotations

import asyncio
import threading

from asyncrunner.errors import AsyncRunnerError, StoreNotFound
from asyncrunner.postgres.connection.address import parse_address
from asyncrunner.postgres.connection.schema import check_exists
from asyncrunner.postgres.connection.session import Session


def schema_exists(location: str) -> bool:
    """Return whether the schema at *location* exists; True if the server cannot be asked, whose error is that of the opening."""
    answers: list[bool] = []

    def ask() -> None:
        answers.append(asyncio.run(_schema_exists(location)))

    thread = threading.Thread(target=ask, name="asyncrunner-probe")  # the caller may have a running event loop
    thread.start()
    thread.join()
    return all(answers)


async def _schema_exists(location: str) -> bool:
    try:
        address = parse_address(location)
        session = Session(address, read_only=True)
        await session.open()
        try:
            await session.call(lambda connection: check_exists(connection, address))
        finally:
            await session.close()
    except StoreNotFound:
        return False
    except AsyncRunnerError:
        return True
    return True
