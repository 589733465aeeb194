"""Format untrusted values for display: escape control characters, shorten long texts, write counts and errors."""

from __future__ import annotations

import json
import shlex
import unicodedata
from collections.abc import Sequence
from typing import Any, Final, cast

_ESCAPED_CATEGORIES: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def safe_text(value: object, *, limit: int = 200) -> str:
    """Return *value* on one line, with control characters escaped and the middle of a text over *limit* as ``...``."""
    text = str(value)
    if len(text) > limit:
        room = limit - 3
        text = f"{text[: room - room // 3]}...{text[len(text) - room // 3 :]}"
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escaped(character) for character in text)


def shell_word(text: str) -> str:
    """Return *text* as one word of a command for a shell, on one line."""
    return shlex.quote(safe_text(text, limit=1000))


def _escaped(character: str) -> str:
    if unicodedata.category(character) in _ESCAPED_CATEGORIES:
        return character.encode("unicode_escape", "backslashreplace").decode("ascii")
    return character


def counted(number: int, noun: str) -> str:
    """Return the number with its noun, as in ``1 item``, ``2,000 items``, ``2 retries`` or ``2 batches``."""
    if number == 1:
        return f"1 {noun}"
    if noun.endswith("y"):
        return f"{number:,} {noun[:-1]}ies"
    return f"{number:,} {noun}{'es' if noun.endswith(('s', 'ch')) else 's'}"


def counted_are(number: int, noun: str) -> str:
    """Return the number with its noun and its verb, as in ``1 item is`` or ``2,000 items are``."""
    return f"{counted(number, noun)} {'is' if number == 1 else 'are'}"


def error_text(error: BaseException) -> str:
    """Return the type and the message of *error*; of a group with one exception, those of the exception."""
    error = _single(error)
    return f"{type(error).__name__}: {error}"


def place_of(error: BaseException) -> str:
    """Return the line that raised *error*, as the end of a sentence; empty if it is unknown."""
    import traceback  # only a program that fails needs it

    frames = traceback.extract_tb(_single(error).__traceback__)
    return f", line {frames[-1].lineno} of {frames[-1].filename}" if frames else ""


def _single(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", error)
        errors: Sequence[BaseException] = group.exceptions
        if len(errors) != 1:
            return group
        error = errors[0]  # a task group raises a group with the error of its task
    return error


def json_text(value: Any) -> str:
    """Return *value* as one line of ASCII JSON, which contains no terminal control characters."""
    import msgspec  # every command imports this module, also for its help, and few of them print JSON

    return json.dumps(msgspec.to_builtins(value), separators=(",", ":"))
