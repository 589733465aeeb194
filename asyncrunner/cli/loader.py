"""Load the handler or Runner named by ``package.module:name`` or ``path/to/file.py:name``."""

from __future__ import annotations

import importlib
import importlib.machinery
import inspect
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path, PurePath
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, cast, get_type_hints

import msgspec

from asyncrunner.errors import ConfigurationError
from asyncrunner.execution.handler_file import import_file
from asyncrunner.runner.runner import Runner
from asyncrunner.serialization.descriptions import name_of
from asyncrunner.submission.handler import Handler
from asyncrunner.text.escaping import error_text, place_of
from asyncrunner.text.suggestions import closest, did_you_mean

if TYPE_CHECKING:
    from asyncrunner.domain.options import SetupFunction

_NAMED: Final = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def load_handler(target: str) -> Callable[[Any], Any]:
    """Return the handler that *target* names. Raises ConfigurationError; its message names a remedy."""
    handler = registered = _load(target, "handler")
    if isinstance(handler, Handler):
        function: Callable[[Any], Any] = registered.function
        return function
    if not callable(handler):
        raise ConfigurationError(f"{target} is {type(handler).__name__}, not a function; give an `async def` or a `def`")
    return cast("Callable[[Any], Any]", handler)


def with_arguments(handler: Callable[..., Any], texts: Sequence[str]) -> Callable[[Any], Any]:
    """Return *handler* with values for other parameters than its item, from texts ``NAME=VALUE``.

    A value is converted to the type of the parameter's annotation, or else of its default; without both it stays text.
    Raises ConfigurationError for an unknown name and a value that does not fit.
    """
    if not texts:
        return handler
    parameters = inspect.signature(handler).parameters
    settable = {each.name: each for each in list(parameters.values())[1:] if each.kind in _NAMED}
    takes_any = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values())
    values: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ConfigurationError(f"--set {text!r}: give NAME=VALUE, as in --set model=small")
        if name not in settable and (not takes_any or name in parameters):
            raise ConfigurationError(
                f"--set {text!r}: the handler has no other parameter {name!r}; {did_you_mean(name, settable)}"
            )
        values[name] = _converted(text, value, _type_of(handler, settable[name])) if name in settable else value
    return partial(handler, **values)


def _type_of(handler: Callable[..., Any], parameter: inspect.Parameter) -> Any:
    """Return the type of a parameter: its annotation, or the type of its default, or str.

    Raises ConfigurationError for an annotation that cannot be evaluated.
    """
    annotation = parameter.annotation
    if annotation is inspect.Parameter.empty:
        return type(parameter.default) if isinstance(parameter.default, bool | int | float) else str
    if not isinstance(annotation, str):
        return annotation
    function: Any = inspect.unwrap(handler)
    if not inspect.isroutine(function):
        function = type(function).__call__
    try:
        alone = SimpleNamespace(__annotations__={"value": annotation})  # another annotation may have no value
        return get_type_hints(alone, globalns=getattr(function, "__globals__", {}))["value"]
    except Exception as error:
        raise ConfigurationError(
            f"--set {parameter.name}: the annotation {annotation!r} of this parameter cannot be evaluated ({error}); import that "
            "name at run time, not only under TYPE_CHECKING"
        ) from error


def _converted(text: str, value: str, kind: Any) -> Any:
    if kind in (Path, PurePath):
        return kind(value)
    try:
        value.encode()
        return msgspec.convert(value, kind, strict=False)
    except msgspec.ValidationError:
        try:
            return msgspec.json.decode(value, type=kind)
        except msgspec.DecodeError:
            raise ConfigurationError(f"--set {text!r}: the handler takes {name_of(kind)} there; give such a value") from None
    except UnicodeEncodeError:
        raise ConfigurationError(f"--set {text!r}: the value is not valid UTF-8; give text") from None
    except TypeError as error:
        raise ConfigurationError(f"--set {text!r}: a value of the type {name_of(kind)} cannot be given as text") from error


def load_setup(target: str | None) -> SetupFunction | None:
    """Return the setup function that *target* names; None for None. Raises ConfigurationError; its message names a remedy."""
    if target is None:
        return None
    function = _load(target, "setup")
    if not callable(function):
        raise ConfigurationError(f"{target} is {type(function).__name__}, not a function; give an async context manager function")
    return cast("SetupFunction", function)


def load_runner(target: str) -> Runner:
    """Return the Runner that *target* names. Raises ConfigurationError; its message names a remedy."""
    runner = _load(target, "runner")
    if not isinstance(runner, Runner):
        raise ConfigurationError(f"{target} is {type(runner).__name__}, not a Runner; use `asyncrunner run` for one handler")
    if not runner.handlers:
        raise ConfigurationError(f"{target} has no handlers; import the module that registers them")
    return runner


def _load(target: str, kind: str) -> Any:
    place, colon, name = target.rpartition(":")
    if not colon or not place or not name:
        raise ConfigurationError(f"{target!r} does not name a {kind}; give package.module:{kind} or path/to/file.py:{kind}")
    looks_like_file = place.endswith(".py") or "/" in place
    target_object: Any = _load_file(Path(place)) if looks_like_file else _import_module(place)
    for part in name.split("."):
        if not hasattr(target_object, part):
            raise ConfigurationError(f"{place} has no {part!r}{_suggestion(part, target_object)}")
        target_object = getattr(target_object, part)
    return target_object


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ConfigurationError(f"there is no file {path.absolute()}; give the path of the handler's file")
    if not path.name.endswith(tuple(importlib.machinery.all_suffixes())):
        raise ConfigurationError(f"{path} is not a Python file; give a .py file")
    try:
        return import_file(path)
    except Exception as error:
        raise ConfigurationError(_import_error(str(path), error)) from error


def _import_module(name: str) -> ModuleType:
    sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise ConfigurationError(
                f"there is no module {name!r} on the path or in {Path.cwd()}; for a file, give its path, as in {name}.py:handler"
            ) from error
        raise ConfigurationError(_import_error(name, error)) from error
    except Exception as error:
        raise ConfigurationError(_import_error(name, error)) from error


def _import_error(place: str, error: Exception) -> str:
    return f"{place} cannot be imported: {error_text(error)}{place_of(error)}"


def _suggestion(name: str, owner: object) -> str:
    similar = closest(name, [each for each in dir(owner) if not each.startswith("_")])
    return "" if similar is None else f"; did you mean {similar!r}?"
