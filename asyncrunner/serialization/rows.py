"""Examine an annotation for items that come from text: rows of named cells, and lines."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable
from typing import Any, Final, Union, cast, get_args, get_origin

import msgspec.inspect

_FIELDS: Final = (msgspec.inspect.StructType, msgspec.inspect.TypedDictType, msgspec.inspect.DataclassType)


def empty_as_none(annotation: object) -> Callable[[str], bool]:
    """Return a predicate on column names: whether an empty cell of the column becomes None.

    It becomes None if the field of *annotation* with the name of the column may be None.
    """
    kind = _type_of(annotation)
    columns: set[str] = set()
    for each in _members(kind):
        if isinstance(each, msgspec.inspect.DictType):
            if _is_optional(each.value_type):
                return lambda _: True
        elif isinstance(each, _FIELDS):
            columns.update(field.encode_name for field in each.fields if _is_optional(field.type))
        elif isinstance(each, msgspec.inspect.CustomType):
            columns.update(_optional_of_model(each.cls))
    return columns.__contains__


def unknown_names(annotation: object) -> Callable[[Iterable[str]], list[str]]:
    """Return a function that returns those of the names of an item for which *annotation* has no field: they would be lost.

    It returns none if the item may be a dict or any value, or is a model that takes further names or refuses them itself.
    """
    known: set[str] = set()
    for each in _members(_type_of(annotation)):
        if isinstance(each, _FIELDS):
            known.update(field.encode_name for field in each.fields)
        elif isinstance(each, msgspec.inspect.CustomType) and (names := _names_of_model(each.cls)) is not None:
            known |= names
        elif not isinstance(each, msgspec.inspect.NoneType):
            return lambda _: []
    return lambda names: [name for name in names if name not in known]


def _names_of_model(model: type) -> set[str] | None:
    """Return the names that a pydantic model takes; None for another type, or if the names cannot be told."""
    fields = cast("dict[str, Any] | None", getattr(model, "model_fields", None))
    config = cast("dict[str, object]", getattr(model, "model_config", {}))
    if not fields or config.get("extra") in ("allow", "forbid"):
        return None
    decorators = getattr(model, "__pydantic_decorators__", None)
    names: set[str] = set()
    for name, field in fields.items():
        if not isinstance(field.validation_alias, str | None):
            return None  # a path, or one of several aliases
        names.update(each for each in (name, field.alias, field.validation_alias) if isinstance(each, str))
    return None if getattr(decorators, "model_validators", None) else names


def takes_fields(annotation: object, text: str) -> bool:
    """Return whether *annotation* requires items with named fields, so that a line of text such as *text* is no item."""
    members = [each for each in _members(_type_of(annotation)) if not isinstance(each, msgspec.inspect.NoneType)]
    return bool(members) and all(_has_fields(each, text) for each in members)


def _has_fields(kind: msgspec.inspect.Type, text: str) -> bool:
    if not isinstance(kind, msgspec.inspect.CustomType):
        return isinstance(kind, (msgspec.inspect.DictType, *_FIELDS))
    validate = getattr(kind.cls, "model_validate", None)  # pydantic, detected by its method, so that it stays optional
    if validate is None:
        return False
    try:
        validate(text)  # a root model, or a model with a validator of its own, may take text
    except Exception:  # noqa: BLE001 - a validator that expects fields may raise anything
        return True
    return False


def _type_of(annotation: object) -> msgspec.inspect.Type:
    try:
        return msgspec.inspect.type_info(annotation)
    except (TypeError, ValueError, NameError):
        return msgspec.inspect.AnyType()


def _members(kind: msgspec.inspect.Type) -> tuple[msgspec.inspect.Type, ...]:
    while isinstance(kind, msgspec.inspect.Metadata):
        kind = kind.type
    return kind.types if isinstance(kind, msgspec.inspect.UnionType) else (kind,)


def _is_optional(kind: msgspec.inspect.Type) -> bool:
    return any(isinstance(each, msgspec.inspect.NoneType) for each in _members(kind))


def _optional_of_model(model: type) -> set[str]:
    columns: set[str] = set()
    for name, field in cast("dict[str, Any]", getattr(model, "model_fields", {})).items():
        annotation: object = field.annotation
        if get_origin(annotation) in (Union, types.UnionType) and types.NoneType in get_args(annotation):
            names = (name, field.alias, field.validation_alias)
            columns.update(each for each in names if isinstance(each, str))
    return columns
