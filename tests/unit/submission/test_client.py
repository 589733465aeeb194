"""Clients submit items that other processes run, from async and from synchronous code."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest

from asyncrunner import (
    BatchNotFound,
    BlockingClient,
    Client,
    ConfigurationError,
    ItemFailed,
    ItemNotFound,
    ItemNotStorable,
    KeyConflict,
    Runner,
    Status,
    StoreClosed,
)
from tests.conftest import Until
from tests.support.state import execute, rows_of, totals


@dataclass
class Mail:
    to: str


class Service:
    """Return a runner with its handlers, as in a module of a program."""

    def __init__(self, db: str) -> None:
        self.runner = runner = Runner(db)

        @runner.handler(batch="mails")
        async def send(mail: Mail) -> Mail:
            return Mail(mail.to.upper())

        @runner.handler(batch="failing", max_attempts=1)
        async def fail(name: str) -> None:
            raise ValueError(name)

        self.send = send
        self.fail = fail


async def test_another_runner_runs_the_items_of_a_client_and_the_client_gets_the_result(db: str) -> None:
    service = Service(db)
    async with Client(db) as client, Service(db).runner:
        handle = await client.submit(service.send, Mail("you"))
        assert await handle.result(20) == Mail("YOU")
        again = await client.handle(service.send, handle.key)
        assert (again == handle, await again.status()) == (True, Status.COMPLETED)
        failing = await client.submit("failing", "it breaks")
        with pytest.raises(ItemFailed, match="ValueError: it breaks"):
            await failing.result(20)


async def test_a_client_without_any_runner_only_stores(db: str) -> None:
    service = Service(db)
    async with Client(db) as client:
        first = await client.submit(service.send, Mail("you"), key="k", priority=2)
        assert await client.submit(service.send, Mail("you"), key="k", priority=2) == first
        many = await client.submit_many(service.send, [Mail("a"), Mail("b")], delay=60)
        assert [await handle.status() for handle in (first, *many)] == [Status.PENDING] * 3
        assert await many[0].cancel()
        with pytest.raises(KeyConflict):
            await client.submit(service.send, Mail("other"), key="k")
        with pytest.raises(ItemNotStorable, match="takes Mail"):
            await client.submit(service.send, "no mail")  # type: ignore[misc]
        with pytest.raises(ConfigurationError, match="takes no key"):
            await client.submit_many(service.send, [], key="k")
    with pytest.raises(StoreClosed, match="is not open; use `async with client:`"):
        await client.submit(service.send, Mail("late"))
    assert rows_of(db, "SELECT status, count(*) FROM items GROUP BY status ORDER BY status") == [("cancelled", 1), ("pending", 2)]
    assert [total for _, total in totals(db)] == [3]


async def test_a_missing_batch_or_item_is_named_with_the_existing_ones(db: str) -> None:
    async with Service(db).runner:
        pass
    async with Client(db) as client:
        with pytest.raises(BatchNotFound, match=r"has no batch 'mail'; did you mean 'mails'\? A runner"):
            await client.submit("mail", 1)
        with pytest.raises(BatchNotFound, match="known: 'failing', 'mails'\\. A runner"):
            await client.submit("xyz", 1)
        with pytest.raises(ItemNotFound):
            await client.handle("mails", "missing")
        with pytest.raises(ConfigurationError, match="5 is not a target"):
            await client.submit(5, 1)  # type: ignore[call-overload]


def counted(number: int) -> int:
    return number + 1


async def test_a_function_names_its_batch(db: str) -> None:
    runner = Runner(db)
    runner.handler(counted)
    async with runner, Client(db) as client:
        assert await (await client.submit(counted, 4)).result(20) == 5


async def test_an_outcome_of_another_process_ends_the_wait(db: str) -> None:
    service = Service(db)
    async with Client(db) as client:
        handle = await client.submit(service.send, Mail("you"), key="k")
        waiting = asyncio.ensure_future(handle.result(20))
        await asyncio.sleep(0.05)
        execute(db, "UPDATE items SET status = 'completed', result = '{\"to\":\"ME\"}'")
        assert await waiting == Mail("ME")


def test_synchronous_code_submits_and_waits(db: str) -> None:
    service = Service(db)
    threads = threading.active_count()
    with BlockingClient(db) as client:
        handle = client.submit(service.send, Mail("you"), key="k")
        assert handle.status() is Status.PENDING
        assert (handle.key, handle.batch, handle == client.handle("mails", "k")) == ("k", "mails", True)
        assert len({handle, client.handle("mails", "k")}) == 1
        with pytest.raises(TimeoutError):
            handle.result(0.01)

        async def serve() -> None:
            async with Service(db).runner:
                await asyncio.to_thread(handle.result, 20)

        asyncio.run(serve())
        assert handle.result() == Mail("YOU")
        many = client.submit_many("mails", [{"to": "a"}, {"to": "b"}])
        assert [each.cancel() for each in many] == [True, True]
        assert "'k'" in repr(handle)
    assert threading.active_count() == threads
    with pytest.raises(ConfigurationError, match="was closed"):
        handle.status()
    assert client.handle("mails", "k").result() == {"to": "YOU"}  # a batch that is only named has no types
    client.close()
    client.close()


async def test_blocking_in_a_running_loop_is_refused(db: str) -> None:
    client = BlockingClient(db)
    with pytest.raises(ConfigurationError, match="an event loop runs in this thread"):
        client.submit("mails", 1)


def test_many_threads_share_one_blocking_client(db: str) -> None:
    service = Service(db)
    with BlockingClient(db) as client:
        threads = [threading.Thread(target=client.submit, args=(service.send, Mail(str(n)))) for n in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert rows_of(db, "SELECT count(*) FROM items") == [(20,)]


@pytest.mark.sqlite_file
def test_a_file_that_cannot_be_opened_is_an_error_each_time(tmp_path: Path) -> None:
    client = BlockingClient(tmp_path / "no" / "jobs.db")
    threads = threading.active_count()
    for _ in range(2):
        with pytest.raises(Exception, match="there is no folder"):
            client.submit("mails", 1)
    assert threading.active_count() == threads


FORKING = """
import os
from asyncrunner import BlockingClient, Runner, StoreError

