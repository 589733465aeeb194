"""Describe an exception for the store: type, message, frames and fingerprint, but never the values of variables.

``describe`` must not raise, even if the methods of the error raise or almost no memory is left.
"""

from __future__ import annotations

import re
import traceback
from typing import Any, Final, cast

from asyncrunner.domain.outcome import ErrorInfo
from asyncrunner.serialization.fingerprint import below_engine, fingerprint
from asyncrunner.text.module_names import shown_module

_TRACEBACK_LIMIT: Final = 16_384
MESSAGE_LIMIT: Final = 2_000
_NAME_LIMIT: Final = 200
_MARGIN: Final = 1_000  # characters beyond a limit that stay until secrets are removed: a cut may split a secret

# Secrets that occur in URLs, headers and keyword arguments and must not be stored in a file.
# No pattern may backtrack over a long word: messages come from untrusted sources.
_SECRETS: Final = (
    # The body of a private key, with line ends or their escapes.
    (
        re.compile(
            r"(-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----)(?:\s|\\[nr])+(?:[\w-]+: [\w, -]+(?:\s|\\[nr])+){0,4}[\w+/=\s\\]{16,}"
        ),
        r"\1***",
    ),
    (re.compile(r"(?<![\w-])eyJ[\w-]{6,}\.[\w-]{6,}\.[\w-]{6,}"), "***"),  # a JSON web token
    # An option of a command and its value, also in the repr of a list; not the words that may follow the option in a sentence.
    (
        re.compile(
            r"(?i)((?<![\w-])--[\w-]{0,30}(?:password|passwd|token|secret|api-key)(?:['\"],\s{0,3}(?=['\"])|[ \t]{1,9}))"
            r"(?!(?:and|or|is|are|was|were|has|have|had|can|cannot|must|may|not|needs?|requires?|required|expects?|expected|option|"
            r"options|argument|arguments|to|for|from|in|of|with|without|if|when|but|given|missing|instead)\b)"
            r"(?:'[^'\n]*'|\"[^\"\n]*\"|[^\s'\",;)\]-][^\s'\",;)\]]*)"
        ),
        r"\1***",
    ),
    (re.compile(r"(?i)(\b(?:account|sharedaccess|shared_access)_?key=)[^\s;&'\",)]+"), r"\1***"),
    (re.compile(r"(\b[A-Za-z][\w+.-]{0,20}://[^\s/:@]{0,200}:)[^\s/]{1,500}@"), r"\1***@"),
    # A user name without a password is a token in a web address; in other URLs only a long one is.
    (re.compile(r"(?i)(\bhttps?://)[^\s/:@?#]{1,500}@"), r"\1***@"),
    (re.compile(r"(\b[A-Za-z][\w+.-]{0,20}://)[^\s/:@?#]{16,500}@"), r"\1***@"),
    (re.compile(r"(?i)([?&](?:sig|signature|x-amz-signature|x-goog-signature)=)[^\s&'\"<>)]+"), r"\1***"),
    # The whole line of a header, or the whole quoted text of a dict.
    (re.compile(r"(?i)(\b(?:set-)?cookie['\"]?\s{0,9}:\s{0,9})(?:'[^'\n]*'|\"[^\"\n]*\"|[^\s'\"][^'\"\r\n]*)"), r"\1***"),
    (
        re.compile(
            r"(?i)((?:password|passwd|secret(?:[-_]?access)?(?:[-_]?key)?|token|api[-_]?key)['\"]?\s{0,9}[:=]\s{0,9})"
            r"(?:'[^']*'|\"[^\"]*\"|[^\s'\"&,)]+)"
        ),
        r"\1***",
    ),
    (re.compile(r"(?i)(authorization['\"]?\s{0,9}[:=]\s{0,9}['\"]?)(?:[a-z][\w-]*[ \t]+)?[^\s'\",]+"), r"\1***"),
    (re.compile(r"(?i)(\bbearer[ \t]+)[\w.~+/=-]{8,}"), r"\1***"),
)


_SIGNS_OF_SECRETS: Final = (
    "://",
    "sig",
    "cookie",
    "passw",
    "secret",
    "token",
    "api",
    "authorization",
    "bearer",
    "eyj",
    "private key",
    "accountkey",
    "account_key",
    "sharedaccess",
    "shared_access",
)
"""Lower-case texts, one of which occurs in each text that a pattern of ``_SECRETS`` changes."""


