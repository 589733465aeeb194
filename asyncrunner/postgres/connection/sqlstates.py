"""The meaning of the server's error codes, for every driver; so this module imports none."""

from __future__ import annotations

from typing import Final

READ_ONLY: Final = "25006"
MISSING: Final = ("3F000", "42P01", "42883", "42703")
"""The codes for a schema, table, function or column that does not exist."""

_TEMPORARY_CLASSES: Final = ("08", "53", "57", "58")
_TEMPORARY_CODES: Final = frozenset({"40001", "40P01", "55P03", READ_ONLY, "AR002", "AR003"})

TEMPORARY_MESSAGES: Final = {
    "53100": "the server's disk is full; free some space",
    "53300": "the server has no free connection; close some, or raise max_connections",
    "57P01": "the server ended the session",
    "57P03": "the server is starting or stopping",
    READ_ONLY: "the server only reads, as a replica does; connect to the primary server",
}
_LASTING_MESSAGES: Final = {
    "28P01": "the server refused the password; check the user and the password, PGPASSWORD or ~/.pgpass",
    "28000": "the server refused the user; check the user, and pg_hba.conf of the server",
    "3D000": "the database does not exist; create it with createdb, or correct the URL",
    "3F000": "the schema does not exist; start a worker once with the right to create it, or run "
    "`asyncrunner schema --db URL | psql URL`",
    "42501": "the user lacks a right; `asyncrunner schema --db URL --role worker=NAME | psql URL`, run by the owner of the "
    "database, grants what is needed",
    "42P01": "a table of asyncrunner's schema is missing; run `asyncrunner doctor`",
    "42883": "a function of asyncrunner's schema is missing; run `asyncrunner doctor`",
    "42703": "a column of asyncrunner's schema is missing; run `asyncrunner doctor`",
    "54000": "a text is too long for the server, whose limit is 1 GB",
}


def is_temporary(code: str) -> bool:
    """Return whether a call that failed with the error code may succeed if it is repeated."""
    return code[:2] in _TEMPORARY_CLASSES or code in _TEMPORARY_CODES


def description(code: str, error: BaseException) -> str:
    """Return what happened and what to do next, with the text of *error*."""
    if code in TEMPORARY_MESSAGES or code in _LASTING_MESSAGES:
        cause = str(error).partition("\n")[0]  # the server's hints, as about type casts, would mislead
        return f"{TEMPORARY_MESSAGES.get(code) or _LASTING_MESSAGES[code]} ({cause})"
    if code[:2] in ("22", "23"):
        return (
            "the database rejected a change, so a row or the schema is not as asyncrunner made it; run `asyncrunner doctor` to "
            f"find the difference ({error})"
        )
    return str(error)
