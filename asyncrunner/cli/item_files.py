"""Read items from a file, a pipe or stdin, lazily and without blocking the event loop."""

from __future__ import annotations

import math
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar, cast

import msgspec

from asyncrunner.batch.source.background_iterator import BackgroundIterator
from asyncrunner.batch.source.reader import ItemSource
from asyncrunner.cli.item_formats import FORMATS, Record, records
from asyncrunner.errors import AsyncRunnerError, ConfigurationError, ItemError, ItemNotStorable
from asyncrunner.serialization.codec import Codec
from asyncrunner.serialization.descriptions import name_of
from asyncrunner.serialization.rows import empty_as_none, takes_fields, unknown_names
from asyncrunner.text.escaping import counted, safe_text
from asyncrunner.text.suggestions import did_you_mean
from asyncrunner.text.validation import checked_choice

V = TypeVar("V")
ON_BAD_INPUT: Final = ("stop", "skip", "fail")
_OTHER_SUFFIXES: Final = {"ndjson": "jsonl", "jl": "jsonl", "text": "txt"}
_STDIN: Final = ("-", "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0")
_BLOCK_BYTES: Final = 1 << 16
_DELIMITERS: Final = {";": "semicolons", ",": "commas", "\t": "tabs", "|": "vertical bars"}
_MAX_NAMED: Final = 5  # bad records that a message names
_MAX_CLOSE_SECONDS: Final = 0.1  # a thread that waits for a terminal or a pipe cannot be stopped, and ends with the process


def is_stdin(source: str) -> bool:
    """Return whether *source* names the stdin of this process."""
    return source in _STDIN


