"""Read items from a file or stdin, lazily and without blocking the event loop."""

from __future__ import annotations

import asyncio
import csv
import io
import os
import queue
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

from asyncrunner.errors import AsyncRunnerError, ConfigurationError, ItemNotStorable
from asyncrunner.serialization.codec import Codec
from asyncrunner.text.escaping import safe_text
from asyncrunner.text.validation import checked_choice

FORMATS: Final = ("txt", "jsonl", "csv")
_BLOCK_BYTES: Final = 1 << 16


def read_items(source: str, item_format: str | None, codec: Codec[Any]) -> AsyncIterator[Any]:
    """Return the items of a file, or of stdin for ``-``, converted to the type of *codec*. Raises ConfigurationError.

    The iterator raises ItemNotStorable, with the number of the line, when it reads a line that is not an item.
    """
    if item_format is not None:
        checked_choice("--format", item_format, FORMATS)
    if source == "-":
        return _parsed(sys.stdin.fileno(), "stdin", item_format or "txt", codec)
    path = Path(source)
    if not path.is_file():
        problem = "is a folder" if path.is_dir() else "does not exist"
        raise ConfigurationError(f"{path.absolute()} {problem}; give a .txt, .jsonl or .csv file, or - for stdin")
    file_format = item_format or path.suffix.removeprefix(".").lower()
    if file_format not in FORMATS:
        problem = f"{path.suffix} is not a known format" if path.suffix else "the name has no suffix"
        raise ConfigurationError(f"{path.name}: {problem}; add --format {'|'.join(FORMATS)}")
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    return _parsed(descriptor, path.name, file_format, codec)


async def _parsed(descriptor: int, name: str, item_format: str, codec: Codec[Any]) -> AsyncIterator[Any]:
    header: list[str] | None = None
    async for number, text in _records(descriptor, name, multiline=item_format == "csv"):
        try:
            if item_format == "csv":
                cells = next(csv.reader(io.StringIO(text, newline=""), strict=True))
                if header is None:
                    header = _checked_header(cells)
                    continue
                yield codec.from_strings(_row(header, cells))
            elif item_format == "jsonl":
                yield codec.decode(text)
            else:
                yield codec.from_strings(text)
        except (AsyncRunnerError, csv.Error, ValueError) as error:
            raise ItemNotStorable(
                f"{name}, line {number}: {safe_text(error, limit=500)}. Fix the line and run again: the items before it are saved"
            ) from error


def _checked_header(cells: list[str]) -> list[str]:
    if len(set(cells)) != len(cells) or not all(cells):
        raise ValueError(f"the header {','.join(cells)} has an empty or repeated name")
    return cells


def _row(header: list[str], cells: list[str]) -> dict[str, str]:
    if len(cells) != len(header):
        raise ValueError(f"{len(cells)} fields, but the header has {len(header)}")
    return dict(zip(header, cells, strict=True))


async def _records(descriptor: int, name: str, *, multiline: bool) -> AsyncIterator[tuple[int, str]]:
    """Yield non-empty lines with their numbers, from 1; with *multiline* a quoted field may contain line breaks."""
    number = first_number = quotes = 0
    record: list[str] = []
    async for raw in _lines(descriptor):
        number += 1
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise ItemNotStorable(
                f"{name}, line {number} is not UTF-8 text ({error.reason}); convert the file to UTF-8"
            ) from error
        if not record:
            first_number = number
        record.append(line)
        quotes += line.count('"')
        if multiline and quotes % 2:
            continue
        text = "\n".join(record).rstrip("\r")
        record.clear()
        quotes = 0
        if text.strip():
            yield first_number, text
    if record:
        raise ItemNotStorable(f"{name}, line {first_number}: a quoted field is not closed; the items before it are saved")


async def _lines(descriptor: int) -> AsyncIterator[bytes]:
    rest: list[bytes] = []
    async for block in _blocks(descriptor):
        first, *others = block.split(b"\n")
        rest.append(first)
        for line in others:
            yield b"".join(rest)
            rest = [line]
    if any(rest):
        yield b"".join(rest)


async def _blocks(descriptor: int) -> AsyncIterator[bytes]:
    # A thread that waits for a terminal or a pipe cannot be stopped. This thread is a daemon, so the program can exit.
    # os.read() takes no lock that the interpreter would wait for at exit.
    requests: queue.SimpleQueue[asyncio.Future[bytes] | None] = queue.SimpleQueue()
    loop = asyncio.get_running_loop()
    threading.Thread(target=_serve_blocks, args=(descriptor, requests, loop), name="asyncrunner input", daemon=True).start()
    try:
        while True:
            block: asyncio.Future[bytes] = loop.create_future()
            requests.put(block)
            if data := await block:
                yield data
            else:
                return
    finally:
        requests.put(None)


def _serve_blocks(
    descriptor: int, requests: queue.SimpleQueue[asyncio.Future[bytes] | None], loop: asyncio.AbstractEventLoop
) -> None:
    while (block := requests.get()) is not None:
        try:
            data: bytes | OSError = os.read(descriptor, _BLOCK_BYTES)
        except OSError as error:
            data = error
        try:
            loop.call_soon_threadsafe(_deliver, block, data)
        except RuntimeError:
            break  # the loop is closed, so the blocks have no reader
    if descriptor != 0:
        os.close(descriptor)


def _deliver(block: asyncio.Future[bytes], data: bytes | OSError) -> None:
    if block.done():
        return
    if isinstance(data, OSError):
        block.set_exception(data)
    else:
        block.set_result(data)
