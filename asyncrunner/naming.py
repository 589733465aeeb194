"""How a handler names its batch, the same whether its file is run as a script, imported, or given to the CLI."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path

from asyncrunner.errors import ConfigurationError

__all__ = ["default_batch", "handler_name"]


def handler_name(handler: Callable[..., object]) -> str:
    """``module:qualified.name``; a script's own name stands in for ``__main__``."""
    target: object = handler
    while isinstance(target, functools.partial):
        target = target.func
    qualified = getattr(target, "__qualname__", None) or type(target).__qualname__
    module = getattr(target, "__module__", None) or type(target).__module__
    return f"{_script_name() if module == '__main__' else module}:{qualified}"


def default_batch(handler: Callable[..., object]) -> str:
    """The batch of a handler that was given none. Raises ConfigurationError where two would share a name."""
    name = handler_name(handler)
    if name.endswith("<lambda>"):
        raise ConfigurationError(
            "a lambda has no name of its own to find its items by; give the batch one, as in run_batch(..., batch='prices')"
        )
    return name


def _script_name() -> str:
    path = getattr(sys.modules.get("__main__"), "__file__", None)
    return Path(path).stem if path else "__main__"
