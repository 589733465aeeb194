"""The benchmarks that ``python -m benchmarks`` runs, in this order: modules of this package with a ``BENCHMARK``."""

from __future__ import annotations

from typing import Final

__all__ = ["NAMES"]

NAMES: Final = (
    "throughput",
    "slots",
    "peers",
    "handlers",
    "scale",
    "resume",
    "wakeup",
    "payloads",
    "processes",
    "sharing",
    "overheads",
    "recovery",
    "crawl",
    "profile",
)
