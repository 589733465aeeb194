"""The store that keeps items in one SQLite file."""

from asyncrunner.sqlite.store import SQLiteStore

__all__ = ["SQLiteStore"]
