"""A released migration is never edited: files exist that were made with it, and they do not get the edit."""

from __future__ import annotations

import hashlib
from typing import Final

from asyncrunner.sqlite.sql.schema import MIGRATIONS

RELEASED: Final = (
    "0ef2e77203176703",
    "d2301f31a9e1e48b",
    "9841d89638dcad91",
    "2f142fdaa52d406c",
    "a808850079639b09",
    "2643c72417a8a6ae",
)
UNRELEASED: Final = 1  # how many migrations, at the end, may still change: 0 after a release, at most 1 before it


def checksums() -> tuple[str, ...]:
    return tuple(hashlib.sha256(script.encode()).hexdigest()[:16] for script in MIGRATIONS)


def test_no_released_migration_is_edited() -> None:
    found = checksums()
    assert found[: len(RELEASED)] == RELEASED, (
        "a released migration was edited, or removed: undo that, and append a new migration to MIGRATIONS. A file that was "
        "made with the released text keeps it"
    )


def test_every_migration_but_the_unreleased_one_is_held_by_its_checksum() -> None:
    found = checksums()
    assert len(found) == len(RELEASED) + UNRELEASED, (
        "every release appends the checksums of its migrations to RELEASED and sets UNRELEASED to 0; a new migration after it "
        f"sets UNRELEASED to 1. The checksums not yet held: {found[len(RELEASED) :]}"
    )