def describe(error: BaseException) -> ErrorInfo:
    """Return the stored form of *error*: the name of its type, message, frames without locals, and fingerprint.

    Of a group of errors, the type and the message are those of its first error, because the text of the group names no cause.
    """
    if isinstance(error, MemoryError):
        # The objects that filled the memory are locals of the handler's frames, which live as long as the error.
        # Free these locals, so that memory is left to describe the error.
        traceback.clear_frames(error.__traceback__)
    leaf, siblings = _first_leaf(error)
    kind = type(leaf)
    is_ours = kind.__module__ in ("builtins", "asyncrunner.errors")
    name = kind.__qualname__ if is_ours else shown_module(f"{kind.__module__}.{kind.__qualname__}")
    name = storable(name, _NAME_LIMIT)
    group = "" if leaf is error else _group_text(type(error).__name__, siblings)
    try:
        message = storable(str(leaf), MESSAGE_LIMIT - len(group) - 1)
    except BaseException:  # noqa: BLE001 - a broken __str__, or too little memory
        message = "(the message cannot be shown)"
    message = f"{message} {group}".lstrip() if group else message
    try:
        text = storable(_formatted(error), _TRACEBACK_LIMIT)
    except BaseException:  # noqa: BLE001 - as above
        text = ""
    try:
        mark = fingerprint(error)
    except BaseException:  # noqa: BLE001 - as above
        mark = name
    return ErrorInfo(name, message, text, mark)


def _first_leaf(error: BaseException) -> tuple[BaseException, int]:
    """Return the first error in *error*, a group, and the number of the other errors; (*error*, 0) if it is no group."""
    siblings = 0
    while type(error) in (ExceptionGroup, BaseExceptionGroup):
        members = cast("BaseExceptionGroup[BaseException]", error).exceptions
        siblings += len(members) - 1
        error = members[0]
    return error, siblings


def _group_text(kind: str, siblings: int) -> str:
    article = "an" if kind[0] in "AEIOU" else "a"
    return f"(in {article} {kind} with {siblings} more)" if siblings else f"(in {article} {kind})"


def _formatted(error: BaseException) -> str:
    # Leave out the engine's own frames above the handler.
    trace = below_engine(error.__traceback__)
    description = traceback.TracebackException(type(error), error, trace, limit=-50, max_group_width=5)
    _cache_frames(description)
    return "".join(description.format())


class _Frames(traceback.StackSummary):
    """Frames with a cache of their texts: many items fail at the same place, and Python parses a source line for each text."""

    def format_frame_summary(self, frame_summary: traceback.FrameSummary, **options: Any) -> str:
        frame = frame_summary
        place = (frame.filename, frame.lineno, frame.end_lineno, frame.colno, frame.end_colno, frame.name, frame.line)
        key = (*place, *options.items())
        text = _texts_of_frames.get(key)
        if text is None:
            text = super().format_frame_summary(frame, **options)
            if len(_texts_of_frames) >= _MAX_TEXTS_OF_FRAMES:
                _texts_of_frames.clear()
            _texts_of_frames[key] = text
        return text


_MAX_TEXTS_OF_FRAMES: Final = 500
_texts_of_frames: Final[dict[tuple[object, ...], str]] = {}


def _cache_frames(description: traceback.TracebackException) -> None:
    """Let every stack in the chain of *description* use the cached texts."""
    unread: list[traceback.TracebackException | None] = [description]
    while unread:
        each = unread.pop()
        if each is not None:
            each.stack.__class__ = _Frames
            unread += [each.__cause__, each.__context__, *(each.exceptions or ())]


def _may_have_secrets(text: str) -> bool:
    """Return whether a pattern of ``_SECRETS`` may match. The check takes a tenth of the time of the patterns."""
    if not text.isascii():
        return True  # the patterns ignore case, and some letters outside of ASCII are equal to ASCII letters then
    lowered = text.lower()
    return any(sign in lowered for sign in _SIGNS_OF_SECRETS)


def storable(text: str, limit: int) -> str:
    """Return *text* as valid UTF-8 without NUL and secrets.

    A long text keeps its end, because the end names the error.
    """
    is_cut = len(text) > limit + _MARGIN
    text = text[-(limit + _MARGIN) :]
    if _may_have_secrets(text):
        for secret, replacement in _SECRETS:
            text = secret.sub(replacement, text)
    text = text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")
    return text if len(text) <= limit and not is_cut else "..." + text[-(limit - 3) :]
