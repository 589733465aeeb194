"""Write items as JSON Lines, CSV or Parquet, page by page, so that memory does not grow with the number of items."""

from __future__ import annotations

import csv
import io
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Protocol, cast

import msgspec

from asyncrunner.admin.exports.fields import JSON_NAMES, Fields, raw_json
from asyncrunner.errors import ConfigurationError
from asyncrunner.store.snapshot import ItemRecord
from asyncrunner.text.escaping import safe_text
from asyncrunner.text.timestamps import datetime_of
from asyncrunner.text.validation import checked_choice

if TYPE_CHECKING:
    from collections.abc import Callable

_ROW_GROUP_ITEMS: Final = 20_000
_FORMULA_STARTS: Final = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet executes a cell that starts with one of these

# A spreadsheet does not execute a JSON number, although it may start with "-".
_JSON_NUMBER: Final = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_MAX_COLUMNS: Final = 2000  # of a flattened CSV
_TIME_FIELDS: Final = frozenset({"created_at", "due_at", "started_at", "completed_at"})
_NUMBER_FIELDS: Final = frozenset({"attempts", "crashes", "priority", "put_offs"})
_NOT_PRINTABLE_ASCII: Final = re.compile(r"[^\x20-\x7e]")


class ItemWriter(Protocol):
    """A writer of one export format, which takes items page by page."""

    def write(self, page: Sequence[ItemRecord]) -> None:
        """Write *page*, or buffer it."""
        ...

    def close(self) -> None:
        """Write the buffered items and the end of the format. The stream stays open."""
        ...

    def discard(self) -> None:
        """Delete what the writer buffers, after an error. A call after ``close()`` does nothing."""
        ...


def format_of(name: str | None, target: Path | None) -> str:
    """Return the format *name*, else the format of *target*'s suffix, else ``jsonl``.

    Raises ConfigurationError if there is no such format.
    """
    export_format = name or (target.suffix[1:].lower() if target is not None else "") or "jsonl"
    return checked_choice("format", export_format, list(FORMATS))


def writer_of(
    name: str,
    stream: BinaryIO,
    *,
    is_terminal: bool = False,
    fields: Fields = Fields(),  # noqa: B008 - it is immutable
) -> ItemWriter:
    """Return a writer of the format *name* to *stream*; for a terminal, control characters are escaped.

    Raises ConfigurationError if the format's package is not installed, if the format is binary and *stream* is a
    terminal, or if the format cannot have the *fields*.
    """
    return FORMATS[name](stream, is_terminal, fields)


class _JsonLines:
    """A writer of one JSON object per line; payloads, result and checkpoint are nested JSON values."""

    def __init__(self, stream: BinaryIO, is_terminal: bool, fields: Fields) -> None:
        self._stream = stream
        self._is_terminal = is_terminal
        self._fields = fields
        self._encode = msgspec.json.Encoder().encode

    def write(self, page: Sequence[ItemRecord]) -> None:
        rows = map(_whole_row if self._fields == Fields() else self._fields.row_of, page)
        lines = b"".join(self._encode(row) + b"\n" for row in rows)
        if self._is_terminal:
            lines = b"".join(_ascii(line) + b"\n" for line in lines.split(b"\n")[:-1])
        self._stream.write(lines)

    def close(self) -> None:
        pass

    def discard(self) -> None:
        pass


def _whole_row(record: ItemRecord) -> dict[str, Any]:
    """Return ``Fields().row_of(record)`` in less time."""
    row = record._asdict()
    for name in JSON_NAMES:
        row[name] = raw_json(row[name])
    return row


def _ascii(line: bytes) -> bytes:
    """Escape every character of a JSON line that is not printable ASCII, so that the line cannot control a terminal."""

    def escape(match: re.Match[str]) -> str:
        units = match[0].encode("utf-16-be")
        return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))

    return _NOT_PRINTABLE_ASCII.sub(escape, line.decode()).encode()


class _Csv:
    """A writer of a header and one row per item; payloads, result and checkpoint are JSON text.

    A text that a spreadsheet would execute as a formula gets a leading apostrophe. A part of a JSON value is its text if it
    is a string, an empty cell if it is null or missing, and otherwise JSON.
    """

    def __init__(self, stream: BinaryIO, is_terminal: bool, fields: Fields) -> None:
        self._stream = stream
        self._is_terminal = is_terminal
        self._fields = fields
        self._write_rows([[self._shown(column) for column in fields.columns]])

    def write(self, page: Sequence[ItemRecord]) -> None:
        self._write_rows([self._cells(record) for record in page])

    def _cells(self, record: ItemRecord) -> list[Any]:
        row = self._fields.row_of(record) if any(field.path for field in self._fields.chosen) else {}
        return [
            self._shown(row[field.column] if field.path else getattr(record, field.name), is_json=field.name in JSON_NAMES)
            for field in self._fields.chosen
        ]

    def _shown(self, value: Any, *, is_json: bool = False) -> Any:
        cell = _cell(value, is_json=is_json)
        return safe_text(cell, limit=2000) if self._is_terminal and isinstance(cell, str) else cell

    def _write_rows(self, rows: Sequence[Sequence[Any]]) -> None:
        text = io.StringIO(newline="")
        csv.writer(text).writerows(rows)
        self._stream.write(text.getvalue().encode("utf-8", "backslashreplace"))

    def close(self) -> None:
        pass

    def discard(self) -> None:
        pass


