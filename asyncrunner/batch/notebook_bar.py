"""Show the progress in a notebook: one output of the cell, which each update replaces."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final, cast

from asyncrunner.text.escaping import safe_text
from asyncrunner.text.html import html_text

if TYPE_CHECKING:
    from asyncrunner.batch.progress import ProgressUpdate

_MAX_NAME_LENGTH: Final = 60


def is_notebook() -> bool:
    """Return whether this process is the kernel of a notebook, whose frontend shows HTML."""
    ipython = sys.modules.get("IPython")
    shell: Any = None if ipython is None else ipython.get_ipython()
    return getattr(shell, "kernel", None) is not None


class NotebookBar:
    """A view that shows a bar as HTML, and as text for frontends without HTML, in the output of the running cell."""

    interval = 0.5

    def __init__(self) -> None:
        self._handle: Any = None

    def show(self, update: ProgressUpdate) -> None:
        self._draw(update)

    def show_note(self, update: ProgressUpdate) -> None:
        self._draw(update)

    def end(self, update: ProgressUpdate) -> None:
        self._draw(update)

    def _draw(self, update: ProgressUpdate) -> None:
        import IPython.display

        display = cast("Any", IPython.display).display
        content = {"text/html": _html(update), "text/plain": _text(update)}
        if self._handle is None:
            self._handle = display(content, raw=True, display_id=True)
        else:
            self._handle.update(content, raw=True)


def _html(update: ProgressUpdate) -> str:
    # Without a value, a frontend shows a bar that moves to and fro.
    bar = "<progress></progress>" if update.share is None else f'<progress max="1" value="{update.share:.4f}"></progress>'
    lines = [f"{html_text(update.batch, limit=_MAX_NAME_LENGTH)} {bar} {html_text(update.counts_text)}"]
    lines += [html_text(text) for text in (update.pace_text, update.note) if text]
    return "<div>" + "<br>".join(lines) + "</div>"


def _text(update: ProgressUpdate) -> str:
    texts = [f"{update.batch}: {update.counts_text}", update.pace_text, update.note]
    return "\n  ".join(safe_text(text) for text in texts if text)
