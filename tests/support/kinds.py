"""The kinds of store on which the tests can run. ``pytest --store KIND`` chooses one; to add a kind, add an entry to ``KINDS``.

``sqlite`` is a file. ``postgres`` is a schema of a PostgreSQL server: that of ``ASYNCRUNNER_TEST_POSTGRES``, or one that is started
from the extra ``server``.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from tests.support import postgres_kind, postgres_server

VARIABLE: Final = "ASYNCRUNNER_TEST_STORE"
"""The environment variable with the name of the chosen kind, which the processes of a test inherit."""


Location = str | os.PathLike[str]


class Connection(Protocol):
    """The methods of a connection that tests use; ``?`` stands for a parameter."""

    def execute(self, statement: str, parameters: Sequence[Any] = (), /) -> Any: ...

    def executemany(self, statement: str, parameters: Sequence[Sequence[Any]], /) -> Any: ...


class Kind(NamedTuple):
    """A kind of store: how a test makes a location, connects as another program does, and removes what it made."""

    new_location: Callable[[Path, str], str]
    """Return the location of a store that does not exist; it belongs to the test's folder and has a name in it."""
    connect: Callable[[str, bool], AbstractContextManager[Connection]]
    """Connect to a store that exists; with True, only to read it."""
    exists: Callable[[str], bool]
    """Return whether a store exists there, without making one."""
    remove: Callable[[], None] = lambda: None
    """Remove the stores at the locations that a test had; what is in the test's folder may stay."""
    missing: Callable[[], str | None] = lambda: None
    """Return why the tests cannot run on this kind here, or None."""
    totals: str = "SELECT name, total FROM batches ORDER BY name"
    """The query for the stored number of items of each batch."""
    put_offs: str = "SELECT put_offs FROM batches"
    """The query for the stored number of put-offs of the only batch."""


@contextmanager
def _file(location: str, read_only: bool) -> Iterator[sqlite3.Connection]:
    # Never rwc, the default: a file that does not exist is an error, not a new file.
    mode = "ro" if read_only else "rw"
    connection = sqlite3.connect(f"{Path(location).absolute().as_uri()}?mode={mode}", uri=True, timeout=10)
    try:
        with connection:
            yield connection
    finally:
        connection.close()


KINDS: Final[dict[str, Kind]] = {
    "sqlite": Kind(lambda folder, name: str(folder / name), _file, lambda location: Path(location).exists()),
    "postgres": Kind(
        postgres_kind.new_location,
        postgres_kind.connect,
        postgres_kind.exists,
        remove=postgres_kind.drop_schemas,
        missing=lambda: None if postgres_server.available() else postgres_server.MISSING,
        totals=postgres_kind.TOTALS,
        put_offs="SELECT coalesce(sum(put_offs), 0)::integer FROM tallies",
    ),
}


def chosen_name() -> str:
    """Return the name of the kind on which this test run runs."""
    return os.environ.get(VARIABLE, "sqlite")


def chosen() -> Kind:
    """Return the kind on which this test run runs."""
    return KINDS[chosen_name()]


def kind_of(location: str) -> Kind:
    """Return the kind of an existing store."""
    return KINDS["postgres" if location.startswith("postgresql://") else "sqlite"]
