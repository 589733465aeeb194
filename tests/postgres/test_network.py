"""The machines of the tests: their processes reach a server, and a cable that is pulled ends no connection visibly."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

import psycopg
import pytest

from tests.support import network
from tests.support.network import Machine, Network
from tests.support.postgres_server import PostgresServer

pytestmark = pytest.mark.skipif(network.missing() is not None, reason=str(network.missing()))

HOLD_A_LOCK = """
import sys, time, psycopg
connection = None
give_up_at = time.monotonic() + 10
while connection is None:
    try:
        connection = psycopg.connect(sys.argv[1], autocommit=True)
    except psycopg.OperationalError:
        if time.monotonic() > give_up_at:
            raise
# Keepalives end a session that is silent; the user timeout ends one whose last answer was never acknowledged.
for name, value in {"keepalives_idle": 1, "keepalives_interval": 1, "keepalives_count": 1, "user_timeout": 2000}.items():
    connection.execute(f"SET tcp_{name} = {value}")
connection.execute("SELECT pg_advisory_lock(4242)")
print("locked", flush=True)
time.sleep(600)
"""


@pytest.fixture
def machines(server_dsn: str) -> Iterator[tuple[Network, PostgresServer]]:
    with Network() as made, PostgresServer(addresses=[made.address]) as server:
        yield made, server


def hold_a_lock(machine: Machine, url: str) -> subprocess.Popen[str]:
    """Start a process on the machine and wait until it holds the lock."""
    process: subprocess.Popen[str] = machine.start([sys.executable, "-c", HOLD_A_LOCK, url], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout as lines:
        assert lines.readline() == "locked\n"
    return process


def lock_holders(connection: psycopg.Connection) -> set[str]:
    rows = connection.execute(
        "SELECT host(client_addr) FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE locktype = 'advisory' AND granted"
    )
    return {address for (address,) in rows}


def test_a_process_on_a_machine_without_network_loses_its_session_by_keepalives(machines: tuple[Network, PostgresServer]) -> None:
    net, server = machines
    first, second = net.machines
    url = server.dsn_at(net.address)
    holder = hold_a_lock(first, url)
    with psycopg.connect(server.dsn, autocommit=True) as here:
        assert lock_holders(here) == {first.address}
        first.disconnect()
        cut_at = time.monotonic()
        hold_a_lock(second, url)
        assert 1 <= time.monotonic() - cut_at < 10
        assert holder.poll() is None
        assert lock_holders(here) == {second.address}
    second.kill()
    first.connect()
    hold_a_lock(first, url)


def test_the_network_leaves_nothing() -> None:
    with Network(1) as net:
        name = net.machines[0].name
        process = net.machines[0].start(["sleep", "600"])
        listed = subprocess.run(["ip", "link"], capture_output=True, text=True, check=True).stdout
        assert name.partition("-")[0] in listed
    assert process.poll() is not None
    everything = "".join(
        subprocess.run(["ip", *arguments], capture_output=True, text=True, check=True).stdout
        for arguments in (["link"], ["netns"])
    )
    assert name.partition("-")[0] not in everything
