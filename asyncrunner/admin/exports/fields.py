"""Choose the columns of an export, and flatten nested JSON objects to columns with dotted names. No I/O.

JSON values stay as they are stored, as ``msgspec.Raw``: a number keeps its digits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from asyncrunner.errors import ConfigurationError
from asyncrunner.store.snapshot import ItemRecord
from asyncrunner.text.escaping import safe_text
from asyncrunner.text.suggestions import did_you_mean

NAMES: Final[tuple[str, ...]] = ItemRecord._fields
JSON_NAMES: Final = frozenset({"payload", "result", "checkpoint", "rerun_payload"})

_MAX_DEPTH: Final = 32  # objects inside objects; a deeper one stays JSON


class Field(NamedTuple):
    """A chosen field: the ``name`` of a column of the items, and the ``path`` to a value inside its JSON."""

    column: str
    name: str
    path: tuple[str, ...] = ()


_ALL: Final = tuple(Field(each, each) for each in NAMES)


class Fields(NamedTuple):
    """The fields of an export. ``flatten``: an object becomes a column for each of its values, with a dotted name."""

    chosen: tuple[Field, ...] = _ALL
    flatten: bool = False

    @property
    def columns(self) -> list[str]:
        """The columns of each row; with ``flatten`` a row has others."""
        return [field.column for field in self.chosen]

    def row_of(self, record: ItemRecord) -> dict[str, Any]:
        """Return the values of an item by column; a JSON value is a ``msgspec.Raw``."""
        row: dict[str, Any] = {}
        raws: dict[str, msgspec.Raw | str | None] = {}
        for field in self.chosen:
            value: Any = getattr(record, field.name)
            if field.name in JSON_NAMES:
                if field.name not in raws:
                    raws[field.name] = raw_json(value)
                value = raws[field.name]
                if field.path:
                    value = _value_at(value, field.path)
            if self.flatten and isinstance(value, msgspec.Raw):
                for column, part in _flat(field.column, value, 0):
                    row[_free(column, row)] = part
            else:
                row[field.column] = value
        return row


def chosen_fields(names: Sequence[str] | None, *, flatten: bool) -> Fields:
    """Return the fields with these *names*; None: all. ``payload.user.name`` is a value inside the payload.

    Raises ConfigurationError for an unknown name and for no names.
    """
    if names is None:
        return Fields(flatten=flatten)
    if not names:
        raise ConfigurationError(f"no fields were given; give some of {', '.join(NAMES)}")
    return Fields(tuple(_field(name) for name in dict.fromkeys(names)), flatten)


def _field(column: str) -> Field:
    name, *path = column.split(".")
    if name not in NAMES:
        raise ConfigurationError(f"there is no field {safe_text(column, limit=80)!r}; {did_you_mean(name, NAMES)}")
    if path and name not in JSON_NAMES:
        raise ConfigurationError(f"the field {name!r} has no parts, as in {safe_text(column, limit=80)!r}; only JSON values have")
    if not all(path):
        raise ConfigurationError(
            f"the field {safe_text(column, limit=80)!r} has an empty part; give a path as in payload.user.name"
        )
    return Field(column, name, tuple(path))


def raw_json(text: str | None) -> msgspec.Raw | str | None:
    """Return a stored JSON text as one line of JSON, or the text if it is not valid JSON, for example after a manual edit."""
    if text is None:
        return None
    try:
        raw: msgspec.Raw = msgspec.json.decode(text, type=msgspec.Raw)
        return msgspec.Raw(msgspec.json.encode(msgspec.json.decode(text))) if "\n" in text else raw
    except msgspec.DecodeError:
        return text


def value_of(value: Any) -> Any:
    """Return a value of a row as plain Python types."""
    return msgspec.json.decode(value) if isinstance(value, msgspec.Raw) else value


def _value_at(value: msgspec.Raw | str | None, path: Sequence[str]) -> msgspec.Raw | None:
    """Return the part of a JSON value at *path*: names in objects, and numbers in arrays; None if there is none.

    A name in an object may itself contain dots.
    """
    if not isinstance(value, msgspec.Raw):
        return None
    if not path:
        return value
    if _is(value, b"["):
        parts = msgspec.json.decode(value, type=list[msgspec.Raw])
        first = path[0]
        if not (first.isascii() and first.isdigit() and len(first) < 10 and int(first) < len(parts)):
            return None
        return _value_at(parts[int(first)], path[1:])
    if _is(value, b"{"):
        members = msgspec.json.decode(value, type=dict[str, msgspec.Raw])
        for size in range(1, len(path) + 1):
            name = ".".join(path[:size])
            if name in members:
                part = _value_at(members[name], path[size:])
                if part is not None:
                    return part
    return None


def _flat(column: str, value: msgspec.Raw, depth: int) -> Iterator[tuple[str, msgspec.Raw]]:
    """Yield the columns of a value: an object has those of its members, and every other value is one column."""
    members = msgspec.json.decode(value, type=dict[str, msgspec.Raw]) if _is(value, b"{") and depth < _MAX_DEPTH else {}
    if not members:
        yield column, value
    for name, member in members.items():
        yield from _flat(f"{column}.{name}", member, depth + 1)


def _free(column: str, row: dict[str, Any]) -> str:
    """Return a column that *row* does not have yet: ``{"a.b": 1, "a": {"b": 2}}`` has two values with one dotted name."""
    number, free = 1, column
    while free in row:
        number += 1
        free = f"{column}#{number}"
    return free


def _is(value: msgspec.Raw, start: bytes) -> bool:
    return bytes(memoryview(value)[:1]) == start  # msgspec removes spaces around a value
