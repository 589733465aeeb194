"""Suggest known names that are close to a mistyped name, and build the errors for unknown names. No I/O."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from string import ascii_lowercase
from typing import Final

from asyncrunner.errors import BatchNotFound
from asyncrunner.text.escaping import safe_text

_MAX_NAMED: Final = 5
_MAX_SUGGESTED: Final = 3
_MAX_COMPARED_LENGTH: Final = 1000  # the comparison takes quadratic time
_MAX_VARIED_LENGTH: Final = 64  # a longer name has too many variants by one character


def closest(name: str, known: Iterable[str]) -> str | None:
    """Return the name in *known* that is closest to a mistyped *name*, or None if none is close."""
    matches = _close_matches(name, list(known), 1)
    return matches[0] if matches else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a hint for an unknown *name*: close matches among *known*, or else up to five known names."""
    names = list(known)
    matches = _close_matches(name, names, _MAX_SUGGESTED)
    if matches:
        return f"did you mean {' or '.join(map(_quoted, matches))}?"
    if not names:
        return "there are none yet"
    return f"known: {', '.join(map(_quoted, names[:_MAX_NAMED]))}{', ...' if len(names) > _MAX_NAMED else ''}"


def no_such_batch(location: str, name: str, known: Iterable[str], *, advice: str = "") -> BatchNotFound:
    """Return the error for a batch that the store at *location* does not have; *known* are the names of its batches."""
    hint = did_you_mean(name, known)
    more = f"{'' if hint.endswith('?') else '.'} {advice}" if advice else ""
    return BatchNotFound(f"{location} has no batch {_quoted(name)}; {hint}{more}")


def unexpected_option(caller: str, name: str, known: Sequence[str]) -> TypeError:
    """Return the error for an option that *caller* does not have; *known* are the options that it has."""
    similar = closest(name, known)
    hint = f"the options are {', '.join(known)}" if similar is None else f"did you mean {similar!r}?"
    return TypeError(f"{caller}() got an unexpected option {name!r}; {hint}")


def variants(name: str) -> list[str]:
    """Return names that a mistyped *name* may stand for.

    They differ in spaces, case, ``_ - / . :``, leading zeros, or one character.
    """
    stripped = name.strip()
    candidates = [stripped, stripped.lower(), stripped.upper(), stripped.capitalize()]
    candidates += [re.sub(r"[-_/.: ]", mark, each) for each in candidates[:2] for mark in "-_/.:"]
    candidates.append(re.sub(r"(?<!\d)0+(?=\d)", "", stripped))
    candidates += [re.sub(r"(?<!\d)(?=\d)", zeros, stripped) for zeros in ("0", "00", "000")]
    if len(stripped) <= _MAX_VARIED_LENGTH:
        candidates += [stripped[:at] + stripped[at + 1 :] for at in range(len(stripped))]
        candidates += [stripped[:at] + stripped[at] + stripped[at:] for at in range(len(stripped))]
        candidates += [stripped[:at] + stripped[at + 1] + stripped[at] + stripped[at + 2 :] for at in range(len(stripped) - 1)]
        inserted = f"{ascii_lowercase}-_"  # no digits: another number is another item
        candidates += [stripped[:at] + character + stripped[at:] for at in range(len(stripped) + 1) for character in inserted]
    return [candidate for candidate in dict.fromkeys(candidates) if candidate not in ("", name)]


def _close_matches(name: str, names: Sequence[str], count: int) -> list[str]:
    return difflib.get_close_matches(name, names, n=count) if len(name) <= _MAX_COMPARED_LENGTH else []


def _quoted(name: str) -> str:
    return repr(safe_text(name, limit=80))
