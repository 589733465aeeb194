"""Add items in the caller's transaction, on the caller's connection, with the driver of that connection."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar
from urllib.parse import unquote, urlsplit

import msgspec

from asyncrunner.domain.clock import SystemClock
from asyncrunner.errors import AsyncRunnerError, ConfigurationError, StoreError, StoreUnavailable
from asyncrunner.postgres.connection.address import Address, parse_address
from asyncrunner.postgres.connection.identity import identity_of
from asyncrunner.postgres.connection.schema import VERSION, other_version
from asyncrunner.postgres.connection.sqlstates import description, is_temporary
from asyncrunner.postgres.known_keys import FIRST_MODES, Answer, Steps, adding, chunk_fields, decode_answer, encoded, statement

if TYPE_CHECKING:
    from asyncrunner.domain.clock import Clock
    from asyncrunner.domain.item import NewItem, OnKnownKey
    from asyncrunner.store.batches import Added, BatchOptions

T = TypeVar("T")
Execute: TypeAlias = "Callable[[str, str | None], str | None]"
AwaitableExecute: TypeAlias = "Callable[[str, str | None], Awaitable[str | None]]"

# The name is that of no other savepoint of the transaction: a savepoint with the same name would hide it.
_BEGIN: Final = "SAVEPOINT asyncrunner_submit"
_UNDO: Final = "ROLLBACK TO SAVEPOINT asyncrunner_submit"
_KEEP: Final = "RELEASE SAVEPOINT asyncrunner_submit"
_DATABASE: Final = "SELECT CAST(current_database() AS text)"

_KEY_EXISTS: Final = "AR001"
_OTHER_SERVER: Final = "AR004"
_OTHER_VERSION: Final = "AR005"
_NO_TRANSACTION: Final = "25P01"
_ABORTED: Final = "25P02"
_NO_SCHEMA: Final = ("3F000", "42883", "42P01")
_LOST: Final = ("OperationalError", "ConnectionDoesNotExistError")


class PostgresTransactionalInsert:
    """The insertion of items in a caller's transaction, on a connection to the database of the URL *location*.

    The caller's connection is of asyncpg, psycopg, SQLAlchemy or Django. The driver of the connection is the only one that is
    imported.
    """

    def __init__(self, location: str, clock: Clock) -> None:
        self._address = parse_address(location)
        self._clock = None if type(clock) is SystemClock else clock

    def insert_in(
        self,
        connection: object,
        batch: str,
        handler: str,
        options: BatchOptions,
        entries: Sequence[NewItem],
        *,
        on_change: OnKnownKey,
    ) -> tuple[int, Added] | Awaitable[tuple[int, Added]]:
        """Add items, see ``TransactionalInsert.insert_in``. If the connection's calls are awaited, the result is an awaitable."""
        fields: dict[str, object] = {
            "batch": batch,
            "handler": handler,
            "options": msgspec.json.encode(options).decode(),
            "server": identity_of(self._address),
            "version": VERSION,
            "notify": True,
            **chunk_fields(entries, None if self._clock is None else self._clock.now()),
        }
        return _run_on(connection, _insertion(self._address, entries, on_change, fields))


# --- the statements ---------------------------------------------------------------------------------------------------


def _insertion(
    address: Address, entries: Sequence[NewItem], on_change: OnKnownKey, fields: dict[str, object]
) -> Steps[tuple[int, Added]]:
    """Add a chunk after a savepoint. After an error, the caller's transaction is as it was before the savepoint."""
    try:
        yield _BEGIN, None
    except Exception as error:
        raise _translated(error, address) from error
    try:
        answer, added = yield from _adding_or_comparing(address.schema, entries, on_change, fields)
        _check_database(address, answer.database)
    except BaseException as error:
        database = yield from _undoing()
        if not isinstance(error, Exception) or isinstance(error, AsyncRunnerError):
            raise
        raise _translated(error, address, database) from error
    yield _KEEP, None
    return answer.batch_id, added