runner = Runner("jobs.db")

@runner.handler(batch="b")
async def work(n: int) -> int:
    return n

def in_child(do) -> None:
    child = os.fork()
    if child == 0:
        try:
            do()
        except BaseException as error:
            print(repr(error), flush=True)
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0

def refused(do) -> None:
    try:
        do()
    except StoreError as error:
        assert "across a fork" in str(error), error
    else:
        raise AssertionError("the child was let in")

client = BlockingClient("jobs.db")  # made before the fork, not used: as a module does that a server loads first
in_child(lambda: client.submit(work, 1, key=1))
handle = client.submit(work, 2, key=2)

def a_child_of_a_parent_that_has_it_open() -> None:
    for _ in range(2):
        refused(lambda: client.submit(work, 3, key=3))
        refused(lambda: BlockingClient("jobs.db").submit(work, 3))
    try:
        handle.status()
    except Exception as error:
        assert "forked parent" in str(error), error
    else:
        raise AssertionError

in_child(a_child_of_a_parent_that_has_it_open)
client.submit(work, 4, key=4)
client.close()
in_child(lambda: client.submit(work, 5, key=5))  # closed before the fork: nothing is inherited
print(client.handle(work, 5).status())
# not closed: nothing keeps the program from exiting
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.sqlite_file
def test_a_forked_child_cannot_open_the_file_of_its_parent_and_no_item_is_lost(tmp_path: Path) -> None:
    (tmp_path / "forking.py").write_text(FORKING)
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "forking.py"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "pending\n", "")
    assert rows_of(tmp_path / "jobs.db", "SELECT id FROM items ORDER BY id") == [("1",), ("2",), ("4",), ("5",)]


async def test_closing_a_client_ends_each_wait_with_an_error(db: str, until: Until) -> None:
    client = Client(db)
    await client.open()
    handle = await client.submit(Service(db).send, Mail("x"))
    waiting = asyncio.ensure_future(handle.result())
    await until(lambda: client._submitter.results._waiting)
    await client.close()
    with pytest.raises(StoreClosed, match="is not open"):
        await waiting
