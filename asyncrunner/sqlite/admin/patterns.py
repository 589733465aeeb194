"""Error patterns as patterns of LIKE."""

from __future__ import annotations

import re
from typing import Final

from asyncrunner.errors import ConfigurationError
from asyncrunner.text.validation import checked_text

_MAX_PATTERN_LENGTH: Final = 1000


def like(pattern: str, *, option: str) -> str:
    """Return the SQL LIKE pattern (escape character ``\\``) that finds *pattern* anywhere; ``*`` matches any text.

    Raises ConfigurationError for a pattern that is too long, is not UTF-8, or would match every error.
    """
    checked_text(option, pattern)
    if not pattern.strip("*"):
        raise ConfigurationError(f"{option} {pattern!r} would match everything; give a part of the error's text")
    if len(pattern) > _MAX_PATTERN_LENGTH:
        raise ConfigurationError(f"{option}: give at most {_MAX_PATTERN_LENGTH:,} characters of the error")
    escaped = re.sub(r"([\\%_])", r"\\\1", pattern)
    return f"%{escaped.replace('*', '%')}%"
