"""From ``package.module:name`` or ``path/to/file.py:name`` to the handler it names."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from asyncrunner.errors import ConfigurationError
from asyncrunner.handler import Handler
from asyncrunner.runner import Runner

__all__ = ["load_runner", "load_target"]


def load_target(target: str) -> Callable[[Any], Any]:
    """The handler that *target* names. Raises ConfigurationError, saying what to give instead."""
    found = registered = _load(target, "handler")
    if isinstance(found, Handler):
        function: Callable[[Any], Any] = registered.function
        return function
    if not callable(found):
        raise ConfigurationError(f"{target} is {type(found).__name__}, not a function; give an `async def` or a `def`")
    return cast("Callable[[Any], Any]", found)


def load_runner(target: str) -> Runner:
    """The runner that *target* names. Raises ConfigurationError, saying what to give instead."""
    found = _load(target, "runner")
    if not isinstance(found, Runner):
        raise ConfigurationError(f"{target} is {type(found).__name__}, not a Runner; for one handler there is `asyncrunner run`")
    if not found.handlers:
        raise ConfigurationError(f"{target} has no handlers; is the module imported in which they are registered?")
    return found


def _load(target: str, what: str) -> Any:
    place, colon, name = target.rpartition(":")
    if not colon or not place or not name:
        raise ConfigurationError(f"{target!r} names no {what}; give package.module:{what} or path/to/file.py:{what}")
    looks_like_file = place.endswith(".py") or "/" in place
    found: Any = _load_file(Path(place)) if looks_like_file else _import_module(place)
    for part in name.split("."):
        if not hasattr(found, part):
            raise ConfigurationError(f"{place} has no {part!r}{_near(part, found)}")
        found = getattr(found, part)
    return found


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ConfigurationError(f"there is no file {path.absolute()}; give the path of the handler's file")
    # Named by its stem, like the script itself when it is run, so that both have one batch.
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ConfigurationError(f"{path} is no Python file; give a .py file")
    sys.path.insert(0, str(path.parent.absolute()))
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigurationError(_broken(str(path), error)) from error
    return module


def _import_module(name: str) -> ModuleType:
    sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise ConfigurationError(
                f"there is no module {name!r} on the path or in {Path.cwd()}; for a file give its path, as in {name}.py:handler"
            ) from error
        raise ConfigurationError(_broken(name, error)) from error
    except Exception as error:
        raise ConfigurationError(_broken(name, error)) from error


def _broken(place: str, error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    where = f", line {frames[-1].lineno} of {frames[-1].filename}" if frames else ""
    return f"{place} cannot be imported: {type(error).__name__}: {error}{where}"


def _near(name: str, holder: object) -> str:
    near = difflib.get_close_matches(name, [each for each in dir(holder) if not each.startswith("_")], n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
