"""What happens in a simulation, as data: it is drawn by hypothesis or from a seed, shrunk, printed, and run again.

All times are in natural seconds, as if the engine ran at its usual pace; the world multiplies them by ``stretch``.
"""

from __future__ import annotations

import random
from typing import Final

import msgspec

__all__ = ["Act", "Move", "Scenario", "make_scenario"]

_ACTS: Final = (
    *("ok",) * 6, *("quick",) * 2, *("save",) * 2, *("raise",) * 2, "fail", "retry", "pause", "hang", "swallow", "stubborn",
    "cancelled", "block", "kill",
)  # fmt: skip
_MOVES: Final = (
    *("submit",) * 8, "conflict", "kill", "kill", "kill at commit", *("block",) * 2, *("stop all",) * 2, *("stop one",) * 4, "jump", "locked",
    "full", "break", *("operator",) * 4, "cancel item", "cancel task", "end",
)  # fmt: skip
_SECONDS_A_MOVE: Final = 3.0


class Act(msgspec.Struct, frozen=True):
    """What an attempt does, and for how long."""

    what: str
    seconds: float = 0.0


class Move(msgspec.Struct, frozen=True):
    """What is done to the world, when, and to whom. ``items``: of each the acts of its attempts, the last one for all further ones."""

    at: float
    what: str
    who: int = 0
    seconds: float = 0.0
    which: int = 0
    items: tuple[tuple[Act, ...], ...] = ()


class Scenario(msgspec.Struct, frozen=True):
    """``busy``: the share of transactions and reads that find the file locked; ``latency``: the longest way to the store or back."""

    seed: int
    stretch: float
    seconds: float
    processes: int
    concurrency: int
    max_attempts: int
    timeout: float
    stale_after: float
    busy: float
    latency: float
    moves: tuple[Move, ...]

    @property
    def hours(self) -> float:
        """How long the faults go on; what the end of the work takes is not counted."""
        return self.seconds * self.stretch / 3600


def make_scenario(rng: random.Random, *, stretch: float, seconds: float) -> Scenario:
    """One drawn from *rng*, which may be hypothesis's."""
    return Scenario(
        seed=rng.randrange(2**32),
        stretch=stretch,
        seconds=seconds,
        processes=rng.choice((1, 2, 2, 2, 3)),
        concurrency=rng.choice((1, 2, 3, 8)),
        max_attempts=rng.choice((1, 2, 3, 5)),
        timeout=rng.choice((4.0, 12.0)),
        stale_after=rng.choice((5.0, 5.0, 20.0)),
        busy=rng.choice((0.0, 0.0, 0.05, 0.3)),
        latency=rng.choice((0.001, 0.02, 0.3)),
        moves=tuple(_make_move(rng, seconds) for _ in range(rng.randint(3, 3 + int(seconds / _SECONDS_A_MOVE)))),
    )


def _make_move(rng: random.Random, horizon: float) -> Move:
    what = rng.choice(_MOVES)
    items: tuple[tuple[Act, ...], ...] = ()
    if what == "submit":
        items = tuple(_make_item(rng) for _ in range(rng.choice((1, 2, 4, 12))))
    return Move(
        at=round(rng.uniform(0, horizon), 2),
        what=what,
        who=rng.randint(0, 2),
        seconds=round(rng.choice((0.3, 2.0, 10.0, 40.0)) * rng.uniform(0.5, 1.5), 2),
        which=rng.randint(0, 5),
        items=items,
    )


def _make_item(rng: random.Random) -> tuple[Act, ...]:
    return tuple(
        Act(rng.choice(_ACTS), round(rng.choice((0.02, 0.5, 3.0, 8.0)) * rng.random(), 3))
        for _ in range(rng.choice((1, 1, 2, 3)))
    )