def read_items(
    source: str,
    item_format: str | None,
    codec: Codec[Any],
    *,
    on_bad_input: str = "stop",
    saves: bool = True,
    fields: Sequence[str] | None = None,
    limit: int | None = None,
) -> ItemFile:
    """Open a file, a pipe, or stdin for ``-``, whose records become items of the type of *codec*.

    *fields*: the names of each item to use; None for all. *limit*: read only the first *limit* items. *saves* is False
    for a dry run, whose messages must not report that items are saved. Raises ConfigurationError for a source that cannot
    be opened, and for a format that is unknown.
    """
    if item_format is not None:
        item_format = item_format.lower()
        checked_choice("--format", item_format, FORMATS)
    checked_choice("--on-bad-input", on_bad_input, ON_BAD_INPUT)
    if source == "-":
        return ItemFile(_stdin_descriptor(), "stdin", item_format or "txt", codec, on_bad_input, saves, fields, limit)
    path = Path(source)
    try:
        is_folder, is_file = path.is_dir(), path.is_file() and not _is_descriptor(source)
        if is_folder or not path.exists():
            problem = "is a folder" if is_folder else "does not exist"
            raise ConfigurationError(
                f"{path.absolute()} {problem}; give a .txt, .jsonl, .json, .csv or .tsv file (also .gz), a pipe, or - for stdin"
            )
        file_format = item_format or _format_of(path, is_file=is_file)
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigurationError):
            raise
        raise ConfigurationError(f"{source} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    name = "stdin" if is_stdin(source) else source if _is_descriptor(source) else path.name
    return ItemFile(descriptor, name, file_format, codec, on_bad_input, saves, fields, limit)


def _stdin_descriptor() -> int:
    try:
        return sys.stdin.fileno()
    except (AttributeError, OSError, ValueError) as error:
        raise ConfigurationError("stdin is closed; give a file, or items on stdin") from error


def _is_descriptor(source: str) -> bool:
    # The name of an open descriptor, as in <(...), says nothing about the format.
    return source.startswith(("/dev/", "/proc/"))


def _format_of(path: Path, *, is_file: bool) -> str:
    name = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    by_name = name.suffix.removeprefix(".").lower()
    by_name = _OTHER_SUFFIXES.get(by_name, by_name)
    if by_name in FORMATS:
        return by_name
    if not is_file and not name.suffix:
        return "txt"
    problem = f"{name.suffix} is not a known format" if name.suffix else "the name has no suffix"
    raise ConfigurationError(f"{path.name}: {problem}; add --format {'|'.join(FORMATS)}")


class ItemFile(ItemSource[Any]):
    """The items of a file, a pipe or stdin, read once.

    *on_bad_input* is the rule for a bad record, which cannot become an item: "stop" raises ItemNotStorable, "skip"
    counts the lines of the record in ``skipped`` and names the first five records in ``problems``. "fail" acts like
    "stop", because the caller has called ``check()`` before.
    """

    def __init__(
        self,
        descriptor: int,
        name: str,
        item_format: str,
        codec: Codec[Any],
        on_bad_input: str,
        saves: bool,
        fields: Sequence[str] | None,
        limit: int | None,
    ) -> None:
        self._descriptor = descriptor
        self._format = item_format
        self._codec = codec
        self._is_empty_none = empty_as_none(codec.annotation)
        self._newest: Record | None = None
        self._unknown_names = unknown_names(codec.annotation)
        self._has_fields = bool(self._unknown_names(("",)))
        self._fields = fields
        self._limit = math.inf if limit is None else limit
        self._checked = False
        self._accepted = 0
        self._before_read: Callable[[], object] = lambda: None
        self.on_bad_input = on_bad_input
        self.name = name
        self._saves = saves
        self.skipped = 0
        self._skipped_records = 0  # a record of a table may have several lines
        self.problems: list[str] = []

    # --- reading -----------------------------------------------------------------------------------------------------

    async def __aiter__(self) -> AsyncIterator[Any]:
        # A thread that waits for a terminal or a pipe cannot be stopped. This thread is a daemon, so the program can exit.
        # os.read() takes no lock that the interpreter would wait for at exit.
        contents = records(self._blocks(), self.name, self._format, saves=self._saves)
        reader = BackgroundIterator(contents, name="asyncrunner input", is_grouped=True)
        self._before_read = reader.flush
        try:
            while newest := await reader.take():
                for record in newest:
                    self._newest = record
                    try:
                        item = self._item_of(record)
                    except Exception as error:  # noqa: BLE001 - a validator of a model may raise anything
                        self._refuse(record, _problem_of(error), error)
                    else:
                        yield item
                        self._accepted += 1
                        if self._accepted >= self._limit:
                            return
        finally:
            await reader.aclose(_MAX_CLOSE_SECONDS)

    def refuse(self, error: ItemError) -> None:
        """Raise *error* with the file and the line of the newest item; with "skip", count that line instead."""
        assert self._newest is not None, "no item was read"
        self._refuse(self._newest, str(error), error)

    def _refuse(self, record: Record, problem: str, error: Exception) -> None:
        if isinstance(error, _UnsuitableFormat) or self.on_bad_input != "skip":
            self._raise(record, problem, error)
        self.skipped += record.last - record.first + 1
        self._skipped_records += 1
        if len(self.problems) < _MAX_NAMED:
            self.problems.append(f"{record.place}: {problem}")

    def _raise(self, record: Record, problem: str, error: Exception) -> NoReturn:
        message = f"{self.name}, {record.place}: {problem}{self._delimiter_hint(record)}"
        if not isinstance(error, _UnsuitableFormat):
            saved = ": the items before it are saved;" if self._saves and self._accepted else ","
            message += f". Fix the line and run again{saved} or add --on-bad-input skip"
        if isinstance(error, ItemError):  # the error keeps its type and its facts
            error.args = (message, *error.args[1:])
            raise error
        raise ItemNotStorable(message) from error

    def _delimiter_hint(self, record: Record) -> str:
        """Return a hint, as the end of a message, if the table seems to have another delimiter than its format."""
        if record.row is None or len(record.row) != 1:
            return ""
        (name,) = record.row
        used = max(_DELIMITERS, key=name.count)
        if not name.count(used):
            return ""
        advice = (
            f"add --format {'csv' if used == ',' else 'tsv'}" if used in ",\t" else "save it with commas, or as .tsv with tabs"
        )
        return (
            f". The table has one column, {safe_text(repr(name), limit=80)}: it seems to be separated by {_DELIMITERS[used]}, "
            f"and {self._format} is separated by {_DELIMITERS[',' if self._format == 'csv' else chr(9)]}; {advice}"
        )

    def _item_of(self, record: Record) -> Any:
        if record.problem is not None:
            raise ValueError(record.problem)
        if record.row is not None:
            cells = record.row if self._fields is None else self._selected(record.row)
            if not self._checked:
                self._checked = True
                self._check_names(cells, _UnsuitableFormat)  # every row has the same columns
            row = {name: None if cell == "" and self._is_empty_none(name) else cell for name, cell in cells.items()}
            return self._codec.from_strings(row)
        if self._format != "txt":
            return self._codec.from_json(self._checked_json(record.text))
        if not self._checked:
            self._check_text(record.text)
        return self._codec.from_strings(record.text)

    def _checked_json(self, text: str) -> str:
        """Return the JSON of the item, with only the names of --fields. Raises ItemNotStorable for names that would be lost."""
        if self._fields is None and not self._has_fields:
            return text
        try:
            value: object = msgspec.json.decode(text)
        except (msgspec.DecodeError, ValueError, RecursionError):
            return text  # its conversion to an item reports what is wrong
        if not isinstance(value, dict):
            return text
        names = cast("dict[str, object]", value)
        if self._fields is not None:
            names = self._selected(names)
            text = msgspec.json.encode(names).decode()
        self._check_names(names, ItemNotStorable)
        return text

    def _selected(self, names: Mapping[str, V]) -> dict[str, V]:
        assert self._fields is not None, "called only with --fields"
        missing = [name for name in self._fields if name not in names]
        if missing:
            raise ItemNotStorable(f"there is no {missing[0]!r}, which --fields names; {did_you_mean(missing[0], names)}")
        return {name: names[name] for name in self._fields}

    def _check_names(self, names: Mapping[str, object], error: type[ItemNotStorable]) -> None:
        lost = self._unknown_names(names)
        if lost:
            kept = ",".join(name for name in names if name not in lost)
            taken = f"{self._codec.owner} takes {name_of(self._codec.annotation)}"
            others = f", let the handler take a dict, or use only the others with --fields {kept}"
            raise error(
                f"{', '.join(map(repr, lost))} would be lost: {taken}, which has no such field. Add the field"
                f"{others if kept else ', or let the handler take a dict'}"
            )

    def _check_text(self, text: str) -> None:
        """Raise _UnsuitableFormat if the items must have named fields, so that no line of text is an item."""
        self._checked = True
        if takes_fields(self._codec.annotation, text):
            looks = "like JSON" if text.lstrip().startswith(("{", "[")) else "like plain text"
            taken = f"{self._codec.owner} takes {name_of(self._codec.annotation)}"
            raise _UnsuitableFormat(
                f"the line looks {looks}, and {taken}. For JSON lines, add --format jsonl; for a table, --format csv"
            )

    def _blocks(self) -> Iterator[bytes]:
        try:
            while True:
                self._before_read()
                block = os.read(self._descriptor, _BLOCK_BYTES)
                if not block:
                    return
                yield block
        except OSError as error:
            error.filename = self.name
            raise
        finally:
            if self._descriptor != 0:
                os.close(self._descriptor)

    def skipped_lines(self) -> list[str]:
        """Return lines of text about the records that were skipped; no lines if there were none."""
        if not self.skipped:
            return []
        more = self._skipped_records - len(self.problems)
        return [
            f"{counted(self.skipped, 'bad line')} of {safe_text(self.name)} skipped:",
            *(f"  {problem}" for problem in self.problems),
            *([f"  and {more:,} more"] if more > 0 else []),
        ]

    # --- checking ----------------------------------------------------------------------------------------------------

    def check_first(self, accept: Callable[[Any], object]) -> None:
        """Read the first record of a file, before a run creates a database for it, and call *accept* with its item.

        Raises as the run would, unless bad records are skipped. A pipe or a terminal is not read.
        """
        if self.on_bad_input == "skip" or not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
            return
        descriptor, begin = self._descriptor, os.lseek(self._descriptor, 0, os.SEEK_CUR)
        self._descriptor = os.dup(descriptor)
        try:
            for record in records(self._blocks(), self.name, self._format, saves=self._saves):
                try:
                    accept(self._item_of(record))
                except Exception as error:  # noqa: BLE001 - a validator of a model may raise anything
                    self._raise(record, _problem_of(error), error)
                break
        finally:
            self._descriptor = descriptor
            os.lseek(descriptor, begin, os.SEEK_SET)

    def check(self, accept: Callable[[Any], object]) -> None:
        """Read the whole input, before a run reads it again, and call *accept* with each item.

        A pipe is copied to a temporary file first. Raises ItemNotStorable, which names the first bad records, if a
        record cannot become an item, or if *accept* raises ItemError for its item.
        """
        descriptor = self._descriptor
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            descriptor = self._descriptor = _copied(descriptor)
        begin = os.lseek(descriptor, 0, os.SEEK_CUR)
        self._descriptor = os.dup(descriptor)
        bad = 0
        count = 0
        problems: list[str] = []
        for record in records(self._blocks(), self.name, self._format, saves=False):
            try:
                accept(self._item_of(record))
                count += 1
                if count >= self._limit:
                    break
            except _UnsuitableFormat as error:
                self._raise(record, str(error), error)
            except Exception as error:  # noqa: BLE001 - a validator of a model, or a key function, may raise anything
                bad += 1
                if len(problems) < _MAX_NAMED:
                    hint = "" if problems else self._delimiter_hint(record)
                    problems.append(f"  {record.place}: {_problem_of(error)}{hint}")
        self._descriptor = descriptor
        os.lseek(descriptor, begin, os.SEEK_SET)
        if bad:
            problems += [f"  and {bad - len(problems):,} more"] if bad > len(problems) else []
            raise ItemNotStorable(
                "\n".join(
                    [
                        f"{self.name}: {counted(bad, 'bad line')}, so no item of the input was accepted (--on-bad-input fail):",
                        *problems,
                        "Fix the lines and run again, or add --on-bad-input skip",
                    ]
                )
            )


class _UnsuitableFormat(ItemNotStorable):
    """An error for an input in a format of which no record can become an item."""


def _problem_of(error: Exception) -> str:
    is_message = isinstance(error, AsyncRunnerError | ValueError)
    return safe_text(error if is_message else f"its conversion to an item raised {error!r}", limit=500)


def _copied(descriptor: int) -> int:
    """Copy the unread data of *descriptor* to a temporary file without a name; return a descriptor of that file."""
    with tempfile.TemporaryFile() as copy, os.fdopen(os.dup(descriptor), "rb", buffering=0) as pipe:
        shutil.copyfileobj(pipe, copy)
        copy.flush()
        copy.seek(0)
        return os.dup(copy.fileno())
