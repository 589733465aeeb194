"""The items that a source gave, by their numbers in the store: which ones, and in which order."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from itertools import chain, islice

from asyncrunner.store.items import Numbers


class GivenItems:
    """The items that a source gave, in input order and with duplicates.

    ``numbers``: the numbers of the items, each once. ``duplicates``: how many items of the input have the key of an earlier
    item of the input. The memory is one bit per item, and 16 bytes per run of consecutive numbers: new items, and items that
    are given again in the same order, are one run; items in random order take up to 16 bytes each. 10 million new items take
    1.6 MB.
    """

    def __init__(self) -> None:
        self.numbers = Numbers()
        self.duplicates = 0
        self._firsts = array("q")  # of each run, its first number
        self._counts = array("q")  # of each run, how many numbers it has

    def __len__(self) -> int:
        """Return how many items were given, duplicates included."""
        return sum(self._counts)

    def add(self, seqs: Sequence[int]) -> None:
        """Add a chunk of the input: for each of its items, the number of the item with its key."""
        # The numbers have no gaps if the input is new, or is given again in the same order.
        if seqs and (isinstance(seqs, range) or seqs == list(range(seqs[0], seqs[0] + len(seqs)))):
            new = self.numbers.add_range(seqs[0], seqs[0] + len(seqs))
            self._append_run(seqs[0], len(seqs))
        else:
            new = sum(map(self.numbers.add, seqs))
            for seq in seqs:
                self._append_run(seq, 1)
        self.duplicates += len(seqs) - new

    def _append_run(self, first: int, count: int) -> None:
        if self._firsts and self._firsts[-1] + self._counts[-1] == first:
            self._counts[-1] += count
        else:
            self._firsts.append(first)
            self._counts.append(count)

    def runs(self) -> Iterator[tuple[int, int]]:
        """Yield the first number and the count of each run of consecutive numbers, in input order."""
        return zip(self._firsts, self._counts, strict=True)

    def pages(self, size: int) -> Iterator[Sequence[int]]:
        """Yield the numbers in input order, duplicates included, in pages of up to *size* numbers."""
        numbers = chain.from_iterable(range(first, first + count) for first, count in self.runs())
        while page := list(islice(numbers, size)):
            yield page
