"""Split the bytes of an input into records: lines, rows of a table, or the elements of a JSON array. No I/O."""

from __future__ import annotations

import codecs
import csv
import zlib
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Final, NamedTuple

import msgspec

from asyncrunner.errors import ItemNotStorable
from asyncrunner.serialization.codec import MAX_BYTES

FORMATS: Final = ("txt", "jsonl", "json", "csv", "tsv")
_GZIP_MAGIC: Final = b"\x1f\x8b"
_GZIP_BITS: Final = 31  # for zlib: a gzip header and checksum
_MAX_INFLATED_BYTES: Final = 1 << 20  # per step
_DELIMITERS: Final = {"csv": ",", "tsv": "\t"}


class Record(NamedTuple):
    """A line (txt, jsonl), an element (json) or a row (csv, tsv) of an input.

    ``first`` and ``last``: the numbers of its lines, from 1. ``row`` has a value for each column of a table, and is None
    in the other formats. ``problem``: why the record cannot become an item.
    """

    first: int
    last: int
    text: str
    row: dict[str, str] | None = None
    problem: str | None = None

    @property
    def place(self) -> str:
        """The numbers of the record's lines as text: ``line 3`` or ``lines 3 to 5``."""
        return f"line {self.first}" if self.first == self.last else f"lines {self.first} to {self.last}"


def records(blocks: Iterable[bytes], name: str, item_format: str, *, saves: bool = True) -> Iterator[Record]:
    """Yield the records of an input, which may be compressed with gzip; *name* is its name in messages.

    *saves*: whether the caller stores the records, so that messages report that accepted items are saved.

    Raises ItemNotStorable where the rest cannot be read: a header that is not usable, a quoted field that is not closed,
    a compressed file that ends too early, or a JSON document that is malformed.
    """
    saved = ": accepted items are saved" if saves else ""
    blocks = _decompressed(blocks, name, saved)
    if item_format == "json":
        return _elements(b"".join(blocks), name)
    lines = _Lines(blocks)
    return _rows(lines, name, _DELIMITERS[item_format], saved) if item_format in _DELIMITERS else _text_lines(lines)


# --- bytes and lines -----------------------------------------------------------------------------------------------------


def _decompressed(blocks: Iterable[bytes], name: str, saved: str) -> Iterator[bytes]:
    """Yield the blocks, decompressed if the first bytes are those of gzip: no text in UTF-8 begins with them."""
    blocks = iter(blocks)
    start = b""
    for block in blocks:
        start += block
        if len(start) >= len(_GZIP_MAGIC):
            break
    if not start.startswith(_GZIP_MAGIC):
        yield start
        yield from blocks
        return
    inflater = zlib.decompressobj(_GZIP_BITS)
    is_open = True  # a member has begun and not ended
    try:
        for block in chain([start], blocks):
            data = block
            while data:
                if not is_open:
                    data = data.lstrip(b"\0")  # padding is allowed after a member
                    if not data:
                        break
                    inflater, is_open = zlib.decompressobj(_GZIP_BITS), True
                yield inflater.decompress(data, _MAX_INFLATED_BYTES)
                data = inflater.unconsumed_tail
                if inflater.eof:
                    is_open, data = False, inflater.unused_data
    except zlib.error as error:
        raise _unreadable(f"{name} is damaged: {error}", saved) from error
    if is_open:
        raise _unreadable(f"{name} ends in the middle of its gzip data", saved)


def _unreadable(problem: str, saved: str) -> ItemNotStorable:
    return ItemNotStorable(f"{problem}. Get a complete copy of the file and run again{saved}")


def _split(blocks: Iterable[bytes]) -> Iterator[bytes]:
    r"""Yield lines with their ends, which are ``\n``, ``\r\n`` or ``\r``."""
    parts: list[bytes] = []  # of a line that has not ended yet
    held_back = b""  # a \r at the end of a block: the next block may begin with its \n
    for each in blocks:
        block = held_back + each
        held_back = b"\r" if block.endswith(b"\r") else b""
        lines = block[: len(block) - len(held_back)].splitlines(keepends=True)
        if not lines:
            continue
        rest = b"" if lines[-1].endswith((b"\n", b"\r")) else lines.pop()
        if lines and parts:
            parts.append(lines[0])
            lines[0] = b"".join(parts)
            parts.clear()
        yield from lines
        parts.append(rest)
    parts.append(held_back)
    if any(parts):
        yield b"".join(parts)


