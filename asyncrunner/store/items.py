"""Items and failures as a store returns them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final, Generic, NamedTuple, NewType, TypeVar

from asyncrunner.domain.item import Claim, Status
from asyncrunner.domain.outcome import Cancelled, Completed, Failed, Outcome
from asyncrunner.text.plain_form import PlainStruct

R = TypeVar("R")
_PAGE: Final = 1024  # numbers in a page of Numbers

Cursor = NewType("Cursor", str)
"""A position in a walk over items. Only the store that returned the cursor knows its meaning."""

Mark = NewType("Mark", int)
"""A mark of the store's state; ``wait_for_change()`` waits for a change after it. Only the store knows its meaning."""


class Page(NamedTuple, Generic[R]):
    """A page of *rows*. ``next``: the cursor of the next page; None on the last page."""

    rows: Sequence[R]
    next: Cursor | None


class PurgeStep(NamedTuple):
    """A step of a purge: how many items were due, and how many the step removed (another process removed the others).

    ``next``: the cursor of the next step; None at the end of the walk.
    """

    due: int
    removed: int
    next: Cursor | None


class ItemRow(NamedTuple):
    """The stored state of an item, for reports. Times are seconds since the epoch.

    ``seq`` is the item's number, unique within the store; use the number only to recognize an item that was already
    read.
    """

    seq: int
    id: str
    status: Status
    attempts: int
    payload: str
    result: str | None
    error: str | None
    started_at: float | None
    completed_at: float | None


def done_row(claim: Claim, outcome: Outcome, started_at: float, finished_at: float) -> ItemRow | None:
    """Return the row of an item after *outcome* is settled, or None if the item is not finished."""
    result: str | None = None
    error: str | None = None
    match outcome:
        case Completed(result):
            status = Status.COMPLETED
        case Failed(info):
            status, error = Status.FAILED, str(info)
        case Cancelled():
            status = Status.CANCELLED
        case _:
            return None
    return ItemRow(claim.seq, claim.id, status, claim.attempt, claim.payload, result, error, started_at, finished_at)


class Numbers:
    """A set of item numbers, with one bit for each number: 1.3 MB for 10 million items that were added in order."""

    def __init__(self) -> None:
        self._pages: dict[int, int] = {}  # the bits of 1,024 numbers in an int

    @classmethod
    def of(cls, numbers: Iterable[int]) -> Numbers:
        """Return the set of *numbers*. Consecutive numbers are added together."""
        made = cls()
        first = stop = 0
        for number in numbers:
            if number == stop:
                stop += 1
            else:
                made.add_range(first, stop)
                first, stop = number, number + 1
        made.add_range(first, stop)
        return made

    def add_range(self, first: int, stop: int) -> int:
        """Add the numbers from *first* up to *stop*, without *stop*; return how many of them are new."""
        new = 0
        while first < stop:
            page, bit = divmod(first, _PAGE)
            count = min(_PAGE - bit, stop - first)
            added = ((1 << count) - 1) << bit
            bits = self._pages.get(page, 0)
            self._pages[page] = bits | added
            new += count - (bits & added).bit_count()
            first += count
        return new

    def add(self, number: int) -> bool:
        """Add *number*, and return whether it is new."""
        page, bit = divmod(number, _PAGE)
        bits = self._pages.get(page, 0)
        self._pages[page] = bits | 1 << bit
        return not bits >> bit & 1

    def __contains__(self, number: int) -> bool:
        return bool(self._pages.get(number // _PAGE, 0) >> number % _PAGE & 1)

    def __len__(self) -> int:
        return sum(bits.bit_count() for bits in self._pages.values())

    def __iter__(self) -> Iterator[int]:
        for page in sorted(self._pages):
            bits, number = self._pages[page], page * _PAGE
            while bits:
                skipped = (bits & -bits).bit_length() - 1
                number += skipped + 1
                bits >>= skipped + 1
                yield number - 1

    def up_to(self, last: int) -> Numbers:
        """Return the numbers of this set that are not larger than *last*."""
        page, bit = divmod(last, _PAGE)
        rest = Numbers()
        rest._pages = {number: bits for number, bits in self._pages.items() if number < page}
        if page in self._pages:
            rest._pages[page] = self._pages[page] & ((2 << bit) - 1)
        return rest

    def __and__(self, other: Numbers) -> Numbers:
        common = Numbers()
        common._pages = {page: bits & other._pages.get(page, 0) for page, bits in self._pages.items()}
        return common

    def __or__(self, other: Numbers) -> Numbers:
        both = Numbers()
        both._pages = {page: self._pages.get(page, 0) | other._pages.get(page, 0) for page in {**self._pages, **other._pages}}
        return both

    def __sub__(self, other: Numbers) -> Numbers:
        rest = Numbers()
        rest._pages = {page: bits & ~other._pages.get(page, 0) for page, bits in self._pages.items()}
        return rest


class OpenItems(NamedTuple):
    """The items of a batch that are not completed, by state, at one moment.

    ``newest``: the number of the store's newest item; an item with a larger number was added later.
    """

    newest: int = 0
    pending: Numbers = Numbers()
    processing: Numbers = Numbers()
    failed: Numbers = Numbers()
    cancelled: Numbers = Numbers()

    @property
    def unfinished(self) -> Numbers:
        """The items that are pending or processing."""
        return self.pending | self.processing

    @property
    def all(self) -> Numbers:
        """The items in all four states."""
        return self.unfinished | self.failed | self.cancelled


class FailureGroup(PlainStruct, frozen=True):
    """A group of failed items with one cause: the number of items, and the key of one item as an example."""

    error: str
    items: int
    example: str
