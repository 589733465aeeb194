"""Read the annotations of a handler: the type of its item and the type of its result."""

from __future__ import annotations

import functools
import inspect
import sys
import typing
from typing import TYPE_CHECKING, Any, Final, cast

from asyncrunner.errors import ConfigurationError
from asyncrunner.serialization.descriptions import name_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def signature_of(handler: Callable[..., object], *, has_setup: bool = False) -> tuple[object, object]:
    """Return the annotations of *handler*'s item and of its return value; ``Any`` for a missing one.

    The item is the first parameter. A decorator may pass other arguments itself, such as a session: then the item is the
    parameter that has the name of the wrapper's first parameter. Only the annotation of the item must be resolvable. Raises
    ConfigurationError if it is not, or if the handler cannot be called with one item; with *has_setup* it may
    take a second argument.
    """
    name = name_of(handler)
    try:
        signature, own = _signature(handler), _signature(handler, follow_wrapped=False)
    except (TypeError, ValueError):
        return Any, Any  # a builtin without a signature: an attempt fails if it does not take one item
    error = _error_of_one_item(signature)
    if error is not None and not (has_setup and setup_parameter(handler) is not None):
        if _error_of_one_item(own) is not None:
            raise ConfigurationError(
                f"{name}{signature} cannot be called with one item ({error}); bind the other parameters with functools.partial, "
                "or give setup=, whose value is the second argument"
            ) from error
        signature = own  # the wrapper takes the item and passes the other arguments
    target: object = handler
    while isinstance(target, functools.partial):
        target = target.func
    target = inspect.unwrap(cast("Callable[..., object]", target))
    while isinstance(target, functools.partial):
        target = target.func
    if not inspect.isroutine(target) and not isinstance(target, type):
        target = type(target).__call__
    annotations = _annotations_of(target)
    first = next(iter(signature.parameters.values()))
    item: object = Any
    if first.kind is not inspect.Parameter.VAR_POSITIONAL or first.name in annotations:
        try:
            item = _resolved(target, annotations, first.name)
        except NameError as error_of_name:
            raise ConfigurationError(
                f"{name}: the annotation of its item cannot be resolved ({error_of_name}); import that name at run time, not "
                "only under TYPE_CHECKING"
            ) from error_of_name
    try:
        result = _resolved(target, annotations, "return")
    except NameError:
        result = Any
    return item, result


_VARIABLE: Final = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def setup_parameter(handler: Callable[..., object]) -> str | None:
    """Return the name of the parameter of *handler* that takes the value of ``setup``; None if it takes only the item.

    It is the second parameter, if that has no default.
    """
    try:
        signature, own = _signature(handler), _signature(handler, follow_wrapped=False)
    except (TypeError, ValueError):
        return None
    if signature != own and all(each.kind not in _VARIABLE for each in own.parameters.values()):
        signature = own  # a decorator that hands in arguments
    parameters = list(signature.parameters.values())
    if len(parameters) < 2 or parameters[1].kind is not inspect.Parameter.POSITIONAL_OR_KEYWORD:
        return None
    name = parameters[1].name
    try:
        signature.bind(None, **{name: None})
    except TypeError:
        return None
    return name if parameters[1].default is inspect.Parameter.empty else None


def _signature(handler: Callable[..., object], *, follow_wrapped: bool = True) -> inspect.Signature:
    """Return the signature of *handler*; the annotations stay as they are, because most of them are not needed."""
    if sys.version_info >= (3, 14):
        import annotationlib

        lazy = annotationlib.Format.FORWARDREF
        return inspect.signature(handler, follow_wrapped=follow_wrapped, annotation_format=lazy)
    return inspect.signature(handler, follow_wrapped=follow_wrapped)


def _error_of_one_item(signature: inspect.Signature) -> TypeError | None:
    try:
        signature.bind(None)
    except TypeError as error:
        return error
    return None


def _annotations_of(target: Any) -> Mapping[str, object]:
    """Return the annotations of *target* as they are: objects, texts or, from Python 3.14 on, forward references."""
    try:
        if isinstance(target, type):
            target = inspect.getattr_static(target, "__init__")
        if sys.version_info >= (3, 14):
            import annotationlib

            return annotationlib.get_annotations(target, format=annotationlib.Format.FORWARDREF)
        return inspect.get_annotations(target)
    except Exception:  # noqa: BLE001 - annotations that cannot be evaluated do not describe the item
        return {}


def _resolved(target: Any, annotations: Mapping[str, object], name: str) -> object:
    """Return the annotation of the parameter *name* of *target*, or ``Any``. Raises NameError."""
    if name not in annotations:
        return Any

    def alone() -> None: ...

    alone.__annotations__ = {name: annotations[name]}
    function: Any = getattr(target, "__func__", target)
    try:
        hints = typing.get_type_hints(alone, getattr(function, "__globals__", {}), _variables_of(function), include_extras=True)
    except NameError:
        raise
    except Exception:  # noqa: BLE001 - an annotation that is no type does not describe the item
        return Any
    return cast("object", hints[name])


def _variables_of(function: Any) -> dict[str, object]:
    """Return the local names of enclosing functions that *function* uses, such as a class that it calls."""
    variables: dict[str, object] = {}
    code = getattr(function, "__code__", None)
    for variable, cell in zip(getattr(code, "co_freevars", ()), getattr(function, "__closure__", None) or (), strict=False):
        try:
            variables[variable] = cell.cell_contents
        except ValueError:  # not assigned yet
            pass
    return variables
