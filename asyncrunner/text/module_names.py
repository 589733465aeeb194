"""Name the module of a handler's file whose own name another module has, such as ``json.py``."""

from __future__ import annotations

from typing import Final

_PREFIX: Final = "asyncrunner_file_"


def file_module(stem: str) -> str:
    """Return the name under which a file is imported if another module has the name *stem*."""
    return _PREFIX + stem


def shown_module(name: str) -> str:
    """Return the name of a module, or of a class with its module, as users, batches and stored errors show it."""
    return name.removeprefix(_PREFIX)
