"""Turn values into new items: payload, key, due time, priority."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, cast

from asyncrunner.domain.item import NewItem
from asyncrunner.errors import ConfigurationError, InvalidKey
from asyncrunner.serialization.codec import Codec
from asyncrunner.serialization.descriptions import shown
from asyncrunner.serialization.keys import default_key, given_key

if TYPE_CHECKING:
    from asyncrunner.domain.clock import Clock


class Encoder:
    """Converts items to entries. ``key``: a function of the item, the name of one of its fields, or None for the default."""

    def __init__(self, codec: Codec[Any], key: Callable[[Any], str | int] | str | None) -> None:
        self._codec = codec
        self._key = _field_getter(key) if isinstance(key, str) else key

    def entry(self, item: object, *, key: object = None, priority: int = 0, due_at: float | None = None) -> NewItem:
        """Return the item as an entry. Raises ItemNotStorable or InvalidKey, which name the item."""
        payload = self._codec.encode_item(item)
        if key is None and self._key is not None:
            key = self._key(item)
            if key is None:
                raise InvalidKey(f"the key of item {shown(item)} is None; give a str or an int")
        return NewItem(default_key(item, payload) if key is None else given_key(key, item), payload, priority, due_at)


def _field_getter(name: str) -> Callable[[Any], Any]:
    def get(item: Any) -> Any:
        try:
            return cast("dict[str, Any]", item)[name] if isinstance(item, dict) else getattr(item, name)
        except (KeyError, AttributeError) as error:
            raise InvalidKey(f"item {shown(cast('object', item))} has no field {name!r}, which key= names") from error

    return get


_MAX_PRIORITY: Final = 2**31


def due_at(delay: float | None, run_at: datetime | None, clock: Clock) -> float | None:
    """Return when an item may run, in seconds since the epoch; None means immediately.

    *delay* is in seconds. Raises ConfigurationError if both are given, for a delay that is negative or not finite, and for a
    *run_at* that is not a datetime or has no time zone.
    """
    if delay is not None and run_at is not None:
        raise ConfigurationError("give delay= or run_at=, not both")
    if run_at is not None:
        if not isinstance(run_at, datetime):
            raise ConfigurationError(f"run_at={run_at!r}: give a datetime with a time zone, or delay= in seconds")
        if run_at.tzinfo is None or run_at.utcoffset() is None:
            raise ConfigurationError(f"run_at={run_at!r} has no time zone; use datetime.now(UTC) or a datetime with a tzinfo")
        return run_at.timestamp()
    if delay is None:
        return None
    if not isinstance(delay, int | float) or isinstance(delay, bool) or not 0 <= delay < float("inf"):
        raise ConfigurationError(f"delay={delay!r}: give seconds, 0 or more")
    return clock.now() + delay if delay else None


def checked_priority(priority: int) -> int:
    """Return *priority*. Raises ConfigurationError unless it is a whole number within +-2,147,483,647."""
    if not isinstance(priority, int) or isinstance(priority, bool) or abs(priority) >= _MAX_PRIORITY:
        raise ConfigurationError(
            f"priority={priority!r}: give a whole number within +-2,147,483,647; higher runs first, the default is 0"
        )
    return priority
