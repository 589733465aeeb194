"""The SQL of the store: the scripts of the schema and its functions, and the statements by topic."""

from asyncrunner.postgres.sql import batches, claims, items, turns, workers

__all__ = ["batches", "claims", "items", "turns", "workers"]
