"""Derive the batch name of a handler.

The name is the same whether the handler's file is run as a script, imported or passed to the CLI.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path

from asyncrunner.errors import ConfigurationError
from asyncrunner.text.module_names import shown_module


def handler_name(handler: Callable[..., object]) -> str:
    """Return ``module:qualified.name`` of *handler*; in a script, the name of its file replaces ``__main__``."""
    target: object = handler
    while isinstance(target, functools.partial):
        target = target.func
    qualified = getattr(target, "__qualname__", None) or type(target).__qualname__
    module = getattr(target, "__module__", None) or type(target).__module__
    return f"{_script_name() if module == '__main__' else shown_module(module)}:{qualified}"


def default_batch(handler: Callable[..., object]) -> str:
    """Return the default batch name of *handler*.

    Raises ConfigurationError for a lambda: two lambdas would share a name.
    """
    name = handler_name(handler)
    if name.endswith("<lambda>"):
        raise ConfigurationError(
            "a lambda has no name that identifies its batch; name the batch, as in run_batch(..., batch='prices')"
        )
    return name


def _script_name() -> str:
    path = getattr(sys.modules.get("__main__"), "__file__", None)
    return Path(path).stem if path else "__main__"
