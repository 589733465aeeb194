"""Write items as JSON Lines, CSV or Parquet, page by page, so that memory does not grow with the number of items."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Protocol, cast

import msgspec

from asyncrunner.errors import ConfigurationError
from asyncrunner.store.snapshot import ItemRecord
from asyncrunner.text.escaping import safe_text
from asyncrunner.text.validation import checked_choice

if TYPE_CHECKING:
    from collections.abc import Callable

_ROW_GROUP_ITEMS: Final = 20_000
_FORMULA_STARTS: Final = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet executes a cell that starts with one of these

# A spreadsheet does not execute a JSON number, although it may start with "-".
_JSON_NUMBER: Final = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_FIELDS: Final = ItemRecord._fields
_JSON_FIELDS: Final = frozenset({"payload", "result", "checkpoint", "rerun_payload"})
_NOT_PRINTABLE_ASCII: Final = re.compile(r"[^\x20-\x7e]")


class ItemWriter(Protocol):
    """A writer of one export format, which takes items page by page."""

    def write(self, page: Sequence[ItemRecord]) -> None:
        """Write *page*, or buffer it."""
        ...

    def close(self) -> None:
        """Write the buffered items and the end of the format. The stream stays open."""
        ...


def format_of(name: str | None, target: Path | None) -> str:
    """Return the format *name*, else the format of *target*'s suffix, else ``jsonl``.

    Raises ConfigurationError if there is no such format.
    """
    export_format = name or (target.suffix[1:].lower() if target is not None else "") or "jsonl"
    return checked_choice("format", export_format, list(FORMATS))


def writer_of(name: str, stream: BinaryIO, *, is_terminal: bool = False) -> ItemWriter:
    """Return a writer of the format *name* to *stream*; for a terminal, control characters are escaped.

    Raises ConfigurationError if the format's package is not installed, or if the format is binary and *stream* is a
    terminal.
    """
    return FORMATS[name](stream, is_terminal)


class _JsonLines:
    """A writer of one JSON object per line; payloads, result and checkpoint are nested JSON values."""

    def __init__(self, stream: BinaryIO, is_terminal: bool) -> None:
        self._stream = stream
        self._is_terminal = is_terminal
        self._encode = msgspec.json.Encoder().encode

    def write(self, page: Sequence[ItemRecord]) -> None:
        lines = b"".join(self._line(record) for record in page)
        if self._is_terminal:
            lines = b"".join(_ascii(line) + b"\n" for line in lines.split(b"\n")[:-1])
        self._stream.write(lines)

    def _line(self, record: ItemRecord) -> bytes:
        values: dict[str, Any] = record._asdict()
        for name in _JSON_FIELDS:
            values[name] = _json(values[name])
        return self._encode(values) + b"\n"

    def close(self) -> None:
        pass


def _json(text: str | None) -> Any:
    """Return a stored JSON text as a value, or as a string if it is not valid JSON, for example after a manual edit."""
    if text is None:
        return None
    try:
        raw: msgspec.Raw = msgspec.json.decode(text, type=msgspec.Raw)
    except msgspec.DecodeError:
        return text
    return msgspec.json.decode(text) if "\n" in text else raw


def _ascii(line: bytes) -> bytes:
    """Escape every character of a JSON line that is not printable ASCII, so that the line cannot control a terminal."""

    def escape(match: re.Match[str]) -> str:
        units = match[0].encode("utf-16-be")
        return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))

    return _NOT_PRINTABLE_ASCII.sub(escape, line.decode()).encode()


class _Csv:
    """A writer of a header and one row per item; payloads, result and checkpoint are JSON text.

    A text that a spreadsheet would execute as a formula gets a leading apostrophe.
    """

    def __init__(self, stream: BinaryIO, is_terminal: bool) -> None:
        self._stream = stream
        self._cell: Callable[[str, Any], Any] = _terminal_cell if is_terminal else _cell
        self._write_rows([_FIELDS])

    def write(self, page: Sequence[ItemRecord]) -> None:
        self._write_rows([[self._cell(name, value) for name, value in zip(_FIELDS, record, strict=True)] for record in page])

    def _write_rows(self, rows: Sequence[Sequence[Any]]) -> None:
        text = io.StringIO(newline="")
        csv.writer(text).writerows(rows)
        self._stream.write(text.getvalue().encode("utf-8", "backslashreplace"))

    def close(self) -> None:
        pass


def _cell(name: str, value: Any) -> Any:
    if (
        not isinstance(value, str)
        or not value.startswith(_FORMULA_STARTS)
        or (name in _JSON_FIELDS and _JSON_NUMBER.fullmatch(value))
    ):
        return value
    return f"'{value}"


def _terminal_cell(name: str, value: Any) -> Any:
    return safe_text(_cell(name, value), limit=2000) if isinstance(value, str) else value


class _Parquet:
    """A writer of one column per field; payloads, result and checkpoint are JSON text.

    Rows are written in groups of about 20,000.
    """

    def __init__(self, stream: BinaryIO, is_terminal: bool) -> None:
        if is_terminal:
            raise ConfigurationError("parquet is a binary format that a terminal cannot show; give a file to export to")
        arrow, parquet = _pyarrow()
        numbers = ("attempts", "crashes", "priority", "put_offs")
        self._schema = arrow.schema([(name, arrow.int64() if name in numbers else arrow.string()) for name in _FIELDS])
        self._table = arrow.Table
        self._writer = parquet.ParquetWriter(stream, self._schema)
        self._buffer: list[ItemRecord] = []

    def write(self, page: Sequence[ItemRecord]) -> None:
        self._buffer += page
        if len(self._buffer) >= _ROW_GROUP_ITEMS:
            self._write_group()

    def _write_group(self) -> None:
        columns = list(zip(*self._buffer, strict=True)) or [()] * len(_FIELDS)
        self._buffer = []
        self._writer.write_table(self._table.from_arrays([list(column) for column in columns], schema=self._schema))

    def close(self) -> None:
        if self._buffer:
            self._write_group()
        self._writer.close()


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow as pa  # type: ignore[import-not-found, import-untyped, unused-ignore]  # pyright: ignore
        import pyarrow.parquet as pq  # type: ignore[import-not-found, import-untyped, unused-ignore]  # pyright: ignore
    except ImportError as error:
        raise ConfigurationError(
            "format parquet needs pyarrow, which is not installed; run `pip install 'asyncrunner[parquet]'`, or export jsonl"
        ) from error
    return cast("Any", pa), cast("Any", pq)


FORMATS: Final[dict[str, Callable[[BinaryIO, bool], ItemWriter]]] = {"jsonl": _JsonLines, "csv": _Csv, "parquet": _Parquet}
