"""Items as JSON Lines, CSV or Parquet, written as they come: memory does not grow with their number."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Protocol, cast

import msgspec

from asyncrunner.errors import ConfigurationError
from asyncrunner.text import safe_text
from asyncrunner.views import ItemRecord

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["FORMATS", "ItemWriter", "format_of", "writer_of"]

_ROW_GROUP: Final = 20_000
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet would run
_NUMBER: Final = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")  # of JSON; a spreadsheet only reads it
_FIELDS: Final = ItemRecord._fields
_JSON: Final = frozenset({"payload", "result", "checkpoint"})
_NOT_PLAIN: Final = re.compile(r"[^\x20-\x7e]")


class ItemWriter(Protocol):
    """Takes items page by page."""

    def write(self, page: Sequence[ItemRecord]) -> None:
        """Write them out."""
        ...

    def close(self) -> None:
        """Write what is left; what it writes to stays open."""
        ...


def format_of(name: str | None, target: Path | None) -> str:
    """The format of that name, or the one that *target* is named after; jsonl if nothing tells. Raises ConfigurationError."""
    found = name or (target.suffix[1:].lower() if target is not None else "") or "jsonl"
    if found not in FORMATS:
        raise ConfigurationError(f"format {found!r}: give one of {', '.join(FORMATS)}")
    return found


def writer_of(name: str, stream: BinaryIO, *, is_terminal: bool = False) -> ItemWriter:
    """Raises ConfigurationError where what the format needs is not installed, or cannot be shown on a terminal."""
    return FORMATS[name](stream, is_terminal)


class _JsonLines:
    """A JSON object a line, payload and result as the JSON that they are."""

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
        for name in ("payload", "result", "checkpoint"):
            values[name] = _json(values[name])
        return self._encode(values) + b"\n"

    def close(self) -> None:
        pass


def _json(text: str | None) -> Any:
    """A stored JSON text as what it is; one that is none, as after an edit by hand, as a text."""
    if text is None:
        return None
    try:
        raw: msgspec.Raw = msgspec.json.decode(text, type=msgspec.Raw)
    except msgspec.DecodeError:
        return text
    return msgspec.json.decode(text) if "\n" in text else raw


def _ascii(line: bytes) -> bytes:
    """The same JSON without anything that a terminal obeys."""

    def escaped(found: re.Match[str]) -> str:
        units = found[0].encode("utf-16-be")
        return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))

    return _NOT_PLAIN.sub(escaped, line.decode()).encode()


class _Csv:
    """A header and a row an item; payload and result as JSON text. What a spreadsheet would run gets an apostrophe in front."""

    def __init__(self, stream: BinaryIO, is_terminal: bool) -> None:
        self._stream = stream
        self._cell: Callable[[str, Any], Any] = _shown_cell if is_terminal else _cell
        self._write_rows([ItemRecord._fields])

    def write(self, page: Sequence[ItemRecord]) -> None:
        self._write_rows([[self._cell(name, value) for name, value in zip(_FIELDS, record, strict=True)] for record in page])

    def _write_rows(self, rows: Sequence[Sequence[Any]]) -> None:
        text = io.StringIO(newline="")
        csv.writer(text).writerows(rows)
        self._stream.write(text.getvalue().encode("utf-8", "backslashreplace"))

    def close(self) -> None:
        pass


def _cell(name: str, value: Any) -> Any:
    if not isinstance(value, str) or not value.startswith(_FORMULA) or (name in _JSON and _NUMBER.fullmatch(value)):
        return value
    return f"'{value}"


def _shown_cell(name: str, value: Any) -> Any:
    return safe_text(_cell(name, value), limit=2000) if isinstance(value, str) else value


class _Parquet:
    """A column a field, payload and result as JSON text; in groups of 20,000 rows."""

    def __init__(self, stream: BinaryIO, is_terminal: bool) -> None:
        if is_terminal:
            raise ConfigurationError("parquet is no text; give a file to export to")
        arrow, parquet = _pyarrow()
        numbers = ("attempts", "crashes", "priority")
        self._schema = arrow.schema([(name, arrow.int64() if name in numbers else arrow.string()) for name in ItemRecord._fields])
        self._table = arrow.Table
        self._writer = parquet.ParquetWriter(stream, self._schema)
        self._waiting: list[ItemRecord] = []

    def write(self, page: Sequence[ItemRecord]) -> None:
        self._waiting += page
        if len(self._waiting) >= _ROW_GROUP:
            self._write_group()

    def _write_group(self) -> None:
        columns = list(zip(*self._waiting, strict=True)) or [()] * len(ItemRecord._fields)
        self._waiting = []
        self._writer.write_table(self._table.from_arrays([list(column) for column in columns], schema=self._schema))

    def close(self) -> None:
        if self._waiting:
            self._write_group()
        self._writer.close()


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow as pa  # type: ignore[import-not-found, import-untyped, unused-ignore]  # pyright: ignore
        import pyarrow.parquet as pq  # type: ignore[import-not-found, import-untyped, unused-ignore]  # pyright: ignore
    except ImportError as error:
        raise ConfigurationError(
            "the format parquet needs pyarrow, which is not installed; pip install 'asyncrunner[parquet]', or export jsonl"
        ) from error
    return cast("Any", pa), cast("Any", pq)


FORMATS: Final[dict[str, Callable[[BinaryIO, bool], ItemWriter]]] = {"jsonl": _JsonLines, "csv": _Csv, "parquet": _Parquet}
