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
        new = self._add_range(seqs) if isinstance(seqs, range) else sum(map(self._add_one, seqs))
        self.duplicates += items - new

    def _add_range(self, seqs: range) -> int:
        """Add the numbers of items that are new in the file, so none of them is known."""
        first = seqs.start
        while first < seqs.stop:
            page, bit = divmod(first, _PAGE)
            count = min(_PAGE - bit, seqs.stop - first)
            self._pages[page] = self._pages.get(page, 0) | ((1 << count) - 1) << bit
            first += count
        return len(seqs)

    def _add_one(self, seq: int) -> bool:
        page, bit = divmod(seq, _PAGE)
        bits = self._pages.get(page, 0)
        self._pages[page] = bits | 1 << bit
        return not bits >> bit & 1
