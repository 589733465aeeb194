"""Determine the key of an item, its identity in its batch: the caller gives the key, or it is derived from the item."""

from __future__ import annotations

import hashlib
import os
import re
from typing import TYPE_CHECKING, Final, cast
from uuid import UUID

import msgspec

from asyncrunner.errors import InvalidKey
from asyncrunner.serialization.descriptions import describe_item, shown, type_name
from asyncrunner.serialization.foreign import scalar_of

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_KEY_LENGTH: Final = 512
"""The longest key, in characters."""

_MAX_OWN_KEY_LENGTH: Final = 200
_LAST_CHARACTERS: Final = frozenset('0123456789"')
_QUOTED_OR_INT: Final = re.compile(r'"+.*"+|-?[0-9]+', re.DOTALL)  # an int, or the key of a text that looks like one


def default_key(item: object, payload: str, *, only_texts: bool = False) -> str:
    """Return the key of an item without a given key: a short str or int is its own key, else a digest of the JSON.

    The item 7 has the key ``7``, and the item "7" has the key ``"7"`` with the quotes: a text that looks like an int has
    its JSON as its key. With *only_texts*, when all items of the batch are texts, the key of "7" is ``7``.
    """
    kind = type(item)
    if kind is str and 0 < len(cast("str", item)) <= _MAX_OWN_KEY_LENGTH and "\0" not in cast("str", item):
        text = cast("str", item)
        if only_texts or text[-1] not in _LAST_CHARACTERS or not _QUOTED_OR_INT.fullmatch(text):
            return text
        if len(payload) <= _MAX_OWN_KEY_LENGTH:
            return payload
    if kind is int and len(payload) <= _MAX_OWN_KEY_LENGTH:
        return payload
    if kind is not dict:
        own = scalar_of(item)
        if own is not item and type(own) in (str, int):
            return default_key(own, payload)  # a numpy scalar
    return hashlib.blake2b(canonical_json(payload), digest_size=16).hexdigest()


def new_key(now: float) -> str:
    """Return the key of a new job: a random UUID of version 7, so keys sort by time. *now*: seconds since the epoch.

    The UUID has 48 bits of milliseconds, 12 bits of the fraction of the millisecond, and 62 random bits.
    """
    milliseconds = now * 1000
    fraction = int(milliseconds % 1 * 4096)
    random_bits = int.from_bytes(os.urandom(8)) & (1 << 62) - 1
    return str(UUID(int=(int(milliseconds) & (1 << 48) - 1) << 80 | 7 << 76 | fraction << 64 | 2 << 62 | random_bits))


def canonical_json(text: str) -> bytes:
    """Return the JSON with its names sorted, so that texts that differ only in the order of names become equal."""
    return _canonical.encode(msgspec.json.decode(text))


def is_same_json(stored: str, given: str) -> bool:
    """Return whether two JSON texts have the same value; the order of names does not matter."""
    return stored == given or canonical_json(stored) == canonical_json(given)


def given_key(key: object, item: object) -> str:
    """Return a key that a caller or its ``key=`` function gave, as a str.

    A tuple or a list is a compound key: its parts become texts in a JSON array, so ("a", 7) is ``["a","7"]``, and no other
    parts give the same text. Raises InvalidKey if the key cannot identify the item.
    """
    if type(key) in (tuple, list):
        return _compound_key(cast("Sequence[object]", key), item)
    if not isinstance(key, int | str):
        key = scalar_of(key)  # of numpy
    if type(key) is int and abs(key) < 10**_MAX_OWN_KEY_LENGTH:
        return str(key)
    if not isinstance(key, str):
        raise InvalidKey(f"key {shown(key)} of {describe_item(item)} is {type_name(key)}; give a str, an int, or a tuple of them")
    if not key or len(key) > MAX_KEY_LENGTH:
        raise InvalidKey(f"the key of {describe_item(item)} has {len(key)} characters; give 1 to {MAX_KEY_LENGTH}")
    if " at 0x" in key:
        raise InvalidKey(
            f"key {shown(key)} contains a memory address, which differs from run to run; build the key from the item's content"
        )
    if "\0" in key:
        raise InvalidKey(f"key {shown(key)} contains a NUL character, which not every database can store in a text; remove it")
    try:
        key.encode()
    except UnicodeEncodeError as error:
        raise InvalidKey(f"key {shown(key)} is not valid Unicode: {error}") from error
    return str.__str__(key)  # for an Enum that is a str, this is its value


def _compound_key(parts: Sequence[object], item: object) -> str:
    if not parts:
        raise InvalidKey(f"the key of {describe_item(item)} is an empty tuple; give the values that identify the item")
    texts = [given_key(part, item) for part in parts if type(part) not in (tuple, list)]
    if len(texts) < len(parts):
        raise InvalidKey(f"key {shown(parts)} of {describe_item(item)} has a tuple or a list in it; give str and int")
    key = msgspec.json.encode(texts).decode()
    if len(key) > MAX_KEY_LENGTH:
        raise InvalidKey(f"the key of {describe_item(item)} has {len(key)} characters; give 1 to {MAX_KEY_LENGTH}")
    return key


_canonical = msgspec.json.Encoder(order="sorted")
