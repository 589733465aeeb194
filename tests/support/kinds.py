"""The kinds of store on which the tests can run. ``pytest --store KIND`` chooses one; to add a kind, add an entry to ``KINDS``.

``sqlite`` is a file. ``postgres`` is a schema of a PostgreSQL server: that of ``ASYNCRUNNER_TEST_POSTGRES``, or one that is started
from the extra ``server``. ``url`` is the SQLite store behind a URL, as a server has: a test that takes its location for a path fails
on this kind, so that it shows which tests another store can run.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from asyncrunner import backends
from asyncrunner.sqlite import store
from asyncrunner.sqlite.admin import inspection
from asyncrunner.sqlite.admin import store as admin_store
from asyncrunner.sqlite.admin.inspection import SQLiteInspectionStore
from asyncrunner.sqlite.admin.store import SQLiteAdminStore
from asyncrunner.sqlite.maintenance import maintenance
from asyncrunner.sqlite.maintenance.maintenance import SQLiteMaintenance
from asyncrunner.sqlite.store import SQLiteStore
from tests.support import postgres_kind, postgres_server

VARIABLE: Final = "ASYNCRUNNER_TEST_STORE"
"""The environment variable with the name of the chosen kind, which the processes of a test inherit."""

_URL: Final = "url://"


Location = str | os.PathLike[str]


class Connection(Protocol):
    """The methods of a connection that tests use; ``?`` stands for a parameter."""

    def execute(self, statement: str, parameters: Sequence[Any] = (), /) -> Any: ...

    def executemany(self, statement: str, parameters: Sequence[Sequence[Any]], /) -> Any: ...


class Kind(NamedTuple):
    """A kind of store: how a test makes a location, connects as another program does, and makes the package know the kind."""

    new_location: Callable[[Path, str], str]
    """Return the location of a store that does not exist; it belongs to the test's folder and has a name in it."""
    connect: Callable[[str, bool], AbstractContextManager[Connection]]
    """Connect to a store that exists; with True, only to read it."""
    exists: Callable[[str], bool]
    """Return whether a store exists there, without making one."""
    register: Callable[[], None] = lambda: None
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


def _new_url(folder: Path, name: str) -> str:
    # Not in the test's own folder, where a test could find the file by its name.
    hidden = folder.with_name(f"{folder.name}-store")
    hidden.mkdir(exist_ok=True)
    return f"{_URL}{hidden}/{name}"


def _connect_url(location: str, read_only: bool) -> AbstractContextManager[sqlite3.Connection]:
    return _file(location.removeprefix(_URL), read_only)


class _StoreAtUrl(SQLiteStore):
    """A store with a URL, which opens no other file; ``:memory:`` stays what it is."""

    def __init__(self, path: str, **options: Any) -> None:
        super().__init__(path.removeprefix(_URL), **options)
        self._url = path

    @property
    def location(self) -> str:
        return getattr(self, "_url", self._given_path)

    async def open(self) -> None:
        assert self._url.startswith(_URL) or self._url == backends.MEMORY, (
            f"a test opens the file {self._url}; use the db fixture"
        )
        await super().open()


class _ReaderAtUrl(SQLiteInspectionStore):
    """The operators' side of ``_StoreAtUrl``."""

    def __init__(self, location: str, *arguments: Any, **options: Any) -> None:
        super().__init__(location.removeprefix(_URL), *arguments, **options)
        self._url = location

    @property
    def location(self) -> str:
        return self._url

    async def open(self) -> None:
        assert self._url.startswith(_URL), f"a test opens the file {self._url}; use the db fixture"
        await super().open()


class _AdminStoreAtUrl(_ReaderAtUrl, SQLiteAdminStore):
    pass


def _register_url() -> None:
    from asyncrunner.batch import plan

    checked_location, can_create = backends.checked_location, backends.can_create
    replaced: dict[object, dict[str, object]] = {
        backends: {
            "checked_location": lambda location: location if location.startswith(_URL) else checked_location(location),
        },
        store: {"SQLiteStore": _StoreAtUrl},
        inspection: {"SQLiteInspectionStore": _ReaderAtUrl},
        admin_store: {"SQLiteAdminStore": _AdminStoreAtUrl},
        maintenance: {"SQLiteMaintenance": lambda location, clock: SQLiteMaintenance(location.removeprefix(_URL), clock)},
        plan: {"can_create": lambda location: can_create(location.removeprefix(_URL))},
    }
    for module, names in replaced.items():
        for name, value in names.items():
            setattr(module, name, value)


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
    "url": Kind(_new_url, _connect_url, lambda location: Path(location.removeprefix(_URL)).exists(), _register_url),
}

_KIND_OF_SCHEME: Final = {"postgresql": "postgres"}


def chosen_name() -> str:
    """Return the name of the kind on which this test run runs."""
    return os.environ.get(VARIABLE, "sqlite")


def chosen() -> Kind:
    """Return the kind on which this test run runs."""
    return KINDS[chosen_name()]


def kind_of(location: str) -> Kind:
    """Return the kind of an existing store."""
    scheme, separator, _ = location.partition("://")
    return KINDS[_KIND_OF_SCHEME.get(scheme, scheme) if separator else "sqlite"]
