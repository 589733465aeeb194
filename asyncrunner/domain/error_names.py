"""Recognize errors by the names of their types, without an import of the packages that define the types. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Final

from asyncrunner.errors import ConfigurationError

_BUGS: Final = frozenset(
    {
        "AssertionError",
        "AttributeError",
        "ImportError",
        "IndentationError",
        "KeyError",
        "ModuleNotFoundError",
        "NameError",
        "NotImplementedError",
        "SyntaxError",
        "TabError",
        "TypeError",
        "UnboundLocalError",
    }
)


def errors_named(option: str, texts: Iterable[str]) -> Callable[[BaseException], bool]:
    """Return a predicate on errors: whether the type of an error, or one of its base classes, has one of the names.

    Each text has names separated by commas. A name is that of the type (``ValueError``), or has the module or package in
    front of it (``httpx.HTTPStatusError``). Raises ConfigurationError, which names *option*, for a text of another form.
    """
    names = [name.strip() for text in texts for name in text.split(",")]
    for name in names:
        if not all(part.isidentifier() for part in name.split(".")):
            raise ConfigurationError(
                f"{option} {name!r}: give the name of an exception type, as in ValueError or httpx.HTTPStatusError; "
                "separate several names by commas"
            )
    return partial(has_name, names)


def has_name(names: Sequence[str], error: BaseException) -> bool:
    """Return whether the type of *error*, or one of its base classes, has one of *names*, as ``errors_named`` takes them."""
    kinds = [kind for kind in type(error).__mro__ if issubclass(kind, BaseException)]
    return any(_is_named(kind, name) for kind in kinds for name in names)


def _is_named(kind: type[BaseException], name: str) -> bool:
    """Return whether *name* is the name of *kind*, alone or after its module or a package of its module."""
    module, _, own_name = name.rpartition(".")
    if own_name != kind.__name__:
        return False
    return not module or f"{kind.__module__}.{kind.__qualname__}".startswith(f"{module}.")


def looks_like_a_bug(error: str) -> bool:
    """Return whether *error*, a stored text ``Type: message``, is probably a mistake in the program."""
    return error.partition(":")[0] in _BUGS
