"""The store in one SQLite file, which many processes may share."""

from asyncrunner.sqlite.store import SQLiteStore

__all__ = ["SQLiteStore"]
