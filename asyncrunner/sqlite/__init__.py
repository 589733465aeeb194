"""The store that is one SQLite file."""

from asyncrunner.sqlite.store import SQLiteStore

__all__ = ["SQLiteStore"]
