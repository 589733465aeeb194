"""Every SQL statement of the store, whole and named, by what it is about."""

from asyncrunner.sqlite.sql import admin, batches, claims, items, reports, workers

__all__ = ["admin", "batches", "claims", "items", "reports", "workers"]
