"""Handle stdout that cannot be written: report a full disk in one line, and choose the exit code for a closed pipe."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import Final

_CHANGING_COMMANDS: Final = frozenset(
    {"backup", "cancel", "export", "pause", "purge", "recover", "restore", "resume", "retry", "run", "set", "stop"}
)

_COMMANDS_WITH_ANSWER_CODE: Final = frozenset({"check", "doctor", "run", "stop", "work"})


def flush_stdout() -> None:
    """Flush stdout. Raises OSError."""
    if sys.stdout is not None:
        sys.stdout.flush()


def closed_pipe_code(command: str) -> int:
    """Return the exit code for a closed stdout pipe, as in ``| head``.

    It is 141 if the exit code of *command* is an answer, as for ``check``, else 0.
    """
    return 141 if command in _COMMANDS_WITH_ANSWER_CODE else 0


def discard_stdout() -> None:
    """Redirect stdout to the null device, so that the interpreter does not fail when it flushes stdout at exit."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(devnull, sys.stdout.fileno())
    os.close(devnull)


def lost_output_message(error: OSError, command: str) -> str:
    """Return the error message. A command prints after it has changed the file, so the change is complete."""
    completed = f"; `{command}` completed, only its output is lost" if command in _CHANGING_COMMANDS else ""
    return f"stdout cannot be written ({error.strerror}){completed}"
