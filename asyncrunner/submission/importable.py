"""Name functions and types so that another process can import them, and import them there. Nothing is pickled."""

from __future__ import annotations

import functools
import importlib
import inspect
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast

import msgspec

from asyncrunner.errors import ConfigurationError
from asyncrunner.execution.handler_file import file_of, import_file
from asyncrunner.submission.handler import Handler
from asyncrunner.submission.naming import object_at
from asyncrunner.text.escaping import safe_text

_LOCAL: Final = "<locals>"
_AT_TOP_LEVEL: Final = "define it at the top level of a .py file, where another process can import it"


class Reference(msgspec.Struct, frozen=True, omit_defaults=True):
    """The place of a function or a type: its module, or the file of its module, and its name there.

    ``arguments`` and ``keywords`` are the values that a ``functools.partial`` binds. ``module`` is None for the file of a script,
    whose module another process names itself.
    """

    name: str
    module: str | None = None
    file: str | None = None
    arguments: Sequence[Any] = ()
    keywords: Mapping[str, Any] = {}


def reference_of(target: Any, what: str, option: str) -> Reference:
    """Return the place of *target*, a function or a type.

    Raises ConfigurationError if another process cannot import it. *what* names the target, and *option* the option that needs
    another process, in the message.
    """
    arguments: list[Any] = []
    keywords: dict[str, Any] = {}
    while isinstance(target, functools.partial):
        arguments, keywords, target = [*target.args, *arguments], {**target.keywords, **keywords}, target.func
    why = _why_unnamed(target) or _why_unbound(arguments, keywords)
    if why is not None:
        raise ConfigurationError(f"{option} runs handlers in other processes, which import what they need, and {what} {why}")
    module: str = target.__module__
    if module == "__main__":
        module_name, file = _main()
        return Reference(target.__qualname__, module_name, file, arguments, keywords)
    return Reference(target.__qualname__, module, file_of(module), arguments, keywords)


def imported(reference: Reference) -> Any:
    """Import the module of *reference* in this process, and return the function or type.

    Raises ConfigurationError if the module does not have it, and the exceptions of the import.
    """
    target: Any = _module(reference)
    for part in reference.name.split("."):
        if not hasattr(target, part):
            place = reference.file or reference.module
            raise ConfigurationError(f"{place} has no {reference.name!r} when another process imports it; {_AT_TOP_LEVEL}")
        target = getattr(target, part)
    if isinstance(target, Handler):
        target = target.function
    if reference.arguments or reference.keywords:
        return functools.partial(target, *reference.arguments, **reference.keywords)
    return target


def _module(reference: Reference) -> Any:
    if reference.file is not None:
        return import_file(Path(reference.file), reference.module)
    assert reference.module is not None, "a reference has a module or a file"
    return sys.modules.get(reference.module) or importlib.import_module(reference.module)


def _main() -> tuple[str | None, str | None]:
    """Return the module or the file of the program, whose functions have the module ``__main__``."""
    main = sys.modules["__main__"]
    if main.__spec__ is not None:  # python -m
        return main.__spec__.name, None
    return None, str(Path(cast("str", main.__file__)).absolute())


def _why_unnamed(target: Any) -> str | None:
    """Return why another process cannot import *target*, and what to do; None if it can."""
    qualified, module = getattr(target, "__qualname__", None), getattr(target, "__module__", None)
    if not isinstance(qualified, str) or not isinstance(module, str):
        return f"is an object of {type(target).__qualname__}, not a function: write a function and {_AT_TOP_LEVEL}"
    if qualified.endswith("<lambda>"):
        return f"is a lambda: write a function and {_AT_TOP_LEVEL}"
    owner = getattr(target, "__self__", None)
    if inspect.ismethod(target) and not isinstance(owner, type):
        return f"is the bound method {qualified}: write a function and {_AT_TOP_LEVEL}"
    if _LOCAL in qualified:
        return f"is {qualified}, a local function: {_AT_TOP_LEVEL}, and pass values with functools.partial"
    main = sys.modules.get("__main__")
    if module == "__main__" and getattr(main, "__spec__", None) is None:
        file = getattr(main, "__file__", None)
        if file is None or not Path(file).is_file():
            return (
                f"is {qualified}, defined in a notebook or at a prompt, where no other process can find it: move it to a .py "
                "file and import it from there"
            )
    at_name = object_at(module, qualified)
    function = inspect.unwrap(target.__func__, stop=lambda _: True) if inspect.ismethod(target) else target
    if at_name is not function and getattr(at_name, "function", None) is not function:
        return f"is {qualified}, and its module {module} has another object under this name: {_AT_TOP_LEVEL}, under its own name"
    return None


def _why_unbound(arguments: list[Any], keywords: dict[str, Any]) -> str | None:
    """Return why JSON cannot have the values of a partial, and what to do; None if it can."""
    named = [(f"argument {number}", value) for number, value in enumerate(arguments, 1)] + list(keywords.items())
    for name, value in named:
        if not _is_json(value):
            return (
                f"is a functools.partial with {name}={safe_text(repr(value), limit=80)}: give text, numbers, booleans, None, "
                "lists and dicts, or open what it is in setup="
            )
    return None


def _is_json(value: Any) -> bool:
    """Return whether JSON gives back the same value: a tuple would be a list, and an enum its value."""
    kind = cast("object", type(value))
    if kind is list:
        return all(map(_is_json, value))
    if kind is dict:
        return all(type(key) is str and _is_json(key) and _is_json(each) for key, each in value.items())
    if kind is str:
        return bool(value == value.encode(errors="replace").decode())  # JSON has no lone surrogates
    return value is None or kind is bool or (kind is int and abs(value) < 2**63) or (kind is float and math.isfinite(value))
