"""The result or error by which the replacement of a handler reports the end of the handler in another thread or process."""

from __future__ import annotations

from typing import NamedTuple

from asyncrunner.domain.outcome import ErrorInfo


class EncodedResult(NamedTuple):
    """A result that is already JSON text; the replacement of a handler returns it."""

    text: str


class DescribedError(Exception):
    """An *error* with its stored form, *info*; the replacement of a handler raises it."""

    def __init__(self, error: BaseException, info: ErrorInfo) -> None:
        super().__init__(info)
        self.error = error
        self.info = info