class _FlatCsv(_Csv):
    """A writer of CSV with a column for each value in the JSON objects of all items.

    The header needs all columns, so the rows are kept in a temporary file until the last item is known.
    """

    def __init__(self, stream: BinaryIO, is_terminal: bool, fields: Fields) -> None:
        self._stream = stream
        self._is_terminal = is_terminal
        self._fields = fields
        self._columns: dict[str, list[str]] = {field.column: [] for field in fields.chosen}
        self._known: set[str] = set()
        self._rows = tempfile.TemporaryFile()  # noqa: SIM115 - close() closes it; nothing else can open it

    def write(self, page: Sequence[ItemRecord]) -> None:
        for record in page:
            row = {column: value for column, value in self._fields.row_of(record).items() if value is not None}
            for column in row:
                self._add(column)
            cells = {column: self._shown(value, is_json=False) for column, value in row.items()}
            self._rows.write(msgspec.json.encode(cells) + b"\n")

    def _add(self, column: str) -> None:
        if column in self._known:
            return
        self._known.add(column)
        names = (each.column for each in self._fields.chosen)
        self._columns[next(name for name in names if column == name or column.startswith((f"{name}.", f"{name}#")))].append(
            column
        )
        if len(self._known) > _MAX_COLUMNS:
            raise ConfigurationError(
                f"--flatten finds more than {_MAX_COLUMNS:,} columns, such as {safe_text(column, limit=80)!r}; choose some with "
                "--fields, or export jsonl"
            )

    def close(self) -> None:
        # A field that no item has, or that is no object in any item, has one column.
        columns = [column for field, found in self._columns.items() for column in (found or [field])]
        self._write_rows([[self._shown(column) for column in columns]])
        self._rows.seek(0)
        for line in self._rows:
            cells: dict[str, Any] = msgspec.json.decode(line)
            self._write_rows([[cells.get(column) for column in columns]])
        self._rows.close()

    def discard(self) -> None:
        self._rows.close()


def _csv(stream: BinaryIO, is_terminal: bool, fields: Fields) -> ItemWriter:
    return (_FlatCsv if fields.flatten else _Csv)(stream, is_terminal, fields)


def _cell(value: Any, *, is_json: bool) -> Any:
    if isinstance(value, msgspec.Raw):
        text = bytes(value).decode()
        if not text.startswith('"'):
            return None if text == "null" else text
        value = msgspec.json.decode(text)
    if not isinstance(value, str) or not value.startswith(_FORMULA_STARTS) or (is_json and _JSON_NUMBER.fullmatch(value)):
        return value
    return f"'{value}"


class _Parquet:
    """A writer of one column per field; times are timestamps in UTC, payloads, result and checkpoint are JSON text.

    A text that is no time, for example after a manual edit, becomes null. Rows are written in groups of about 20,000.
    """

    def __init__(self, stream: BinaryIO, is_terminal: bool, fields: Fields) -> None:
        if fields.flatten or any(field.path for field in fields.chosen):
            raise ConfigurationError("parquet has a column for each field, with JSON as text; export csv or jsonl for parts")
        if is_terminal:
            raise ConfigurationError("parquet is a binary format that a terminal cannot show; give a file to export to")
        arrow, parquet = _pyarrow()
        types = dict.fromkeys(_TIME_FIELDS, arrow.timestamp("us", tz="UTC")) | dict.fromkeys(_NUMBER_FIELDS, arrow.int64())
        self._schema = arrow.schema([(name, types.get(name, arrow.string())) for name in fields.columns])
        self._names = fields.columns
        self._table = arrow.Table
        self._writer = parquet.ParquetWriter(stream, self._schema)
        self._buffer: list[ItemRecord] = []

    def write(self, page: Sequence[ItemRecord]) -> None:
        self._buffer += page
        if len(self._buffer) >= _ROW_GROUP_ITEMS:
            self._write_group()

    def _write_group(self) -> None:
        columns = [[getattr(record, name) for record in self._buffer] for name in self._names]
        self._buffer = []
        values = [
            [datetime_of(text) for text in column] if name in _TIME_FIELDS else column
            for name, column in zip(self._names, columns, strict=True)
        ]
        self._writer.write_table(self._table.from_arrays(values, schema=self._schema))

    def close(self) -> None:
        if self._buffer:
            self._write_group()
        self._writer.close()

    def discard(self) -> None:
        self._buffer = []


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow as pa  # type: ignore[import-not-found, import-untyped, unused-ignore]  # pyright: ignore
        import pyarrow.parquet as pq  # type: ignore[import-not-found, import-untyped, unused-ignore]  # pyright: ignore
    except ImportError as error:
        raise ConfigurationError(
            "format parquet needs pyarrow, which is not installed; run `pip install 'asyncrunner[parquet]'`, or export jsonl"
        ) from error
    return cast("Any", pa), cast("Any", pq)


FORMATS: Final[dict[str, Callable[[BinaryIO, bool, Fields], ItemWriter]]] = {
    "jsonl": _JsonLines,
    "csv": _csv,
    "parquet": _Parquet,
}
