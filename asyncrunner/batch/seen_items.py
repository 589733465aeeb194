"""Count the items of an input whose key an earlier item of the input has, in little memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

_PAGE: Final = 1024  # numbers in a page; a page is an int with one bit per number


class SeenItems:
    """The items in the file that have a key of the input, by their numbers: one bit per item.

    ``duplicates``: the items of the input whose key an earlier item of the input has.
    """

    def __init__(self) -> None:
        self._pages: dict[int, int] = {}
        self.duplicates = 0

    def add(self, items: int, seqs: Sequence[int]) -> None:
        """Add a chunk of *items* of the input. *seqs* are the numbers of their keys in the file, each once."""
        if seqs and list(seqs) == list(range(seqs[0], seqs[0] + len(seqs))):  # a new input, or the same input again
            new = self._add_range(seqs[0], seqs[0] + len(seqs))
        else:
            new = sum(map(self._add_one, seqs))
        self.duplicates += items - new

    def _add_range(self, first: int, stop: int) -> int:
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

    def _add_one(self, seq: int) -> bool:
        page, bit = divmod(seq, _PAGE)
        bits = self._pages.get(page, 0)
        self._pages[page] = bits | 1 << bit
        return not bits >> bit & 1
