"""A model of more workers than one machine can run: what they cost the server, computed from measured costs.

``python -m benchmarks.postgres.model [--workers N ...] [--seconds N ...] [--slots N] [--cores N]`` prints, for each number of
workers and each duration of the handler: items, turns, deliveries of notifications and looks per second, connections, WAL per
day, the server's CPU by part, and up to how many workers a server with the given cores would serve.

The costs are CPU microseconds of the server's processes, measured one by one on PostgreSQL 18 (see ``MEASURED``); how often each
happens follows from the intervals in the code. Computed numbers are no measurements: the model has no locks that are waited for,
no full disk, and no memory that is too small.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Final, NamedTuple

from asyncrunner.postgres.listener import _LOOK_SECONDS, _MAX_DELIVERIES, _NOTIFY_SECONDS
from asyncrunner.runner.duties.watchdog import _MANY_PEERS
from asyncrunner.runner.engine import _HEARTBEAT_SECONDS, _WATCHDOG_SECONDS

__all__ = ["MEASURED", "Costs", "Estimate", "Load", "estimate", "most_workers"]

SESSIONS: Final = 3  # of a runner
DAY: Final = 86400.0
PARTS: Final = ("turns", "items", "notifications", "looks", "heartbeats")


class Costs(NamedTuple):
    """Measured costs: CPU microseconds of the server, bytes of WAL, seconds of a turn's round trip and commit."""

    turn: float = 900.0
    """A turn without its items. Measured under a load average of 16; an idle machine needs less."""

    settled_item: float = 14.0
    """An item that a turn claims and the next one settles, where turns have 500 items."""

    added_item: float = 9.0
    look: float = 250.0
    look_per_worker: float = 1.2
    """A look at the liveness locks among 1, 10, 30, 100, 300 and 1,000 workers: 52, 132, 271, 421, 539 and 1,422."""

    heartbeat: float = 250.0
    """A heartbeat and the sum of the tallies."""

    notification: float = 60.0
    delivery: float = 22.0
    """One notification to one listening session, with 10 to 300 of them: 19 to 33; the receiving program needs 20 to 30."""

    turn_wal: float = 800.0
    settled_item_wal: float = 910.0
    added_item_wal: float = 460.0
    heartbeat_wal: float = 210.0
    notification_wal: float = 40.0
    turn_seconds: float = 0.005


MEASURED: Final = Costs()


class Load(NamedTuple):
    """Workers that are all busy: each runs *slots* handlers at the same time, each of *seconds*."""

    workers: int
    slots: int
    seconds: float


class Estimate(NamedTuple):
    """What a load means for the server; rates are per second, of all workers together."""

    connections: int
    items: float
    turns: float
    notifications: float
    deliveries: float
    looks: float
    look_interval: float
    tallies: float
    wal_bytes_per_day: float
    cores: dict[str, float]

    @property
    def all_cores(self) -> float:
        """How many cores the server's processes use."""
        return sum(self.cores.values())


def estimate(load: Load, costs: Costs = MEASURED) -> Estimate:
    """Compute what *load* costs."""
    workers = load.workers
    rate = load.slots / load.seconds
    turns = min(rate, 1 / costs.turn_seconds)
    pause = max(_NOTIFY_SECONDS, min((workers - 1) ** 2 / _MAX_DELIVERIES, _LOOK_SECONDS))
    notifications = min(turns, 1 / pause) * workers
    look_interval = _WATCHDOG_SECONDS * max(1.0, (workers - 1) / _MANY_PEERS)
    looks = workers / look_interval
    heartbeats = workers / _HEARTBEAT_SECONDS
    items, all_turns, deliveries = rate * workers, turns * workers, notifications * workers
    microseconds = {
        "turns": all_turns * costs.turn,
        "items": items * (costs.settled_item + costs.added_item),
        "notifications": notifications * costs.notification + deliveries * costs.delivery,
        "looks": looks * (costs.look + costs.look_per_worker * workers),
        "heartbeats": heartbeats * costs.heartbeat,
    }
    wal = (
        all_turns * costs.turn_wal
        + items * (costs.settled_item_wal + costs.added_item_wal)
        + heartbeats * costs.heartbeat_wal
        + notifications * costs.notification_wal
    )
    return Estimate(
        connections=SESSIONS * workers,
        items=items,
        turns=all_turns,
        notifications=notifications,
        deliveries=deliveries,
        looks=looks,
        look_interval=look_interval,
        tallies=2 * all_turns / heartbeats,  # a turn adds two rows, and each heartbeat replaces all rows by their sum
        wal_bytes_per_day=wal * DAY,
        cores={part: microseconds[part] / 1e6 for part in PARTS},
    )


def most_workers(cores: float, slots: int, seconds: float, costs: Costs = MEASURED) -> int:
    """Return how many workers a server with *cores* serves by this model, up to 100,000."""
    fewest, most = 0, 100_000
    while fewest < most:
        middle = (fewest + most + 1) // 2
        if estimate(Load(middle, slots, seconds), costs).all_cores <= cores:
            fewest = middle
        else:
            most = middle - 1
    return fewest


def table(loads: Sequence[Load], cores: float, costs: Costs = MEASURED) -> str:
    """Return the estimates as a Markdown table."""
    head = (
        "workers", "handler", "items/s", "turns/s", "connections", "deliveries/s", "looks/s", "tallies", "WAL a day",
        *(f"cores: {part}" for part in PARTS), "cores", f"most workers on {cores:g} cores",
    )  # fmt: skip
    lines = [f"| {' | '.join(head)} |", "|" + "---:|" * len(head)]
    for load in loads:
        one = estimate(load, costs)
        cells = (
            f"{load.workers:,}", f"{load.seconds:g} s", f"{one.items:,.0f}", f"{one.turns:,.0f}", f"{one.connections:,}",
            f"{one.deliveries:,.0f}", f"{one.looks:,.0f}", f"{one.tallies:,.0f}", f"{one.wal_bytes_per_day / 1e9:,.0f} GB",
            *(f"{one.cores[part]:.2f}" for part in PARTS), f"{one.all_cores:.1f}",
            f"{most_workers(cores, load.slots, load.seconds, costs):,}",
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table for the loads of the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.postgres.model", description="What many workers cost the server.")
    parser.add_argument("--workers", type=int, nargs="+", default=[10, 100, 1000], metavar="N", help="10, 100 and 1,000")
    parser.add_argument("--seconds", type=float, nargs="+", default=[1.0, 10.0, 60.0], metavar="N", help="of a handler")
    parser.add_argument("--slots", type=int, default=100, metavar="N", help="of each worker; 100")
    parser.add_argument("--cores", type=float, default=8.0, metavar="N", help="of the server; 8")
    options = parser.parse_args(arguments)
    print(table([Load(n, options.slots, each) for each in options.seconds for n in options.workers], options.cores))


if __name__ == "__main__":
    main()
