"""The identity of a worker: its id, its host and its process."""

from __future__ import annotations

import os
import platform
import secrets
from collections.abc import Sequence
from functools import cache

from asyncrunner.store.workers import WorkerInfo


def worker_info(worker_id: str, role: str, batches: Sequence[str]) -> WorkerInfo:
    """Return the identity of a worker of this process."""
    return WorkerInfo(worker_id, platform.node() or "unknown", os.getpid(), role, batches, _process_id(os.getpid()))


@cache
def _process_id(pid: int) -> str:
    """Return a random id of this process. Host and pid do not identify a process: two containers may have the same."""
    del pid  # a forked child has another pid, and so gets another id
    return secrets.token_hex(8)
