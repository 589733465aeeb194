"""Convert items to NewItem entries, which have a payload, a key, a due time and a priority."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast

from asyncrunner.domain.item import NewItem
from asyncrunner.domain.options import KeyOption
from asyncrunner.errors import ConfigurationError, InvalidKey
from asyncrunner.serialization.codec import Codec
from asyncrunner.serialization.descriptions import shown
from asyncrunner.serialization.keys import default_key, given_key
from asyncrunner.text.timestamps import LAST
from asyncrunner.text.validation import argument, checked_moment, checked_seconds

if TYPE_CHECKING:
    from asyncrunner.domain.clock import Clock


class Encoder:
    """A converter from items to entries.

    ``key``: a function of the item, the name of one of the item's fields, the names of several fields, or None for the
    default key, which is the item's content.
    """

    def __init__(self, codec: Codec[Any], key: KeyOption | None) -> None:
        self._codec = codec
        self._only_texts = codec.annotation is str
        self._key = key if key is None or callable(key) else _getter(key)

    @property
    def has_key(self) -> bool:
        """Whether ``key`` is given."""
        return self._key is not None

    def entry(self, item: object, *, key: object = None, priority: int = 0, due_at: float | None = None) -> NewItem:
        """Convert *item* to an entry. Raises ItemNotStorable or InvalidKey, whose messages show the item."""
        payload = self._codec.encode_item(item)
        if key is None and self._key is not None:
            key = self._key(item)
            if key is None:
                raise InvalidKey(f"the key of item {shown(item)} is None; give a str or an int")
        key = default_key(item, payload, only_texts=self._only_texts) if key is None else given_key(key, item)
        return NewItem(key, payload, priority, due_at)


def _getter(names: str | Sequence[str]) -> Callable[[Any], object]:
    if isinstance(names, str):
        return _field_getter(names)
    getters = [_field_getter(name) for name in names]

    def get(item: Any) -> tuple[Any, ...]:
        parts = tuple(getter(item) for getter in getters)
        for name, part in zip(names, parts, strict=True):
            if part is None:
                raise InvalidKey(f"field {name!r} of item {shown(item)} is None, and key= names it; give a str or an int")
        return parts

    return get


def _field_getter(name: str) -> Callable[[Any], Any]:
    def get(item: Any) -> Any:
        try:
            return cast("dict[str, Any]", item)[name] if isinstance(item, dict) else getattr(item, name)
        except (KeyError, AttributeError) as error:
            raise InvalidKey(f"item {shown(cast('object', item))} has no field {name!r}, the field that key= names") from error

    return get


def due_at(delay: float | None, run_at: datetime | None, clock: Clock) -> float | None:
    """Return the time from which an item may run, in seconds since the epoch; None means immediately.

    *delay* is in seconds. Raises ConfigurationError if both are given, for a delay that is negative or not finite, for
    one that ends after the year 9999, which no store can hold, and for a *run_at* that is not a datetime or has no time zone.
    """
    if delay is not None and run_at is not None:
        raise ConfigurationError("give delay= or run_at=, not both")
    if run_at is not None:
        return checked_moment("run_at", run_at, instead="delay= in seconds").timestamp()
    if delay is None:
        return None
    checked_seconds("delay", delay)
    now = clock.now()
    if delay > LAST - now:
        raise ConfigurationError(
            f"{argument('delay', delay)} ends after the year 9999, the last one that can be stored; give from 0 to "
            f"{int(LAST - now):,} seconds"
        )
    return now + delay if delay else None
