"""Format untrusted values for display: escape control characters, shorten long texts, write counts with their nouns."""

from __future__ import annotations

import json
import unicodedata
from typing import Any, Final

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


def _escaped(character: str) -> str:
    if unicodedata.category(character) in _ESCAPED_CATEGORIES:
        return character.encode("unicode_escape", "backslashreplace").decode("ascii")
    return character


def counted(number: int, noun: str) -> str:
    """Return the number with its noun, as in ``1 item`` or ``2,000 items``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def json_text(value: Any) -> str:
    """Return *value* as one line of ASCII JSON, which contains no terminal control characters."""
    import msgspec  # every command imports this module, also for its help, and few of them print JSON

    return json.dumps(msgspec.to_builtins(value), separators=(",", ":"))
