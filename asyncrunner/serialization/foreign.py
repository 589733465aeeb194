"""Convert values of libraries that asyncrunner does not import: pydantic models, numpy scalars, pandas timestamps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import msgspec


def from_library(value: Any) -> object:
    """Return the JSON form of a pydantic model, by the names of its fields, and a scalar as Python's own; else *value*."""
    kind = cast("Any", type(value))
    dump: Any = getattr(value, "model_dump", None)
    if dump is None or issubclass(kind, type):
        return scalar_of(value)
    computed: Any = getattr(kind, "model_computed_fields", None)
    if computed and value.model_config.get("extra") == "forbid":
        return cast("object", dump(mode="json", exclude=set(computed)))  # the model would refuse them
    return cast("object", dump(mode="json"))


def to_model(kind: Any, value: object) -> object:
    """Build a pydantic model from its JSON form, by field names or aliases. Raises ValueError if it does not fit."""
    try:
        return _validated(kind.model_validate, value)
    except ValueError:
        try:
            return _validated(kind.model_validate_json, msgspec.json.encode(value))  # a strict model takes a date from JSON only
        except ValueError:
            pass
        raise


def _validated(validate: Callable[..., object], value: object) -> object:
    try:
        return validate(value, by_alias=True, by_name=True)
    except TypeError:  # before pydantic 2.11
        return validate(value)


def without_foreign(value: object) -> object:
    """Return *value* with Python's own scalars in place of numpy scalars and pandas timestamps; *value* itself without one.

    A pandas timestamp with nanoseconds stays, because a datetime cannot hold them.
    """
    try:
        return _without_foreign(value)
    except RecursionError:
        return value  # a list that contains itself


def _without_foreign(value: object) -> object:
    kind = cast("Any", type(value))
    if kind in (list, tuple):
        parts: list[object] = [_without_foreign(part) for part in cast("list[object]", value)]
        is_same = all(part is old for part, old in zip(parts, cast("list[object]", value), strict=True))
        return value if is_same else cast("object", kind(parts))
    if kind is dict:
        old = cast("dict[object, object]", value)
        new = {_without_foreign(name): _without_foreign(part) for name, part in old.items()}
        is_same = all(a is b for a, b in zip(new, old, strict=True)) and all(new[name] is old[name] for name in new)
        return value if is_same else new
    return scalar_of(value)


def scalar_of(value: Any) -> object:
    """Return a numpy scalar or a pandas timestamp as Python's own; every other *value* itself."""
    kind = cast("Any", type(value))
    if hasattr(kind, "to_pydatetime") and not getattr(value, "nanosecond", 0):  # pandas
        return cast("object", value.to_pydatetime())
    if hasattr(kind, "dtype") and hasattr(kind, "item") and getattr(value, "shape", None) == ():  # numpy
        return cast("object", value.item())
    return value
