"""Find the annotations whose values come back from JSON equal, so that nothing need be compared at run time."""

from __future__ import annotations

import dataclasses
import types
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from typing import Any, Final, Literal, Union, cast, get_args, get_origin, get_type_hints
from uuid import UUID

_SCALARS: Final = (str, int, float, bool)
_INEXACT: Final = object()
_CONTAINERS: Final = (list, dict, tuple, set, frozenset)
_GENERICS: Final = (*_CONTAINERS, Union, types.UnionType)
_EXACT_TYPES: Final = frozenset({datetime, date, time, timedelta, UUID, Decimal, bytes})


def exact_type(annotation: Any) -> Any:
    """Return the type whose instances come back equal if JSON can hold them at all, so nothing need be compared.

    This is a scalar, or a dataclass without special methods whose fields are scalars. For every other annotation the
    result is no type.
    """
    if annotation in _SCALARS:
        return annotation
    if not _is_simple_dataclass(annotation):
        return _INEXACT
    names = {kind.__name__ for kind in _SCALARS}
    is_exact = all(field.type in _SCALARS or field.type in names for field in dataclasses.fields(annotation))
    return annotation if is_exact else _INEXACT


class ResultExactness:
    """The knowledge of which results with an *annotation* come back equal, so that they need no comparison.

    Results of a plain annotation (JSON's own types and containers of them) come back equal, and so do instances of a
    date, an Enum and the like, and of a dataclass or msgspec.Struct whose fields have such annotations.
    """

    def __init__(self, annotation: Any) -> None:
        self._parts: set[type] = set()
        self.is_total = is_plain(annotation)
        """Whether every result with the annotation comes back equal."""
        exact = [] if self.is_total else [each for each in _alternatives(annotation) if self._is_exact(each)]
        self._types = frozenset(get_origin(each) or each for each in exact) | {type(None)}
        self.is_possible = self.is_total or bool(exact)
        """Whether any result with the annotation comes back equal without a comparison."""

    def covers(self, result: object) -> bool:
        """Return whether *result* comes back equal for sure."""
        if type(result) not in self._types:
            return False
        for part in self._parts:  # noqa: SIM110 - faster than any()
            if part.__subclasses__():
                return False  # a field may hold an instance of the subclass, which would come back as *part*
        return True

    def _is_exact(self, annotation: Any, *, is_field: bool = False) -> bool:
        if is_plain(annotation) or annotation in _EXACT_TYPES:
            return True
        if get_origin(annotation) in _GENERICS:
            return all(part is ... or self._is_exact(part, is_field=True) for part in get_args(annotation))
        if not issubclass(cast("Any", type(annotation)), type):
            return False
        if is_field and issubclass(annotation, PurePath):
            return True
        return issubclass(annotation, Enum) or self._is_exact_record(annotation, is_field)

    def _is_exact_record(self, kind: type, is_field: bool) -> bool:
        if kind in self._parts:
            return True
        is_struct = hasattr(kind, "__struct_fields__") and not hasattr(kind, "__post_init__")
        if not is_struct and not _is_simple_dataclass(kind):
            return False
        if is_field:
            self._parts.add(kind)
        try:
            is_exact = all(self._is_exact(each, is_field=True) for each in get_type_hints(kind).values())
        except Exception:  # noqa: BLE001 - an annotation that cannot be evaluated
            is_exact = False
        if not is_exact:
            self._parts.discard(kind)
        return is_exact


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def is_plain(annotation: Any) -> bool:
    """Return whether *annotation* names only JSON's own types, containers of them, and parts of any type."""
    if annotation in (Any, object, None, type(None), *_SCALARS, *_CONTAINERS):
        return True
    origin = get_origin(annotation)
    if origin is Literal:
        return True
    return origin in (*_CONTAINERS, Union, types.UnionType) and all(
        is_plain(part) or part is ... for part in get_args(annotation)
    )


def _is_simple_dataclass(annotation: Any) -> bool:
    if not isinstance(annotation, type) or not dataclasses.is_dataclass(annotation) or hasattr(annotation, "__post_init__"):
        return False
    if not all(field.init for field in dataclasses.fields(annotation)):
        return False
    own_init = annotation.__init__.__qualname__ == f"{annotation.__qualname__}.__init__"
    return own_init and annotation.__mro__[1:] == (object,)
