"""Walk over the rows of a batch in the order in which they are copied: items, failures, pieces of large results.

A position is text, which the target stores: ``items 5``, ``failures 7``, ``pieces 5 0``, ``end``. It is empty at the beginning.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, TypeVar

from asyncrunner.store.copying import rows
from asyncrunner.store.copying.rows import CopiedFailure, CopiedItem, CopyPage

if TYPE_CHECKING:
    from asyncrunner.store.copying.contract import CopySource

BEGINNING: Final = ""
END: Final = "end"

R = TypeVar("R", CopiedItem, CopiedFailure)


async def page_behind(source: CopySource, batch_id: int, reached: str) -> CopyPage:
    """Return the rows behind the position *reached*. An empty page leads to the next kind of rows, or to the end."""
    kind, *numbers = reached.split() or ["items"]
    after = [int(number) for number in numbers]
    if kind == "items":
        items = await source.copied_items(batch_id, after[0] if after else None)
        return CopyPage(f"items {items[-1][0]}" if items else "failures", items=[item for _, item in items])
    if kind == "failures":
        failures = await source.copied_failures(batch_id, after[0] if after else None)
        return CopyPage(f"failures {failures[-1][0]}" if failures else "pieces", failures=[failure for _, failure in failures])
    pieces = await source.copied_pieces(batch_id, (after[0], after[1]) if after else None)
    if not pieces:
        return CopyPage(END)
    return CopyPage(f"pieces {pieces[-1][0]} {pieces[-1][1].piece}", pieces=[piece for _, piece in pieces])


def page_of(found: Iterable[tuple[int, R]]) -> list[tuple[int, R]]:
    """Return the first rows, up to a full page; the other rows are not read."""
    page: list[tuple[int, R]] = []
    size = 0
    for number, row in found:
        page.append((number, row))
        size += row.size
        if len(page) >= rows.PAGE_ITEMS or size >= rows.PAGE_CHARACTERS:
            break
    return page