def _adding_or_comparing(
    schema: str, entries: Sequence[NewItem], on_change: OnKnownKey, fields: dict[str, object]
) -> Steps[tuple[Answer, Added]]:
    try:
        text = yield statement(schema, "submit_items"), encoded(**fields, mode=FIRST_MODES[on_change])
    except Exception as error:
        if _sqlstate(error) != _KEY_EXISTS:
            raise
        yield _UNDO, None
        return (yield from adding(schema, entries, on_change, fields))
    answer = decode_answer(text or "")
    return answer, answer.added(entries)


def _undoing() -> Steps[str | None]:
    """Undo the changes since the savepoint; return the name of the database."""
    try:
        yield _UNDO, None
        yield _KEEP, None
        return (yield _DATABASE, None)
    except Exception:  # noqa: BLE001 - the connection is lost, so the server undoes the whole transaction
        return None


def _check_database(address: Address, database: str) -> None:
    """Raise ConfigurationError if *database* is not the one that the URL names.

    A store of this process that was open on the URL knows the identity of its database, which the server has compared.
    """
    names = [unquote(urlsplit(url).path).removeprefix("/") for url in (address.dsn, address.direct or "")]
    if identity_of(address) is None and any(names) and database not in names:
        raise ConfigurationError(_other_database(address, f"on the database {database!r}"))


def _other_database(address: Address, place: str) -> str:
    return (
        f"the connection is open {place}, but the items are in {address.shown}, schema {address.schema!r}; a transaction covers "
        "one database: open the connection on that database, and keep your own tables there. A runner or a client creates the "
        "schema when it is started"
    )


def _translated(error: Exception, address: Address, database: str | None = None) -> Exception:
    """Return the error to raise for an error of the driver; *error* itself if the server did not report it."""
    code = _sqlstate(error)
    if code is None and (isinstance(error, OSError) or type(error).__name__ in _LOST):
        return StoreUnavailable(f"{address.shown}: your connection is lost ({error}). Nothing was stored")
    if code is None:
        return error
    if code == _NO_TRANSACTION:
        return ConfigurationError(
            "submit_in() needs an open transaction, but this connection commits each statement automatically; begin a "
            "transaction first, or use submit()"
        )
    if code == _OTHER_SERVER:
        return ConfigurationError(_other_database(address, f"on the database {database!r} of another server"))
    if code in _NO_SCHEMA:
        return ConfigurationError(
            _other_database(address, f"on the database {database!r}, which has no such schema of asyncrunner")
        )
    if code == _OTHER_VERSION:
        version = int(re.findall(r"the schema has version (\d+)", str(error))[0])
        return other_version(address, version)
    text = f"{address.shown}: {description(code, error)}"
    if code == _ABORTED:
        text = f"{address.shown}: an earlier error has aborted your transaction"
    if code == _ABORTED or is_temporary(code):
        return StoreUnavailable(f"{text}; roll back and try again. Nothing was stored")
    return StoreError(f"{text}. Nothing was stored")


def _sqlstate(error: BaseException | None) -> str | None:
    """Return the code of the server's error that a driver's error has, or an error that wraps it."""
    while error is not None:
        for holder in (error, getattr(error, "orig", None)):
            code: object = getattr(holder, "sqlstate", None) or getattr(holder, "pgcode", None)
            if isinstance(code, str):
                return code
        error = error.__cause__
    return None


# --- the drivers ------------------------------------------------------------------------------------------------------


def _run_on(connection: Any, steps: Steps[T]) -> T | Awaitable[T]:
    """Run the steps on a connection of any kind; the result is an awaitable if the connection's calls are awaited."""
    packages = {base.__module__.partition(".")[0] for base in type(connection).__mro__}
    if hasattr(connection, "ensure_connection"):
        return _run(steps, _execute_of_django(connection))
    if "sqlalchemy" in packages and hasattr(connection, "run_sync"):
        awaitable: Awaitable[T] = connection.run_sync(_run_on_sqlalchemy, steps)
        return awaitable
    if "sqlalchemy" in packages and hasattr(connection, "execute"):
        return _run_on_sqlalchemy(connection, steps)
    if "psycopg" in packages and hasattr(connection, "cursor"):
        is_async = hasattr(connection, "__aenter__")
        return (
            _run_async(steps, _execute_of_async_psycopg(connection)) if is_async else _run(steps, _execute_of_psycopg(connection))
        )
    if "asyncpg" in packages and hasattr(connection, "is_in_transaction"):
        return _run_async(steps, lambda text, argument: connection.fetchval(text, *([] if argument is None else [argument])))
    raise ConfigurationError(
        f"submit_in() takes a connection of asyncpg, psycopg, SQLAlchemy or Django, not {type(connection).__name__}"
    )


