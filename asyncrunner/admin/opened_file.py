"""Open and close a file for an operator, and find its batches by name."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Self

from asyncrunner.admin import arguments
from asyncrunner.admin.read_models import Progress
from asyncrunner.backends import open_inspection, shown_location
from asyncrunner.domain import DEFAULT_DB
from asyncrunner.domain.clock import Clock, SystemClock
from asyncrunner.errors import StoreClosed
from asyncrunner.store.admin_protocol import InspectionStore
from asyncrunner.store.snapshot import BatchRow
from asyncrunner.text.validation import checked_path, checked_text

OnProgress = Callable[[Progress], object]
"""A caller's function that gets the progress of a call after each of its steps."""

Reporter = Callable[[int, Progress], None]

if TYPE_CHECKING:
    from types import TracebackType


class OpenedFile:
    """A file that an operator opens; ``Inspection`` and ``Changes`` add the methods that read and change it."""

    def __init__(
        self, db: str | os.PathLike[str] = DEFAULT_DB, *, clock: Clock | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> None:  # fmt: skip
        """Check the arguments; ``open()`` opens the file.

        ``progress`` is called with the number of items changed so far, after each transaction of a method that changes
        many. ``on_progress`` of such a method gets the progress of that call.
        """
        checked_path("db", db)
        self.db = db
        self._location = os.fspath(db)
        self._shown_location = shown_location(self._location)
        self._clock: Clock = clock or SystemClock()
        self._admin_store = self._new_store()
        self._is_open = False
        self._progress = progress

    def _new_store(self) -> InspectionStore:
        return open_inspection(self._location, self._clock)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._shown_location}>"

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def open(self) -> None:
        """Open the file for reading.

        Raises StoreNotFound (without creating the file), NotAStore, SchemaTooNew, StoreError.
        """
        await self._admin_store.open()
        self._is_open = True

    async def close(self) -> None:
        """Close the file. A second call does nothing."""
        self._is_open = False
        await self._admin_store.close()

    @property
    def _store(self) -> InspectionStore:
        if not self._is_open:
            raise StoreClosed(f"{self._shown_location} is not open; use `async with control:` or `await control.open()` first")
        return self._admin_store

    def _reporter(self, on_progress: OnProgress | None) -> Reporter:
        """Return the function that reports each step of a change: the changed items so far, and the progress."""

        def report(changed: int, progress: Progress) -> None:
            if self._progress is not None:
                self._progress(changed)
            if on_progress is not None:
                on_progress(progress)

        return report

    async def _batches(self, name: str | None) -> Sequence[BatchRow]:
        """Return all batches, or only the one with that *name*. Raises BatchNotFound."""
        if name is not None:
            checked_text("batch", name)
        return arguments.batches_named(await self._store.batches(), name, self._shown_location)

    async def _batch(self, name: str | None) -> BatchRow:
        """Return the batch with that *name*, or the only one.

        Raises BatchNotFound, ConfigurationError if there are several.
        """
        return arguments.only_batch(await self._batches(name), self._shown_location)
