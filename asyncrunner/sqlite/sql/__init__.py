"""Name every SQL statement of the store, in one module per subject; callers write ``sql.claims.CLAIMABLE``."""

from asyncrunner.sqlite.sql import (
    admin,
    batches,
    claims,
    connection,
    items,
    large_results,
    reports,
    schema,
    workers,
)

__all__ = [
    "admin",
    "batches",
    "claims",
    "connection",
    "items",
    "large_results",
    "reports",
    "schema",
    "workers",
]
