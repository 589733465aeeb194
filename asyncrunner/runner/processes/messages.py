"""The messages between a parent process and its child processes: one JSON object a line, through two pipes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Literal

import msgspec

MAX_LINE: Final = 4_096
"""The bytes of a line that the operating system writes to a pipe as a whole, or not at all."""

MAX_REASON: Final = 500
"""The characters of a text in a line, so that the line is not longer than ``MAX_LINE``."""


class Start(msgspec.Struct, frozen=True):
    """The first line for a child: what it needs before it can import anything.

    ``path`` and ``arguments`` are ``sys.path`` and ``sys.argv`` of the parent. ``python_path`` is the environment variable
    PYTHONPATH of the parent, None if it is not set. ``log_level``: the level of the parent's log of asyncrunner. ``settings``:
    what the child runs.
    """

    path: Sequence[str]
    arguments: Sequence[str]
    python_path: str | None
    log_level: int
    settings: msgspec.Raw


class Request(msgspec.Struct, frozen=True, omit_defaults=True):
    """A request of the parent.

    ``stop``: end after the running handlers have ended (drain), or cancel them (cancel). ``given``: items that the child may
    claim from now on, as pairs of the first number and the count. ``is_input_read``: the parent has added the last item, so the
    child reports when no item of the batch is unfinished.
    """

    stop: Literal["drain", "cancel"] | None = None
    given: Sequence[tuple[int, int]] = ()
    is_input_read: bool = False


LOG_MARK: Final = b"log "
"""The beginning of a line that is a ``LogLine``; the other lines of a child are states."""


class LogLine(msgspec.Struct, frozen=True):
    """A record that a child has logged, for the log of its parent. ``fields``: the batch, the item and the attempt."""

    name: str
    level: int
    message: str
    fields: Mapping[str, str | int]


class ChildState(msgspec.Struct, frozen=True, omit_defaults=True):
    """The state of a child, which it reports when it has changed, and at least once a second.

    ``tally``: the attempts that the child has settled since its start, by the name of their outcome. ``is_exhausted``: the file
    has no item that the child may claim now. ``is_idle``: the input is read, and no item is unfinished in any process.
    ``stopped``: why the batch is stopped. ``is_stopping``: the child has got a request to stop. ``has_ended``: the child has
    ended in order. ``error``: why the child cannot run; then it ends. ``setup_error``: the error of ``setup=``, if that is why.
    ``is_configuration``: the options are why.
    """

    tally: Mapping[str, int] = {}
    is_exhausted: bool = False
    is_idle: bool = False
    stopped: str | None = None
    is_stopping: bool = False
    has_ended: bool = False
    error: str | None = None
    setup_error: str | None = None
    is_configuration: bool = False
