"""The questions that ``python -m benchmarks`` asks, in this order: modules of ``benchmarks.questions`` with a ``BENCHMARK``."""

from __future__ import annotations

from typing import Final

__all__ = ["NAMES"]

NAMES: Final = (
    "throughput",
    "by_hand",
    "costs",
    "slots",
    "peers",
    "handlers",
    "scale",
    "resume",
    "wakeup",
    "payloads",
    "processes",
    "sharing",
    "dashboard",
    "postgres",
    "overheads",
    "recovery",
    "crash",
    "throttling",
    "crawl",
    "startup",
    "profile",
)
