"""The contract for the maintenance of a store: backup, restore, compaction, checks and repairs.

A store on a server has its own tools for a backup, a restore and a compaction. For such a store, these methods raise
ConfigurationError with the command of the server.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from typing import NamedTuple, Protocol


class CheckLevel(StrEnum):
    """The severity of a check result; only ``wrong`` makes the command fail."""

    OK = "ok"
    NOTE = "note"
    WRONG = "wrong"


class CheckResult(NamedTuple):
    """One result of a check.

    ``can_fix``: ``--fix`` repairs it safely, without losing an item, its state or its result.
    """

    check: str
    level: CheckLevel
    message: str
    can_fix: bool = False


def resting_batches(rows: Iterable[tuple[str, bool, str | None]]) -> Iterator[CheckResult]:
    """Yield a note for each batch of *rows* that starts no items: its name, whether it is paused, why a guardrail stopped it."""
    for name, is_paused, stopped in rows:
        reason = (
            "is paused; `asyncrunner resume` resumes it"
            if is_paused
            else f"is stopped ({stopped}); the next run of the batch resumes it"
        )
        yield CheckResult("batches", CheckLevel.NOTE, f"{name!r} {reason}")


class Restored(NamedTuple):
    """A finished restore: the size of the new file in bytes, and the path of the replaced file, None if there was none."""

    size: int
    replaced: str | None


class FileMaintenance(Protocol):
    """The maintenance of a store's file, also while workers use the file.

    No method creates the file, and no method needs an open store. Every method raises StoreNotFound, NotAStore,
    StoreError, and StoreUnavailable if the file stays locked.
    """

    async def backup(self, target: str | os.PathLike[str], *, batch_id: int | None = None) -> int:
        """Copy a snapshot of the file to *target*, which must not exist; return the size of the copy in bytes.

        The copy has no active workers: items that a worker holds are pending in the copy, and their attempts are
        refunded, as if the worker had left. With *batch_id*, the copy has only that batch. *target* appears only when
        the copy is complete, also after a crash. A cancellation stops the copy and leaves no file. Raises
        ConfigurationError if *target* exists or cannot be written.
        """
        ...

    async def restore(self, backup: str | os.PathLike[str]) -> Restored:
        """Put a copy of *backup* in place of the file, and keep the replaced file under another name.

        First the backup is checked completely. A kill leaves the old file or the new one, or a file that nothing opens
        until the restore is repeated. A cancellation before the replacement changes nothing. Raises StoreError if a
        worker or another program uses the file, or if the backup is damaged; NotAStore and SchemaTooNew for a backup
        that this version cannot use; ConfigurationError if the backup is the file itself.
        """
        ...

    def check_vacuum(self) -> None:
        """Raise ConfigurationError if ``vacuum()`` cannot be used for this store."""
        ...

    async def vacuum(self) -> int:
        """Rewrite the file without the free space that deleted items left, and return its new size in bytes.

        No worker may be alive, because workers cannot write during the call. After the rewrite has started, a
        cancellation does not stop it. A kill leaves the file unchanged.
        """
        ...

    async def free_bytes(self) -> int:
        """Return the size of the free space inside the file; 0 for a server, which manages its space."""
        ...

    async def check(self, *, full: bool, batch: str | None = None) -> Sequence[CheckResult]:
        """Run every check and return the results, in the order of the report.

        With *full*, also compare each index with its table, which takes minutes for a large file. With *batch*, the
        checks of counts and controls cover only that batch. Raises BatchNotFound.
        """
        ...

    async def repair(self, *, contents: bool, batch: str | None = None) -> Sequence[str]:
        """Make every safe repair of the problems that ``check`` reports, and return a line for each repaired problem.

        Without *contents*, repair only the permissions of files, which is safe for a damaged file. With *batch*,
        correct the item count of that batch only. Repairs that were made before a kill stay.
        """
        ...
