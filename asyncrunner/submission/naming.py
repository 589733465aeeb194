"""Derive the batch name of a handler.

The name is the same whether the handler's file is run as a script, run with ``python -m``, imported or passed to the CLI.
A handler whose name does not identify it has no default batch: two such handlers would share their items and results.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, Final, cast

from asyncrunner.errors import ConfigurationError
from asyncrunner.text.module_names import module_of_file, shown_module

_LOCAL: Final = "<locals>."


def handler_name(handler: Callable[..., object]) -> str:
    """Return ``module:qualified.name`` of *handler*; in a script, the name of its file replaces ``__main__``."""
    target = _without_partials(handler)
    qualified = getattr(target, "__qualname__", None) or type(target).__qualname__
    module = getattr(target, "__module__", None) or type(target).__module__
    return f"{_main_name() if module == '__main__' else shown_module(module)}:{qualified}"


def default_batch(handler: Callable[..., object]) -> str:
    """Return the default batch name of *handler*.

    Raises ConfigurationError for a handler whose name another handler may have too: a lambda, a ``functools.partial``, a
    bound method, a callable instance, and a local function with variables of the function around it.
    """
    name = handler_name(handler)
    if name.endswith("<lambda>"):
        raise ConfigurationError(
            "a lambda has no name that identifies its batch; name the batch, as in run_batch(..., batch='prices')"
        )
    bound = _bound(handler)
    if bound is not None:
        raise ConfigurationError(
            f"{name.partition(':')[2]} is {bound}: other handlers may have the same name, and would share its items "
            f"and results; name the batch, as in batch='prices' (on the command line: --batch prices)"
        )
    return name


def _bound(handler: Callable[..., object]) -> str | None:
    """Return why the name of *handler* does not identify it, as a phrase for a message; None if the name does."""
    if isinstance(handler, functools.partial):
        return "a functools.partial, which binds arguments"
    if isinstance(handler, type):
        return None
    qualified: str | None = getattr(handler, "__qualname__", None)
    if qualified is None:
        return "a callable instance, which has attributes"
    owner = getattr(handler, "__self__", None)
    if owner is not None and not isinstance(owner, ModuleType):
        is_of_class = isinstance(owner, type) and qualified == f"{owner.__qualname__}.{getattr(handler, '__name__', '')}"
        return None if is_of_class else "a bound method, which has the values of its object"
    if _LOCAL in qualified:
        return "a local function, which has values of the function around it" if _has_values(handler) else None
    if _has_values(handler) or hasattr(handler, "__wrapped__"):
        named = object_at(getattr(handler, "__module__", None), qualified)
        if named is not None and named is not handler and getattr(named, "function", None) is not handler:
            return "a wrapper, and its module has another object under this name"
    return None


def _has_values(handler: Callable[..., object]) -> bool:
    if getattr(handler, "__closure__", None):
        return True
    is_local = _LOCAL in getattr(handler, "__qualname__", "")
    return is_local and bool(getattr(handler, "__defaults__", None) or getattr(handler, "__kwdefaults__", None))


def object_at(module: str | None, qualified: str) -> object:
    """Return the object that a module has under a name, or None. While a decorator runs, the name does not exist yet."""
    target: object = sys.modules.get(module or "")
    for part in qualified.split("."):
        target = inspect.getattr_static(target, part, None)
    return cast("object", target.__func__) if isinstance(target, staticmethod | classmethod) else target


def _without_partials(handler: object) -> Any:
    while isinstance(handler, functools.partial):
        handler = cast("functools.partial[object]", handler).func
    return handler


def _main_name() -> str:
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    if spec is not None:  # python -m
        return cast("str", spec.name)
    path = getattr(main, "__file__", None)
    return module_of_file(Path(path)) if path else "__main__"
