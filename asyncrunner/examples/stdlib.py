"""Checksum and measure the source files of the Python standard library, one item per file.

::

    python -m asyncrunner.examples.stdlib | asyncrunner run asyncrunner.examples.stdlib:measure -

``python -m asyncrunner.examples.stdlib`` prints the paths; ``measure`` is the handler.
"""

from __future__ import annotations

import hashlib
import io
import sysconfig
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import anyio

from asyncrunner import Fail

__all__ = ["Measured", "measure", "source_files"]


@dataclass(frozen=True, slots=True)
class Measured:
    """The stored result of a file. ``code_lines`` counts the lines that contain more than a comment or a string."""

    sha256: str
    size: int
    lines: int
    code_lines: int


def source_files() -> Iterator[Path]:
    """Yield the paths of the standard library's modules, without installed packages."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        if "site-packages" not in path.parts:
            yield path


async def measure(path: Path) -> Measured:
    """Checksum and measure one source file."""
    try:
        data = await anyio.Path(path).read_bytes()
    except FileNotFoundError:
        raise Fail(f"{path} does not exist; a retry would not help") from None
    return Measured(hashlib.sha256(data).hexdigest(), len(data), len(data.splitlines()), len(_code_lines(data)))


def _code_lines(data: bytes) -> set[int]:
    non_code = {
        tokenize.COMMENT,
        tokenize.STRING,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENCODING,
    }
    lines: set[int] = set()
    try:
        for token in tokenize.tokenize(io.BytesIO(data).readline):
            if token.type not in non_code and token.string:
                lines.update(range(token.start[0], token.end[0] + 1))
    except (tokenize.TokenError, SyntaxError):
        pass  # the library's tests include files with deliberate errors: count the lines before the error
    return lines


if __name__ == "__main__":
    for each in source_files():
        print(each)  # noqa: T201 - the output is the list of items
