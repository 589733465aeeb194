"""The SQL of the store: the scripts of the schema and its functions, and the statements by topic."""

from asyncrunner.postgres.sql import admin, batches, claims, copying, doctor, items, reports, turns, workers

__all__ = ["admin", "batches", "claims", "copying", "doctor", "items", "reports", "turns", "workers"]
