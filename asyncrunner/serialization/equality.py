"""Find what a value loses on its way through JSON: compare the value that was given with the one that comes back."""

from __future__ import annotations

import dataclasses
from typing import Any, Final, cast

from asyncrunner.serialization.descriptions import shown, type_name

_SCALARS: Final = (str, int, float, bool)
_INEXACT: Final = object()


class NotSameError(TypeError):
    """The error for a value that would come back from JSON as another value; its message names the part of the value."""


def exact_type(annotation: Any) -> Any:
    """Return the type whose instances come back equal if JSON can hold them at all, so nothing need be compared.

    This is a scalar, or a dataclass without special methods whose fields are scalars. For every other annotation the
    result is no type.
    """
    if annotation in _SCALARS:
        return annotation
    if not isinstance(annotation, type) or not dataclasses.is_dataclass(annotation) or hasattr(annotation, "__post_init__"):
        return _INEXACT
    names = {kind.__name__ for kind in _SCALARS}
    for field in dataclasses.fields(annotation):
        if not field.init or not (field.type in _SCALARS or field.type in names):
            return _INEXACT
    own_init = annotation.__init__.__qualname__ == f"{annotation.__qualname__}.__init__"
    return annotation if own_init and annotation.__mro__[1:] == (object,) else _INEXACT


def check_same(given: object, back: object) -> None:
    """Raise NotSameError if *back* is not equal to *given*; its message names the first field that differs.

    The JSON form of a type counts as equal: a dict of the fields of a dataclass, a list for a tuple, a text for a date.
    """
    if given != back:
        _compare(given, back, "")


def _compare(given: Any, back: Any, place: str) -> None:
    if given is back or (type(given) is type(back) and given == back):
        return
    if _are(given, back, dict):
        _compare_dicts(given, back, place)
    elif _are(given, back, list, tuple) and not _is_other_sequence(given, back):
        for number, (part, part_back) in enumerate(zip(given, back, strict=True)):
            _compare(part, part_back, f"{place}[{number}]")
    elif (names := _fields(back)) is not None and (type(given) is type(back) or type(given) is dict):
        _compare_fields(given, back, names, place)
    elif given != back and not _is_json_form(given, back):
        raise NotSameError(f"{_named(place, given)} would come back as {type_name(back)} {shown(back)}")


def _are(given: object, back: object, *kinds: type) -> bool:
    return isinstance(given, kinds) and isinstance(back, kinds)


def _is_other_sequence(given: list[Any] | tuple[Any, ...], back: list[Any] | tuple[Any, ...]) -> bool:
    return len(given) != len(back) or (type(given) is not type(back) and not (type(given) is list and isinstance(back, tuple)))


def _compare_dicts(given: dict[object, object], back: dict[object, object], place: str) -> None:
    for name, part in given.items():
        if name not in back:
            raise NotSameError(f"{_named(f'{place}[{name!r}]', part)} would not come back: the annotation does not name it")
        _compare(part, back[name], f"{place}[{name!r}]")


def _compare_fields(given: Any, back: Any, names: dict[str, str], place: str) -> None:
    if not isinstance(given, dict):
        for name in names.values():
            _compare(getattr(given, name, None), getattr(back, name, None), f"{place}.{name}")
        return
    if hasattr(back, "model_dump"):
        return  # pydantic decides which names of a dict it takes
    for name, part in cast("dict[str, object]", given).items():
        if name not in names:
            raise NotSameError(f"{_named(f'{place}[{name!r}]', part)} would not come back: {type_name(back)} has no such field")
        _compare(part, getattr(back, names[name]), f"{place}[{name!r}]")


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
    return type(given) in _SCALARS and type(back) not in (*_SCALARS, list, dict)


def _named(place: str, value: object) -> str:
    return f"{place.lstrip('.') or 'the value'}, {type_name(value)} {shown(value)},"
