"""The values and the pure decisions: items, legal moves, outcomes, retries, limits and options; and the clock."""

from typing import Final

DEFAULT_DB: Final = "asyncrunner.db"
"""The location of the items unless a program or a command names another one. The path is relative to the current folder."""
