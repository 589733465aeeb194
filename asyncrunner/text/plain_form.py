"""Values that programs pass on: as plain JSON types, as the response of a FastAPI route, as a table in a notebook."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_type_hints

import msgspec

from asyncrunner.text.html import html_table


class PlainForm:
    """A mixin of values that consist of other such values and of plain types."""

    __slots__ = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dictionary of plain JSON types: dict, list, str, int, float, bool and None."""
        fields: dict[str, Any] = msgspec.to_builtins(self)
        return fields

    def _repr_html_(self) -> str:
        """Return the fields as an HTML table, for notebooks; every text in it is escaped, and long lists are cut."""
        return html_table(self.to_dict())

    def _pydantic_fields(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _field_names(type(self))}

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: Any) -> Any:
        """Describe the fields to pydantic, for a route with a return annotation and for its OpenAPI schema.

        Pydantic itself does not know structs, and it leaves out a field of a dataclass that is no argument of its constructor.
        """
        from pydantic_core import core_schema

        hints = get_type_hints(cls)
        names = _field_names(cls)
        fields = {name: core_schema.typed_dict_field(handler.generate_schema(hints[name])) for name in names}
        form = core_schema.typed_dict_schema(fields, ref=f"{cls.__module__}.{cls.__qualname__}", cls_name=cls.__qualname__)

        serialization = core_schema.plain_serializer_function_ser_schema(cls._pydantic_fields, return_schema=form)
        return core_schema.is_instance_schema(cls, serialization=serialization)


def _field_names(cls: Any) -> tuple[str, ...]:
    if issubclass(cls, msgspec.Struct):
        names: tuple[str, ...] = cls.__struct_fields__
        return names
    from dataclasses import fields

    return tuple(field.name for field in fields(cls))


class PlainStruct(PlainForm, msgspec.Struct, frozen=True):
    """A struct with a plain form. It is no dataclass, because the definition of a dataclass takes five times as long."""

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        """Yield the names and values of the fields, as a pydantic model does: FastAPI calls ``dict(value)``."""
        return iter(msgspec.structs.asdict(self).items())
