"""Find what a value loses on its way through JSON: compare the value that was given with the one that comes back."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple, cast

import msgspec

from asyncrunner.serialization.descriptions import shown, type_name
from asyncrunner.serialization.foreign import is_missing, scalar_of

_SCALARS: Final = (str, int, float, bool)
_CONTAINERS: Final = (list, dict, tuple, set, frozenset)
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


class NotSameError(TypeError):
    """The error for a value that would come back from JSON as another value; its message names the part of the value."""


def check_same(given: object, back: object, *, plain: bool = False, nan_as_null: bool = False) -> None:
    """Raise NotSameError if *back* is not equal to *given*; its message names the first field that differs.

    The JSON form of a type counts as equal: a dict of the fields of a dataclass, a list for a tuple, a text for a date.
    With *plain*, a part that came back as its JSON form counts as equal too: a list from a tuple, a text from a date.
    With *nan_as_null*, None is the JSON form of a missing value.
    """
    if not _are_equal(given, back):
        _compare(given, back, "", _Rules(plain, nan_as_null))


def check_names(data: bytes) -> None:
    """Raise NotSameError if an object of the JSON *data* has a name twice, as from the dict ``{1: "a", "1": "b"}``."""
    if b":" in data and len(_encode(_decode(data))) != len(data):  # quick, and equal without such names
        json.loads(data, object_pairs_hook=_checked_object)


def _checked_object(pairs: list[tuple[str, object]]) -> None:
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            raise NotSameError(f"two of its dict keys become the name {name!r}, and one of their values would be lost")
        seen.add(name)


class _Rules(NamedTuple):
    plain: bool
    nan_as_null: bool


def check_nothing_hidden(value: Any, form: object, place: str = "", *, nan_as_null: bool = False) -> None:
    """Raise NotSameError if *form*, the JSON form of a pydantic model, has a masked secret or lacks a field.

    Without *nan_as_null*, null in place of a missing value is an error too. A field that is excluded but has its default
    value is no loss, and a model with a serializer of its own decides.
    """
    kind = cast("Any", type(value))
    if hasattr(kind, "get_secret_value"):
        if isinstance(form, str) and form and not form.strip("*") and value.get_secret_value() != form:
            raise NotSameError(f"{_named(place, value)} would be stored as {form!r}")
    elif form is None and not nan_as_null and is_missing(value):
        raise NotSameError(f'{_named(place, value)} would be stored as null, which only the option nan="null" permits')
    elif isinstance(form, dict):
        parts = cast("dict[str, object]", form)
        if hasattr(kind, "model_fields"):
            _check_fields_of(value, parts, place, nan_as_null)
        elif isinstance(value, dict):
            for (name, part), part_form in zip(cast("dict[object, object]", value).items(), parts.values(), strict=False):
                check_nothing_hidden(part, part_form, f"{place}[{name!r}]", nan_as_null=nan_as_null)
    elif isinstance(form, list) and _is(value, list, tuple):
        for number, (part, part_form) in enumerate(zip(value, cast("Any", form), strict=False)):
            check_nothing_hidden(part, part_form, f"{place}[{number}]", nan_as_null=nan_as_null)


def _check_fields_of(model: Any, form: dict[str, object], place: str, nan_as_null: bool) -> None:
    kind = cast("Any", type(model))
    if getattr(getattr(kind, "__pydantic_decorators__", None), "model_serializers", None):
        return
    for name, field in kind.model_fields.items():
        part = getattr(model, name, None)
        if name in form:
            check_nothing_hidden(part, form[name], f"{place}.{name}", nan_as_null=nan_as_null)
        elif part is not None and part != _default_of(field):
            raise NotSameError(f"{_named(f'{place}.{name}', part)} would not be stored: the JSON form of the model excludes it")


def _default_of(field: Any) -> object:
    try:
        return cast("object", field.get_default(call_default_factory=True))
    except Exception:  # noqa: BLE001 - a default that needs the other fields
        return None


def _compare(given: Any, back: Any, place: str, rules: _Rules) -> None:
    if given is back or (type(given) is type(back) and _are_equal(given, back)):
        return
    if rules.nan_as_null and _is(back, type(None)) and is_missing(given):
        return
    if rules.plain and _compare_plain(given, back, place, rules):
        return
    if _are(given, back, dict):
        _compare_dicts(given, back, place, rules)
    elif _are(given, back, list, tuple) and not _is_other_sequence(given, back):
        for number, (part, part_back) in enumerate(zip(given, back, strict=True)):
            _compare(part, part_back, f"{place}[{number}]", rules)
    elif (names := _fields(back)) is not None and (type(given) is type(back) or type(given) is dict):
        _compare_fields(given, back, names, place, rules)
    elif not _are_equal(given, back) and not _is_json_form(given, back) and not _is_same_moment(given, back):
        own = scalar_of(given)
        if own is given:
            raise NotSameError(f"{_named(place, given)} would come back as {type_name(back)} {shown(back)}")
        _compare(own, back, place, rules)


def _compare_plain(given: Any, back: Any, place: str, rules: _Rules) -> bool:
    """Compare *given* with its JSON form *back*; return False if *back* is not the JSON form of such a value."""
    kind = cast("Any", type(back))
    if kind is list:
        if not _is(given, tuple, set, frozenset) or len(given) != len(back):
            return False
        for number, (part, part_back) in enumerate(zip(given, back, strict=True)):
            _compare(part, part_back, f"{place}[{number}]", rules)
        return True
    if kind is dict:
        return _compare_plain_dict(given, back, place, rules)
    return kind in _SCALARS and not _is(given, *_SCALARS, *_CONTAINERS) and _fields(given) is None


def _compare_plain_dict(given: Any, back: dict[str, Any], place: str, rules: _Rules) -> bool:
    if hasattr(cast("Any", type(given)), "model_fields"):
        check_nothing_hidden(given, back, place, nan_as_null=rules.nan_as_null)
        return True
    if _is(given, dict):
        if all(type(name) is str for name in given) or len(given) != len(back):
            return False
        for (name, part), part_back in zip(given.items(), back.values(), strict=True):
            _compare(part, part_back, f"{place}[{name!r}]", rules)
        return True
    names = _fields(given)
    for name, attribute in (names or {}).items():
        if name in back:
            _compare(getattr(given, attribute), back[name], f"{place}.{attribute}", rules)
    return names is not None


def _are_equal(given: object, back: object) -> bool:
    try:
        return bool(given == back)
    except Exception:  # noqa: BLE001 - of pandas.NA and of arrays
        return False


def _is(value: object, *kinds: type) -> bool:
    return isinstance(value, kinds)


def _are(given: object, back: object, *kinds: type) -> bool:
    return isinstance(given, kinds) and isinstance(back, kinds)


def _is_other_sequence(given: list[Any] | tuple[Any, ...], back: list[Any] | tuple[Any, ...]) -> bool:
    return len(given) != len(back) or (type(given) is not type(back) and not (type(given) is list and isinstance(back, tuple)))


def _compare_dicts(given: dict[object, object], back: dict[object, object], place: str, rules: _Rules) -> None:
    for name, part in given.items():
        if name not in back:
            raise NotSameError(f"{_named(f'{place}[{name!r}]', part)} would not come back: the annotation does not name it")
        _compare(part, back[name], f"{place}[{name!r}]", rules)


def _compare_fields(given: Any, back: Any, names: dict[str, str], place: str, rules: _Rules) -> None:
    if not isinstance(given, dict):
        for name in names.values():
            _compare(getattr(given, name, None), getattr(back, name, None), f"{place}.{name}", rules)
        return
    if hasattr(back, "model_dump"):
        return  # pydantic decides which names of a dict it takes
    for name, part in cast("dict[str, object]", given).items():
        if name not in names:
            raise NotSameError(f"{_named(f'{place}[{name!r}]', part)} would not come back: {type_name(back)} has no such field")
        _compare(part, getattr(back, names[name]), f"{place}[{name!r}]", rules)


def _fields(value: Any) -> dict[str, str] | None:
    """Return the fields of an instance, name in JSON -> attribute; None for a value without fields."""
    kind = cast("Any", type(value))
    if hasattr(kind, "__struct_fields__"):  # msgspec
        return dict(zip(kind.__struct_encode_fields__, kind.__struct_fields__, strict=True))
    if hasattr(kind, "__attrs_attrs__"):
        return {attribute.name: attribute.name for attribute in kind.__attrs_attrs__}
    if hasattr(kind, "model_fields"):  # pydantic
        return {name: name for name in cast("dict[str, object]", kind.model_fields)}
    if hasattr(kind, "__dataclass_fields__"):
        return {field.name: field.name for field in dataclasses.fields(kind)}
    return None


def _is_json_form(given: Any, back: Any) -> bool:
    if issubclass(type(given), list) and issubclass(type(back), set | frozenset):
        return len(given) == len(back)
    return type(given) in _SCALARS and type(back) not in (*_SCALARS, list, dict, type(None))


def _is_same_moment(given: object, back: object) -> bool:
    # In the hour that a clock change repeats, Python finds no datetime equal to one with another tzinfo.
    if not isinstance(given, datetime) or not isinstance(back, datetime) or given.tzinfo is None or back.tzinfo is None:
        return False
    return given.astimezone(UTC) == back.astimezone(UTC)


def _named(place: str, value: object) -> str:
    return f"{place.lstrip('.') or 'the value'}, {type_name(value)} {shown(value)},"
