"""The contract for the care of a store that is a file: backup, compaction, checks and repairs. Other stores refuse it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple, Protocol


class CheckLevel(StrEnum):
    """How serious a finding is; only ``wrong`` makes the command fail."""

    OK = "ok"
    NOTE = "note"
    WRONG = "wrong"


class CheckResult(NamedTuple):
    """One result of a check. ``can_fix``: ``--fix`` repairs it safely, without losing an item, its state or its result."""

    check: str
    level: CheckLevel
    message: str
    can_fix: bool = False


class FileMaintenance(Protocol):
    """Maintains the file of a store, also while workers use it. No method creates the file, and none needs it to be open.

    Every method raises StoreNotFound, NotAStore, StoreError, and StoreUnavailable if the file stays locked.
    """

    async def backup(self, target: str | os.PathLike[str], *, batch_id: int | None = None) -> int:
        """Copy a snapshot of the file to *target*, which must not exist; return the size of the copy in bytes.

        The copy has no active workers: items that a worker holds are pending there, with the attempt refunded, as if the worker
        had left. With *batch_id*, the copy has that batch alone. *target* appears only when the copy is complete, also after a
        crash. Cancelling stops the copy and leaves no file. Raises ConfigurationError if *target* exists or cannot be written.
        """
        ...

    async def vacuum(self) -> int:
        """Rewrite the file without the free space that deleted items left, and return its new size in bytes.

        No worker may be alive: it could not write meanwhile. Once started it cannot be cancelled. A kill leaves the file
        unchanged.
        """
        ...

    async def free_bytes(self) -> int:
        """Return the size of the free space inside the file."""
        ...

    async def check(self, *, full: bool, batch: str | None = None) -> Sequence[CheckResult]:
        """Run every check and return the findings, in the order of the report.

        *full* also checks each index against its table and takes minutes for a large file. With *batch*, only that batch's counts
        and controls are checked. Raises BatchNotFound.
        """
        ...

    async def repair(self, *, contents: bool, batch: str | None = None) -> Sequence[str]:
        """Make every safe repair of a problem that ``check`` reports, and return a line for each.

        Without *contents*, only the permissions of files change; that is safe for a damaged file. With *batch*, only that
        batch's item count is corrected. A kill keeps the repairs that were made.
        """
        ...
