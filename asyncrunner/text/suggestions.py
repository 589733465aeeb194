"""Suggest the name that a mistyped one is close to. No I/O."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from string import ascii_lowercase
from typing import Final

from asyncrunner.text.escaping import safe_text

_MAX_VARIED_LENGTH: Final = 64


def meant(name: str, known: Iterable[str]) -> str:
    """Return a hint for an unknown *name*: close matches among *known*, or else up to five known names."""
    names: Sequence[str] = list(known)
    matches = difflib.get_close_matches(name, names, n=3, cutoff=0.6) if len(name) <= 1000 else []
    if matches:
        return f"did you mean {' or '.join(repr(safe_text(each, limit=80)) for each in matches)}?"
    if not names:
        return "there are none yet"
    return f"known: {', '.join(repr(safe_text(each, limit=80)) for each in names[:5])}{', ...' if len(names) > 5 else ''}"


def variants(name: str) -> list[str]:
    """Return likely intended names for a mistyped *name*: other spaces, case, ``_ - / . :``, leading zeros, one character."""
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