def _run(steps: Steps[T], execute: Execute) -> T:
    try:
        call = next(steps)
        while True:
            try:
                value = execute(*call)
            except BaseException as error:  # noqa: BLE001 - the steps undo what they did, and raise it
                call = steps.throw(error)
            else:
                call = steps.send(value)
    except StopIteration as end:
        result: T = end.value
        return result


async def _run_async(steps: Steps[T], execute: AwaitableExecute) -> T:
    try:
        call = next(steps)
        while True:
            try:
                value = await execute(*call)
            except BaseException as error:  # noqa: BLE001 - the steps undo what they did, and raise it
                call = steps.throw(error)
            else:
                call = steps.send(value)
    except StopIteration as end:
        result: T = end.value
        return result


def _execute_of_psycopg(connection: Any) -> Execute:
    from psycopg import Cursor
    from psycopg.rows import tuple_row

    def execute(text: str, argument: str | None) -> str | None:
        with Cursor(connection, row_factory=tuple_row) as cursor:
            cursor.execute(*_with_placeholder(text, argument))
            return _value(cursor.fetchone() if cursor.description else None)

    return execute


def _execute_of_async_psycopg(connection: Any) -> AwaitableExecute:
    from psycopg import AsyncCursor
    from psycopg.rows import tuple_row

    async def execute(text: str, argument: str | None) -> str | None:
        async with AsyncCursor(connection, row_factory=tuple_row) as cursor:
            await cursor.execute(*_with_placeholder(text, argument))
            return _value(await cursor.fetchone() if cursor.description else None)

    return execute


def _execute_of_sqlalchemy(connection: Any) -> Execute:
    """Return how to run statements on a Connection, or on the connection of a Session."""
    from sqlalchemy import text as clause

    if not hasattr(connection, "exec_driver_sql"):
        connection = connection.connection()
    if connection.dialect.name != "postgresql":
        raise ConfigurationError(
            f"the SQLAlchemy connection is open on {connection.dialect.name}, but the items are on PostgreSQL"
        )

    def execute(text: str, argument: str | None) -> str | None:
        result = connection.execute(clause(text.replace("$1", ":request")), {} if argument is None else {"request": argument})
        return _value(result.fetchone() if result.returns_rows else None)

    return execute


def _execute_of_django(wrapper: Any) -> Execute:
    """Return how to run statements on Django's connection wrapper, ``django.db.connection``.

    Raises ConfigurationError for another database, and outside of ``transaction.atomic()``; Django's
    TransactionManagementError if an earlier error has doomed the transaction.
    """
    if wrapper.vendor != "postgresql":
        raise ConfigurationError(
            f"the Django connection {wrapper.alias!r} is open on {wrapper.vendor}, but the items are on PostgreSQL; give the "
            "connection of that database, as in connections['jobs']"
        )
    if not wrapper.in_atomic_block:
        raise ConfigurationError(
            "submit_in() needs an open transaction, but Django commits each statement automatically here; call it inside "
            "`with transaction.atomic():`, or use submit()"
        )
    wrapper.validate_no_broken_transaction()

    def execute(text: str, argument: str | None) -> str | None:
        with wrapper.cursor() as cursor:
            cursor.execute(*_with_placeholder(text, argument))
            return _value(cursor.fetchone() if cursor.description else None)

    return execute


def _run_on_sqlalchemy(connection: Any, steps: Steps[T]) -> T:
    return _run(steps, _execute_of_sqlalchemy(connection))


def _with_placeholder(text: str, argument: str | None) -> tuple[Any, tuple[str] | None]:
    return text.replace("$1", "%s"), None if argument is None else (argument,)


def _value(row: Sequence[Any] | None) -> str | None:
    return None if row is None else row[0]
