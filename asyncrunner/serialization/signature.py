"""Read the annotations of a handler: the type of its item and the type of its result."""

from __future__ import annotations

import functools
import inspect
import typing
from typing import TYPE_CHECKING, Any

from asyncrunner.errors import ConfigurationError
from asyncrunner.serialization.descriptions import name_of

if TYPE_CHECKING:
    from collections.abc import Callable


def signature_of(handler: Callable[..., object]) -> tuple[object, object]:
    """Return the annotations of *handler*'s first parameter and of its return value; ``Any`` for a missing one.

    Raises ConfigurationError if the handler cannot be called with one item, or if an annotation has an unknown name.
    """
    name = name_of(handler)
    try:
        signature = inspect.signature(handler)
    except (TypeError, ValueError):
        return Any, Any  # a builtin without a signature: an attempt fails if it does not take one item
    try:
        signature.bind(None)
    except TypeError as error:
        raise ConfigurationError(
            f"{name}{signature} cannot be called with one item ({error}); bind the other parameters with functools.partial"
        ) from error
    target = inspect.unwrap(handler)
    while isinstance(target, functools.partial):
        target = target.func
    if not inspect.isroutine(target) and not isinstance(target, type):
        target = type(target).__call__
    try:
        hints = typing.get_type_hints(target, include_extras=True)
    except NameError as error:
        raise ConfigurationError(
            f"{name}: an annotation cannot be resolved ({error}); import that name at run time, not only under TYPE_CHECKING"
        ) from error
    except Exception:  # noqa: BLE001 - annotations that are not types do not describe the item
        hints = {}
    first = next(iter(signature.parameters.values()))
    return hints.get(first.name, Any), hints.get("return", Any)
