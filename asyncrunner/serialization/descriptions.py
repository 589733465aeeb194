"""Describe values and types for messages, also values whose ``__repr__`` fails."""

from __future__ import annotations

import dataclasses
import reprlib
from typing import Final

from asyncrunner.text.module_names import shown_module

_MAX_LENGTH: Final = 4_000

_long: Final = reprlib.Repr()
_long.maxlevel = 8
_long.maxdict = _long.maxlist = _long.maxtuple = _long.maxset = _long.maxfrozenset = 200
_long.maxstring = _long.maxlong = _long.maxother = _MAX_LENGTH


def name_of(value: object) -> str:
    """Return the qualified name of a function, a class or an annotation, or its text if it has no name."""
    return getattr(value, "__qualname__", None) or str(value)


def type_name(value: object) -> str:
    """Return the name of *value*'s type, with its module unless the type is built in."""
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else shown_module(f"{kind.__module__}.{kind.__qualname__}")


def shown(value: object) -> str:
    """Return the repr of *value* for a message, 80 characters at most; a placeholder if its repr() fails."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - a broken __repr__ must not hide the message
        text = f"<{type(value).__name__} whose repr() fails>"
    return text if len(text) <= 80 else text[:77] + "..."


def shown_at_length(value: object) -> str:
    """Return the repr of *value*, 4,000 characters at most, in bounded time and memory for containers and texts."""
    try:
        text = _long.repr(value)
    except Exception:  # noqa: BLE001 - a broken __repr__ must not hide the error
        text = f"<{type(value).__name__} whose repr() fails>"
    return text if len(text) <= _MAX_LENGTH else text[: _MAX_LENGTH - 3] + "..."


def describe_item(item: object) -> str:
    """Return the item and its type for a message; a dataclass given instead of an instance is named as a class."""
    if dataclasses.is_dataclass(item) and isinstance(item, type):
        return f"the class {item.__name__} (not an instance of it)"
    return f"item {shown(item)} of type {type_name(item)}"
