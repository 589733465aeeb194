"""What is kept of an exception: enough to see whose fault it is, never the values of variables.

Describing an error must not raise again, whatever the error's own methods do and however little memory is left.
"""

from __future__ import annotations

import re
import traceback
from typing import Final

from asyncrunner.fingerprint import below_engine, fingerprint
from asyncrunner.item import ErrorInfo

__all__ = ["describe"]

_TRACEBACK_LIMIT: Final = 16_384
_MESSAGE_LIMIT: Final = 2_000
_NAME_LIMIT: Final = 200
_MARGIN: Final = 1_000  # of a long text, so that a secret is recognised before its beginning is cut off
# What people put into URLs, headers and keyword arguments and do not want in a file.
# No pattern may look back over a long word again and again: messages come from outside.
_SECRETS: Final = (
    (re.compile(r"(\b[A-Za-z][\w+.-]{0,20}://[^\s/:@]{0,200}:)[^\s/]{1,500}@"), r"\1***@"),
    (
        re.compile(
            r"(?i)((?:password|passwd|secret|token|api[-_]?key)['\"]?\s{0,9}[:=]\s{0,9})(?:'[^']*'|\"[^\"]*\"|[^\s'\"&,)]+)"
        ),
        r"\1***",
    ),
    (re.compile(r"(?i)(authorization['\"]?\s{0,9}[:=]\s{0,9}['\"]?)(?:[a-z][\w-]*[ \t]+)?[^\s'\",]+"), r"\1***"),
    (re.compile(r"(?i)(\bbearer[ \t]+)[\w.~+/=-]{8,}"), r"\1***"),
)


def describe(error: BaseException) -> ErrorInfo:
    """The stored form of *error*: its type's name, message, frames without locals, and a fingerprint of its cause."""
    if isinstance(error, MemoryError):
        # What filled the memory lives in the handler's frames, and those live as long as the error: without this there is
        # nothing left to describe it with, nor for anything else.
        traceback.clear_frames(error.__traceback__)
    kind = type(error)
    name = (
        kind.__qualname__ if kind.__module__ in ("builtins", "asyncrunner.errors") else f"{kind.__module__}.{kind.__qualname__}"
    )
    name = _storable(name, _NAME_LIMIT)
    try:
        message = _storable(str(error), _MESSAGE_LIMIT)
    except BaseException:  # noqa: BLE001 - a broken __str__, or no memory for it
        message = "(its message cannot be shown)"
    try:
        text = _storable(_formatted(error), _TRACEBACK_LIMIT)
    except BaseException:  # noqa: BLE001 - as above
        text = ""
    try:
        mark = fingerprint(error)
    except BaseException:  # noqa: BLE001 - as above
        mark = name
    return ErrorInfo(name, message, text, mark)


def _formatted(error: BaseException) -> str:
    # The frames of the engine say nothing about the handler.
    trace = below_engine(error.__traceback__)
    return "".join(traceback.TracebackException(type(error), error, trace, limit=-50, max_group_width=5).format())


def _storable(text: str, limit: int) -> str:
    """Valid UTF-8 without NUL and secrets, and the end kept where it is too long: the end names the error."""
    is_cut = len(text) > limit + _MARGIN
    text = text[-(limit + _MARGIN) :]
    for secret, shown in _SECRETS:
        text = secret.sub(shown, text)
    text = text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")
    return text if len(text) <= limit and not is_cut else "..." + text[-(limit - 3) :]
