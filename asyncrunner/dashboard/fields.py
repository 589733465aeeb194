"""Read the values of a query or a form. Every text and number has a bound, because anyone can write them."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Final, TypeVar
from urllib.parse import parse_qsl

from asyncrunner.errors import ConfigurationError
from asyncrunner.text.escaping import safe_text
from asyncrunner.text.validation import argument, checked_choice, checked_text

T = TypeVar("T")
JSON_FIELD: Final = ".json"
"""The end of the name of a field whose value is a text as JSON; a browser would change the line breaks of the text itself."""

_MAX_FIELDS: Final = 400
_MAX_TEXT: Final = 2_000  # characters
_MAX_DIGITS: Final = 10


class Fields:
    """The fields of a query or of a form that was sent with POST; an empty field counts as missing."""

    def __init__(self, encoded: bytes) -> None:
        """Decode the fields, and check all of them before any is used.

        Raises ConfigurationError for too many fields, and for one that is not UTF-8 or JSON, is too long or cannot be stored.
        """
        try:
            pairs = parse_qsl(encoded.decode("ascii"), errors="strict", max_num_fields=_MAX_FIELDS)
        except ValueError as error:
            raise ConfigurationError(f"the request has at most {_MAX_FIELDS} fields of UTF-8 text") from error
        self._pairs = [_decoded(name, value) if name.endswith(JSON_FIELD) else (name, value) for name, value in pairs]
        for name, value in self._pairs:
            shown = safe_text(name, limit=80)
            if len(value) > _MAX_TEXT:
                raise ConfigurationError(f"{shown} has more than {_MAX_TEXT:,} characters; give a shorter text")
            checked_text(shown, value)

    def text(self, name: str) -> str | None:
        """Return a text; None if it is missing or empty. If a field is repeated, the first one counts."""
        values = self.texts(name)
        return values[0] if values else None

    def texts(self, name: str) -> Sequence[str]:
        """Return the texts of a field that may be repeated."""
        return [value for key, value in self._pairs if key == name and value]

    def required(self, name: str) -> str:
        """Return a text. Raises ConfigurationError if it is missing."""
        value = self.text(name)
        if value is None:
            raise ConfigurationError(f"{name} is missing")
        return value

    def choice(self, name: str, choices: Collection[str], default: str) -> str:
        """Return one of *choices*, or *default* if the field is missing. Raises ConfigurationError for another text."""
        value = self.text(name)
        return default if value is None else checked_choice(name, value, list(choices))

    def flag(self, name: str) -> bool:
        """Return whether the field is there, as that of a box that was ticked."""
        return self.text(name) is not None

    def number(self, name: str) -> int | None:
        """Return a whole number from 0 to 9,999,999,999. Raises ConfigurationError for another text."""
        value = self.text(name)
        if value is None:
            return None
        if not (value.isascii() and value.isdigit() and len(value) <= _MAX_DIGITS):
            raise ConfigurationError(f"{argument(name, value)}: give a whole number from 0 to 9,999,999,999")
        return int(value)


def _decoded(name: str, value: str) -> tuple[str, str]:
    """Return a field with its JSON decoded."""
    try:
        text: object = json.loads(value or '""')
    except (ValueError, RecursionError):
        text = None
    if not isinstance(text, str):
        raise ConfigurationError(f"{argument(name, value)}: give a text as JSON")
    return name.removesuffix(JSON_FIELD), text