class _Lines:
    """An iterator of text lines with their ends.

    ``number``: the number of the newest line. ``undecodable``: the number and the problem of the newest line that is not
    UTF-8. ``has_ended``: whether all lines were read.
    """

    def __init__(self, blocks: Iterable[bytes]) -> None:
        self._lines = _split(blocks)
        self.number = 0
        self.undecodable = 0, ""
        self.has_ended = False

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        try:
            line = next(self._lines)
        except StopIteration:
            self.has_ended = True
            raise
        self.number += 1
        if self.number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        try:
            return line.decode()
        except UnicodeDecodeError as error:
            self.undecodable = self.number, f"not UTF-8 text ({error.reason}); convert the file to UTF-8"
            return line.decode(errors="replace")

    def problem_since(self, first: int) -> str | None:
        """Return the problem of a line from *first* on that is not UTF-8, or None."""
        number, problem = self.undecodable
        return problem if number >= first else None


# --- the formats ---------------------------------------------------------------------------------------------------------


def _text_lines(lines: _Lines) -> Iterator[Record]:
    for line in lines:
        if line.strip():
            number = lines.number
            yield Record(number, number, line.rstrip("\r\n"), problem=lines.problem_since(number))


def _rows(lines: _Lines, name: str, delimiter: str, saved: str) -> Iterator[Record]:
    # One reader for the whole stream: only the reader knows whether a quotation mark opens a field or is a part of it.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_BYTES))
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        first, problem, cells = lines.number + 1, None, list[str]()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if lines.has_ended:
                raise ItemNotStorable(
                    f"{name}, line {first}: a quoted field is not closed before the end of the file. Close it and run again"
                    f"{saved}"
                ) from error
            problem = str(error)
        if problem is None and (not cells or (len(cells) == 1 and cells[0].isspace())):
            continue  # an empty line
        problem = lines.problem_since(first) or problem
        if header is None:
            problem = problem or _problem_of_header(cells)
            if problem is not None:
                raise ItemNotStorable(f"{name}, line {first}: {problem}. Correct the header and run again")
            header = cells
            continue
        if problem is None and len(cells) != len(header):
            problem = f"{len(cells)} fields, but the header has {len(header)}"
        row = {} if problem is not None else dict(zip(header, cells, strict=True))
        yield Record(first, lines.number, delimiter.join(cells), row, problem)


def _problem_of_header(cells: list[str]) -> str | None:
    if len(set(cells)) == len(cells) and all(cells):
        return None
    return f"the header {','.join(cells)} has an empty or repeated name"


def _elements(data: bytes, name: str) -> Iterator[Record]:
    """Yield the elements of a JSON array; any other document is one record."""
    data = data.removeprefix(codecs.BOM_UTF8)
    if not data.strip():
        raise ItemNotStorable(f"{name} is empty, not a JSON document. For a batch without items, write []")
    try:
        document = msgspec.json.decode(data, type=msgspec.Raw)
        is_array = data.lstrip().startswith(b"[")
        parts = msgspec.json.decode(document, type=list[msgspec.Raw]) if is_array else [document]
    except (msgspec.DecodeError, RecursionError) as error:
        raise _malformed(data, name, error) from error
    place, number = 0, 1
    for element in map(bytes, parts):
        begin = data.index(element, place)
        number += data.count(b"\n", place, begin)
        place = begin + len(element)
        last = number + element.count(b"\n")
        try:
            yield Record(number, last, element.decode())
        except UnicodeDecodeError as error:
            yield Record(number, last, "", problem=f"not UTF-8 text ({error.reason}); convert the file to UTF-8")
        number = last


def _malformed(data: bytes, name: str, error: Exception) -> ItemNotStorable:
    _, _, offset = str(error).rpartition("(byte ")
    end = int(offset.rstrip(")")) if offset.rstrip(")").isdecimal() else len(data.rstrip())
    hint = "; for one JSON document per line, add --format jsonl" if "trailing characters" in str(error) else ""
    line = data.count(b"\n", 0, end) + 1
    return ItemNotStorable(f"{name}, line {line}: not JSON ({error}){hint}. No item of the file was accepted")
