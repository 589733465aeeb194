"""Convert values of libraries that asyncrunner does not import: pydantic models, scalars of numpy and pandas."""

from __future__ import annotations

import math
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


def without_foreign(value: object, *, nan_as_null: bool = False) -> object:
    """Return *value* with Python's own scalars in place of those of numpy and pandas; *value* itself without one.

    With *nan_as_null*, None is in place of each missing value, see ``is_missing``.
    """
    try:
        return _without_foreign(value, own_or_none if nan_as_null else scalar_of)
    except RecursionError:
        return value  # a list that contains itself


def _without_foreign(value: object, own_of: Callable[[object], object]) -> object:
    kind = cast("Any", type(value))
    if kind in (list, tuple):
        parts: list[object] = [_without_foreign(part, own_of) for part in cast("list[object]", value)]
        is_same = all(part is old for part, old in zip(parts, cast("list[object]", value), strict=True))
        return value if is_same else cast("object", kind(parts))
    if kind is dict:
        old = cast("dict[object, object]", value)
        new = {scalar_of(name): _without_foreign(part, own_of) for name, part in old.items()}
        is_same = all(a is b for a, b in zip(new, old, strict=True)) and all(new[name] is old[name] for name in new)
        return value if is_same else new
    return own_of(value)


def own_or_none(value: object) -> object:
    """Return None for a missing value, see ``is_missing``; else the same as ``scalar_of``."""
    return None if is_missing(value) else scalar_of(value)


def is_missing(value: Any) -> bool:
    """Return whether *value* is NaN or infinity, or NaT or NA of numpy or pandas."""
    kind = cast("Any", type(value))
    if isinstance(value, float):
        return not math.isfinite(value)
    if kind.__name__ in ("NaTType", "NAType"):
        return bool(kind.__module__.partition(".")[0] == "pandas")
    dtype = getattr(kind, "dtype", None)
    if dtype is None or getattr(value, "shape", None) != ():
        return False
    if value.dtype.kind in "mM":
        return bool(value != value)
    return bool(value.dtype.kind == "f" and not math.isfinite(value))


def scalar_of(value: Any) -> object:
    """Return a scalar of numpy or pandas as Python's own; every other *value* itself.

    A scalar that Python's own type cannot hold exactly stays as it is: a time with nanoseconds, a longdouble, NaT, NA.
    """
    kind = cast("Any", type(value))
    if hasattr(kind, "to_pydatetime") and not getattr(value, "nanosecond", 0):  # pandas
        return cast("object", value.to_pydatetime())
    if hasattr(kind, "to_pytimedelta") and not getattr(value, "nanoseconds", 0):
        return cast("object", value.to_pytimedelta())
    if hasattr(kind, "dtype") and hasattr(kind, "item") and getattr(value, "shape", None) == ():  # numpy
        return _numpy_scalar(value)
    return value


def _numpy_scalar(value: Any) -> object:
    own = value.item()
    unit = value.dtype.kind
    if unit in "mM" and isinstance(own, int):  # nanoseconds
        micros = value.astype(f"{unit}8[us]")
        own = micros.item() if micros == value else None
    if hasattr(cast("Any", type(own)), "dtype") or (unit in "mM" and (own is None or isinstance(own, int))):
        return value
    return cast("object", own)
