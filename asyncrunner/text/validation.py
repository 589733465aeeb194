"""Check the arguments of callers: each message names the argument, its value and the values to give instead. No I/O.

An argument is named as its caller writes it: ``limit`` for a Python argument, ``--limit`` for an option of the command
line.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, cast

from asyncrunner.errors import ConfigurationError
from asyncrunner.text.escaping import safe_text
from asyncrunner.text.suggestions import closest

MAX_COUNT: Final = 2_000_000_000
"""The largest whole number that is valid for an argument without another limit."""

_OR_SERVER: Final = ", or the URL of a PostgreSQL server"
_MAX_PRIORITY: Final = 2**31 - 1
_MAX_NAME_LENGTH: Final = 200
_MAX_PATTERN_LENGTH: Final = 1000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def argument(name: str, value: object) -> str:
    """Return the argument as its caller wrote it: ``limit=0``, or ``--limit 0`` for an option of the command line."""
    try:
        text = safe_text(repr(value))
    except ValueError:  # Python refuses to print an int of more than 4,300 digits
        text = "(too long to show)"
    return f"{name} {text}" if name.startswith("--") else f"{name}={text}"


# --- numbers ------------------------------------------------------------------------------------------------------


def is_number(value: object) -> bool:
    """Return whether *value* is an int or a float that is finite; a bool is not a number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -math.inf < value < math.inf


def checked_count(name: str, value: object, *, at_least: int = 1, at_most: int = MAX_COUNT, owner: str = "") -> int:
    """Return *value*. Raises ConfigurationError unless it is a whole number from *at_least* to *at_most*."""
    if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
        raise ConfigurationError(f"{_owned(owner, name, value)}: give a whole number of at least {at_least}")
    if value > at_most:
        raise ConfigurationError(f"{_owned(owner, name, value)}: give at most {at_most:,}")
    return value


def checked_seconds(name: str, value: object, *, zero: bool = True, owner: str = "", instead: str = "") -> float:
    """Return *value*.

    Raises ConfigurationError unless it is a finite number of seconds, above 0 or, with *zero*, also 0.

    *owner*: the class that has the argument. *instead*: other advice for the message.
    """
    if not is_number(value) or cast("float", value) < 0 or (value == 0 and not zero):
        advice = f"give seconds, {'0 or more' if zero else 'more than 0'}{instead}"
        raise ConfigurationError(f"{_owned(owner, name, value)}: {advice}")
    return cast("float", value)


def checked_number(name: str, value: object, *, at_least: float, owner: str = "") -> float:
    """Return *value*. Raises ConfigurationError unless it is a finite number of at least *at_least*."""
    if not is_number(value) or cast("float", value) < at_least:
        raise ConfigurationError(f"{_owned(owner, name, value)}: give a number of at least {at_least:g}")
    return cast("float", value)


def checked_priority(value: object) -> int:
    """Return *value*. Raises ConfigurationError unless it is a whole number within +-2,147,483,647."""
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) > _MAX_PRIORITY:
        raise ConfigurationError(
            f"{argument('priority', value)}: give a whole number within +-2,147,483,647; higher runs first, the default is 0"
        )
    return value


def _owned(owner: str, name: str, value: object) -> str:
    return f"{owner}({argument(name, value)})" if owner else argument(name, value)


# --- time ---------------------------------------------------------------------------------------------------------


def checked_moment(name: str, value: object, *, instead: str) -> datetime:
    """Return *value*. Raises ConfigurationError unless it is a datetime with a time zone.

    *instead*: a value of another kind that the caller may give, for the message.
    """
    if not isinstance(value, datetime):
        raise ConfigurationError(f"{argument(name, value)}: give a datetime with a time zone, or {instead}")
    if value.tzinfo is None or value.utcoffset() is None:
        raise ConfigurationError(
            f"{argument(name, value)} has no time zone, so it is ambiguous; give a datetime with a tzinfo, as in "
            f"datetime.now(UTC), or {instead}"
        )
    return value


def checked_past(name: str, value: object, now: float) -> float:
    """Return a past moment in seconds since the epoch; a timedelta counts back from *now*.

    Raises ConfigurationError for a moment in the future, a datetime without a time zone, and a negative timedelta.
    """
    if isinstance(value, timedelta):
        return max(0.0, now - checked_seconds(name, value.total_seconds()))
    instant = instant_of(checked_moment(name, value, instead="a timedelta"))
    if instant > now:
        raise ConfigurationError(f"{argument(name, value)} is in the future; give a moment in the past")
    return instant


def instant_of(moment: datetime) -> float:
    """Return *moment* in seconds since the epoch, 0 at least, because the times of rows start there.

    A moment without a time zone is in UTC.
    """
    return max(0.0, ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _EPOCH).total_seconds())


# --- text ---------------------------------------------------------------------------------------------------------


