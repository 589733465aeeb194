"""Complete the values of arguments and options: choices, files, and the batches and ids of the file, which is never created.

Only text that a shell takes as it is gets completed: a name with a space or another special character would need quotes, and
could run a command.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final, TypeAlias

from asyncrunner.domain import DEFAULT_DB

if TYPE_CHECKING:
    import click
    from click.shell_completion import CompletionItem

    from asyncrunner.store.admin_protocol import InspectionStore

Completer: TypeAlias = "Callable[[click.Context, click.Parameter, str], list[str] | list[CompletionItem]]"
"""A function that returns the values with which the incomplete value of an argument or option may continue."""

_MAX_BATCHES: Final = 100
_MAX_IDS: Final = 50
_SAFE: Final = re.compile(r"[\w@%+=:./][\w@%+=:./-]*")  # no shell treats one of these characters in a special way


def one_of(values: Iterable[str]) -> Completer:
    """Return a completer of the *values*."""
    known = list(values)
    return lambda _ctx, _parameter, incomplete: _items(known, incomplete)


def files(_ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Let the shell complete the path of a file."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="file")]


def batch_names(ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Complete the name of a batch of the file: the newest 100 that fit."""

    async def names(store: InspectionStore) -> Sequence[str]:
        return [row.name for row in reversed(await store.batches())]

    return _items(_read(ctx, names), incomplete)[:_MAX_BATCHES]


def item_ids(ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Complete the id of an item of the file or of the given batch: up to 50, without a first letter the newest ones."""

    async def ids(store: InspectionStore) -> Sequence[str]:
        batch = ctx.params.get("batch")
        found = [row.batch_id for row in await store.batches() if batch is None or row.name == batch]
        return await store.keys_with(found, incomplete, _MAX_IDS)

    given = ctx.params.get("ids") or ()
    return [key for key in _items(_read(ctx, ids), incomplete) if key not in given]


def _items(values: Iterable[str], incomplete: str) -> list[str]:
    return [value for value in values if value.startswith(incomplete) and _is_safe(value)]


def _is_safe(value: str) -> bool:
    return value.isprintable() and _SAFE.fullmatch(value) is not None


def _read(ctx: click.Context, read: Callable[[InspectionStore], Awaitable[Sequence[str]]]) -> Sequence[str]:
    """Read texts from the file of the command line or the environment; return none if that fails for any reason."""

    import asyncio  # only a completion needs these two; the options of every command import this module

    from asyncrunner.backends import open_inspection

    async def run() -> Sequence[str]:
        store = open_inspection(ctx.params.get("db") or ctx.params.get("source") or DEFAULT_DB, retry_seconds=0)
        await store.open()
        try:
            return await read(store)
        finally:
            await store.close()

    try:
        return asyncio.run(run())
    except Exception:  # noqa: BLE001 - a message would be printed into the command line that the user types
        return ()
