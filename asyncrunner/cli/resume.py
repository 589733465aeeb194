"""Check that ``run`` without items has a batch to continue with: a mistyped name must not create a new, empty batch."""

from __future__ import annotations

import shlex

from asyncrunner.backends import MEMORY, full_location, open_admin, similar_locations
from asyncrunner.errors import ConfigurationError, StoreError, StoreNotFound
from asyncrunner.text.suggestions import closest, no_such_batch


async def check_batch(location: str, batch: str) -> None:
    """Raise StoreNotFound, BatchNotFound or ConfigurationError, with similar names, if the store has no such batch.

    A store that cannot be read is no error here: when the run opens the store, it reports the error or upgrades an older
    schema.
    """
    if location == MEMORY:
        raise ConfigurationError("a store in memory has no items to continue with; give items, or a file with --db")
    store = open_admin(location)
    try:
        await store.open()
    except StoreNotFound as error:
        folder, slash, name = location.rpartition("/")
        similar = closest(name, similar_locations(location))
        hint = "" if similar is None else f"; did you mean --db {shlex.quote(f'{folder}{slash}{similar}')}?"
        raise StoreNotFound(
            f"no items are given, and there is no database at {full_location(location)} to continue with{hint or '.'} Give the "
            "items of a new batch, or the file of an existing batch with --db"
        ) from error
    except StoreError:
        return
    try:
        names = [row.name for row in await store.batches()]
    except StoreError:
        return
    finally:
        await store.close()
    if batch not in names:
        raise no_such_batch(
            f"no items are given, and {full_location(location)}",
            batch,
            names,
            advice="Give the items of a new batch, or the name of an existing batch with --batch (was the handler renamed?)",
        )