def is_storable(text: str) -> bool:
    """Return whether *text* has neither a NUL nor a lone surrogate (from a shell's argument that is not UTF-8)."""
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False


def checked_text(name: str, value: object) -> str:
    """Return *value*. Raises ConfigurationError unless it is a str without NUL and lone surrogates."""
    if not isinstance(value, str) or not is_storable(value):
        raise ConfigurationError(
            f"{argument(name, value)} is not valid UTF-8 text: give a str without NUL and lone surrogates; in a shell, check how "
            "it is quoted"
        )
    return value


def checked_name(name: str, value: object) -> str:
    """Return *value*. Raises ConfigurationError unless it is a name of 1 to 200 characters that can be stored."""
    if not isinstance(value, str) or not 0 < len(value) <= _MAX_NAME_LENGTH:
        raise ConfigurationError(f"{argument(name, value)}: give a name of 1 to {_MAX_NAME_LENGTH} characters")
    if not is_storable(value):
        raise ConfigurationError(f"{argument(name, value)}: give a name without NUL and lone surrogates")
    return value


def checked_pattern(name: str, value: object) -> str:
    """Return *value*, a part of an error's text in which ``*`` matches any text.

    Raises ConfigurationError for a pattern that is too long, is not valid text, or would match every error.
    """
    pattern = checked_text(name, value)
    if not pattern.strip("*"):
        raise ConfigurationError(f"{argument(name, pattern)} would match everything; give a part of the error's text")
    if len(pattern) > _MAX_PATTERN_LENGTH:
        raise ConfigurationError(f"{argument(name, pattern)}: give at most {_MAX_PATTERN_LENGTH:,} characters of the error")
    return pattern


def checked_path(name: str, value: object) -> str:
    """Return *value* as text. Raises ConfigurationError unless it is a str or a path that is not empty."""
    try:
        path: object = os.fspath(cast("str", value))
    except TypeError:
        path = None
    if not isinstance(path, str):
        raise ConfigurationError(f"{argument(name, value)}: give the path of a file{_OR_SERVER if name == 'db' else ''}")
    if not path:
        raise ConfigurationError(f"{name} is empty; give the path of a file{_OR_SERVER if name == 'db' else ''}")
    return path


# --- choices and collections --------------------------------------------------------------------------------------


def checked_choice(name: str, value: object, choices: Sequence[str], *, owner: str = "") -> str:
    """Return *value*. Raises ConfigurationError unless it is one of *choices*; the message suggests the closest one."""
    if isinstance(value, str) and value in choices:
        return value
    shown = ", ".join(choices if name.startswith("--") else map(repr, choices))
    similar = closest(value, choices) if isinstance(value, str) else None
    hint = "" if similar is None else f"; did you mean {similar!r}?"
    raise ConfigurationError(f"{_owned(owner, name, value)}: give one of {shown}{hint}")


def checked_flag(name: str, value: object) -> bool:
    """Return *value*. Raises ConfigurationError unless it is True or False."""
    if not isinstance(value, bool):
        raise ConfigurationError(f"{argument(name, value)}: give True or False")
    return value


def checked_ids(name: str, ids: object) -> list[str]:
    """Return *ids* without duplicates.

    Raises ConfigurationError for a single str, which would be read as a list of characters, and for invalid text.
    """
    if isinstance(ids, str | bytes) or not isinstance(ids, Iterable):
        raise ConfigurationError(f"{argument(name, ids)}: give a list, as in [{safe_text(repr(ids))}]")
    return list(dict.fromkeys(checked_text(name, each) for each in cast("Iterable[object]", ids)))


def checked_items(caller: str, items: Any) -> Iterable[Any]:
    """Return *items*. Raises ConfigurationError unless it is an iterable other than a str or bytes."""
    given: Any = items  # a type checker would narrow *items* to an iterable of unknown types
    if isinstance(items, str | bytes) or not isinstance(items, Iterable):
        raise ConfigurationError(f"{caller}() takes a list or another iterable of items, not {type(items).__name__}")
    return cast("Iterable[Any]", given)


def checked_error_match(
    name: str, value: object, *, owner: str
) -> type[BaseException] | tuple[type[BaseException], ...] | Callable[[BaseException], bool]:
    """Return *value*.

    Raises ConfigurationError unless it is an exception type, a tuple of them, or a function of the error.
    """
    given: object = value  # a type checker would narrow *value* to a tuple of unknown types
    kinds: Sequence[object] = cast("tuple[object, ...]", value) if isinstance(value, tuple) else (value,)
    is_types = all(isinstance(kind, type) and issubclass(kind, BaseException) for kind in kinds)
    if is_types or (callable(kinds[0]) and not isinstance(value, type | tuple)):
        return cast("Callable[[BaseException], bool]", given)
    raise ConfigurationError(f"{_owned(owner, name, given)}: give an exception type, a tuple of them, or a function of the error")
