"""The end of a handler that ran in another thread or process, as the executor understands it."""

from __future__ import annotations

from typing import NamedTuple

from asyncrunner.domain.outcome import ErrorInfo


class EncodedResult(NamedTuple):
    """A result that is already JSON text; the replacement of a handler returns it."""

    text: str


class DescribedError(Exception):
    """An *error* with the stored form that another process has made; the replacement of a handler raises it."""

    def __init__(self, error: BaseException, info: ErrorInfo) -> None:
        super().__init__(info)
        self.error = error
        self.info = info
