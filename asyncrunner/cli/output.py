"""Output that cannot be written: a full disk is said in a line, a reader that has gone is no error."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import Final

__all__ = ["check_written", "code_unread", "drop_output", "lost_output"]

_CHANGING: Final = frozenset({"backup", "cancel", "export", "pause", "purge", "recover", "resume", "retry", "run", "set", "stop"})
_ANSWERING: Final = frozenset({"check", "doctor", "run", "stop", "work"})


def check_written() -> None:
    """Write what waits in stdout. Raises OSError."""
    if sys.stdout is not None:
        sys.stdout.flush()


def code_unread(command: str) -> int:
    """The exit code where the reader is gone, as in ``| head``: 141, as of other programs, if the code is an answer, else 0."""
    return 141 if command in _ANSWERING else 0


def drop_output() -> None:
    """Nothing more can be said on stdout; the end of the interpreter shall not try it again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def lost_output(error: OSError, command: str) -> str:
    """What to say of it. Commands print when they are done, so what they change is changed by then."""
    done = f"; what `{command}` does is done, only its answer is lost" if command in _CHANGING else ""
    return f"stdout cannot be written ({error.strerror}){done}"
