"""Write a new file that appears under its name only when it is complete: a store, a backup, an export.

The file is first written as a draft, under the temporary name ``.NAME.*.new`` in the same folder, and then linked to
its own name. So a kill leaves only a draft, and no file is ever replaced.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

from asyncrunner.errors import ConfigurationError


def create_draft(target: Path) -> Path:
    """Create an empty draft of *target* with mode 0600, and return the draft's path.

    Raises OSError, and ValueError for a path with a NUL.
    """
    draft = target.with_name(f".{target.name}.{secrets.token_hex(6)}.new")
    os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    return draft


def remove_draft(draft: Path) -> None:
    """Delete the draft, if it still exists, and the files that SQLite created next to it."""
    for suffix in ("", "-wal", "-shm", "-journal"):
        with suppress(OSError):
            draft.with_name(draft.name + suffix).unlink(missing_ok=True)


def draft_of(target: Path) -> Path:
    """Create a draft of a *target* that the user named, for ``publish()``, and return the draft's path.

    Raises ConfigurationError if *target* exists or the draft cannot be created.
    """
    if os.path.lexists(target):
        raise ConfigurationError(f"{target} already exists; give another path, or remove it first")
    try:
        return create_draft(target)
    except (OSError, ValueError) as error:  # a NUL is a ValueError
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigurationError(f"{str(target)!r} cannot be written ({reason}); give another path") from error


def publish(draft: Path, target: Path) -> None:
    """Rename the finished *draft* to *target*, and never replace a file.

    Raises ConfigurationError if another program created *target* meanwhile, or if *target* cannot be written. The draft
    is removed in every case.
    """
    try:
        try:
            os.link(draft, target)
        except PermissionError:  # the file system has no links: reserve the name first, so that no file is replaced
            os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            draft.replace(target)
    except FileExistsError:
        raise ConfigurationError(f"{target} was created by another program meanwhile; give another path") from None
    except OSError as error:
        raise ConfigurationError(f"{target} cannot be written ({error.strerror}); give another path") from error
    finally:
        draft.unlink(missing_ok=True)
