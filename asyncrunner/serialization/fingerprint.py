"""Fingerprint an error by its cause, so that all items that fail for the same reason get the same fingerprint.

A fingerprint covers the type of the error, its message without the parts that vary between items, its codes (errno,
HTTP status, SQLSTATE) and the line in the handler's own code, for every error in the chain of causes. Numbers, ids,
addresses, paths, URLs and quoted values vary between items; a status or an errno in a message does not.
"""

from __future__ import annotations

import hashlib
import re
import sysconfig
from typing import TYPE_CHECKING, Any, Final, cast

from asyncrunner.text.module_names import shown_module

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType, TracebackType

_ENGINE_PACKAGES: Final = ("asyncrunner.execution.",)
"""The packages that call the handler and encode its values. Their frames contain no information about the handler."""

_MESSAGE_LIMIT: Final = 1_000  # characters: a message starts with its description, and long quotes follow
_MAX_CHAIN_LENGTH: Final = 6  # errors in a chain of causes
_MAX_GROUP_ERRORS: Final = 8  # errors of an exception group that are included
_MAX_CODE_LENGTH: Final = 80

_CODES: Final = ("errno", "winerror", "sqlstate", "pgcode", "status_code", "status", "code", "constraint_name")
"""Attributes in which libraries store an error code."""

_QUOTES_NAMES: Final = (AttributeError, ImportError, NameError, TypeError)
"""Errors whose messages quote names of the program, not values of an item."""

_QUOTED: Final = r"(?<!\w)'[^'\n]{0,600}'(?!\w)|(?<!\w)\"[^\"\n]{0,600}\"(?!\w)|(?<!\w)`[^`\n]{0,600}`(?!\w)"

# One pass from left to right. No alternative may backtrack over a long word: messages come from untrusted sources.
_VARIABLE_OR_CONSTANT: Final = re.compile(
    r"(?P<constant>"
    r"(?i:\b(?:status(?:[ _]code)?|https?(?:/\d(?:\.\d)?)?|(?:http |error )?code|errno|exit (?:code|status)|sqlstate|signal)\b"
    r"['\"]?[ :=]{0,3}\(?-?\d{1,3}\b)"  # HTTP 503, [Errno -2], exit status 1
    r"|'[,:{}\[\]]'"  # Expecting ',' delimiter
    r")"
    r"|(?P<quoted>" + _QUOTED + r")"
    r"|=\([^)\n]{0,300}\)"  # Key (email)=(a b c) already exists
    r"|[A-Za-z][A-Za-z0-9+.-]{0,20}://[^\s'\"<>]{1,600}"
    r"|[^\s@'\"<>()]{1,64}@[\w.-]{1,255}"
    r"|(?:\b[A-Za-z]:|(?<!\w)\.{0,2})[\\/][^\s'\":,;()<>\]]{1,400}"  # /var/data/7.csv, ./7.csv, C:\data
    r"|(?<![\w/])[\w.-]{1,100}/[^\s'\":,;()<>\]]{0,300}[/.][^\s'\":,;()<>\]]{1,300}"  # data/in/seven.csv
    r"|(?<![\w.-])(?:[\w-]{1,63}\.){1,10}[\w-]{1,63}(?::\d{1,5})?"  # a host, an address
    r"|(?<![\w.-])[\w-]{1,63}:\d{1,5}\b"  # localhost:8080
    r"|\[?[0-9a-fA-F]{0,4}(?::[0-9a-fA-F]{0,4}){2,8}\]?(?::\d{1,5})?"  # ::1
    r"|[+-]?\w{0,64}\d\w{0,64}(?:[-.,:]\w{0,64}\d\w{0,64}){0,8}"  # 17, 1,204.5, u17, 2026-11-23, a UUID
)


def fingerprint(error: BaseException) -> str:
    """Return the fingerprint of *error*, 16 hexadecimal digits, also if methods of *error* raise an Exception."""
    parts = "\n".join(_causes(error))
    return hashlib.blake2b(parts.encode("utf-8", "backslashreplace"), digest_size=8).hexdigest()


def without_variables(message: str, *, keep_quoted: bool = False) -> str:
    """Return *message* with ``*`` in place of each part that varies between items."""

    def replacement(part: re.Match[str]) -> str:
        is_constant = part["constant"] is not None or (keep_quoted and part["quoted"] is not None)
        return part[0] if is_constant else "*"

    return re.sub(r"\*(?:[\s,;|]*\*)+", "*", _VARIABLE_OR_CONSTANT.sub(replacement, message[:_MESSAGE_LIMIT]))


def _causes(error: BaseException) -> Iterator[str]:
    """Yield one text for each error in the chain that a traceback would show, *error* itself first."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and len(seen) < _MAX_CHAIN_LENGTH and id(link) not in seen:
        seen.add(id(link))
        yield _cause(link)
        if isinstance(link, BaseExceptionGroup):
            parts = cast("BaseExceptionGroup[BaseException]", link).exceptions[:_MAX_GROUP_ERRORS]
            yield from sorted({fingerprint(part) for part in parts})  # the number of errors is not part of the cause
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def _cause(error: BaseException) -> str:
    kind = type(error)
    try:
        message = without_variables(str(error), keep_quoted=isinstance(error, _QUOTES_NAMES))
    except Exception:  # noqa: BLE001 - a broken __str__
        message = ""
    return "\n".join(
        (shown_module(f"{kind.__module__}.{kind.__qualname__}"), message, *_codes(error), _place(error.__traceback__))
    )


def _codes(error: BaseException) -> Iterator[str]:
    sources: list[object] = [error]
    response = _attribute(error, "response")  # of httpx and requests
    if response is not None:
        sources.append(response)
    for source in sources:
        for name in _CODES:
            value = _attribute(source, name)
            if isinstance(value, int) or (isinstance(value, str) and len(value) <= _MAX_CODE_LENGTH):
                yield f"{name}={value}"


def _attribute(source: object, name: str) -> Any:
    try:
        return getattr(source, name, None)
    except Exception:  # noqa: BLE001 - a property of a third-party error may raise
        return None


def below_engine(trace: TracebackType | None) -> TracebackType | None:
    """Return the part of *trace* that starts below the engine's frames, or None if all frames belong to the engine.

    A frame belongs to the engine if its module does; the name of its file does not matter.
    """
    while trace is not None and trace.tb_frame.f_globals.get("__name__", "").startswith(_ENGINE_PACKAGES):
        trace = trace.tb_next
    return trace


def _place(trace: TracebackType | None) -> str:
    """Return the innermost function of the user's code and the line's offset in it: edits elsewhere do not matter."""
    trace = below_engine(trace)
    if trace is None:
        return ""
    own = _top_module(trace.tb_frame)  # the user's program may be an installed package
    place = trace
    while trace is not None:
        if _top_module(trace.tb_frame) == own or not _is_library_path(trace.tb_frame.f_code.co_filename):
            place = trace
        trace = trace.tb_next
    code = place.tb_frame.f_code
    return f"{code.co_qualname}+{place.tb_lineno - code.co_firstlineno}"


def _top_module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


_LIBRARIES: Final = tuple(
    {f"{path}/" for name, path in sysconfig.get_paths().items() if name in ("stdlib", "platstdlib", "purelib", "platlib")}
)


def _is_library_path(path: str) -> bool:
    return path.startswith((*_LIBRARIES, "<frozen ")) or "/site-packages/" in path or "/dist-packages/" in path
