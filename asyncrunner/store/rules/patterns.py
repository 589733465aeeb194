"""The patterns with which operators find a text in items."""

from __future__ import annotations

import re


def like(pattern: str) -> str:
    """Return the SQL LIKE pattern (escape character ``\\``) that finds *pattern* anywhere; ``*`` matches any text."""
    escaped = re.sub(r"([\\%_])", r"\\\1", pattern)
    return f"%{escaped.replace('*', '%')}%"
