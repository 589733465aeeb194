"""Declare commands: their names, functions, options and help, and the options and exit codes that several commands share."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Annotated, Any, Final, NamedTuple, get_type_hints

import typer

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_INTERRUPTED: Final = 130


def env(name: str) -> str:
    """Return the environment variable that also sets the option *name*."""
    return f"ASYNCRUNNER_{name.upper()}"


Db = Annotated[str, typer.Option("--db", envvar=env("db"), help="The SQLite file that stores the items.")]

BatchOption = Annotated[
    str | None, typer.Option("--batch", "-b", envvar=env("batch"), help="Name of the batch. [default: the only one, or all]")
]

Json = Annotated[bool, typer.Option("--json", envvar=env("json"), help="Print one JSON document on stdout.")]

MaxProcessingAge = Annotated[
    str | None,
    typer.Option(
        envvar=env("max_processing_age"), help="Acceptable time for which an item is processing (15m, 12h). [default: any]"
    ),
]


class Command(NamedTuple):
    """A declared command; typer reads its arguments and options from the parameters of ``function``."""

    name: str
    function: Callable[..., None]
    short_help: str
    examples: tuple[str, ...]

    def add_to(self, group: typer.Typer) -> None:
        """Register the command in *group*."""
        epilog = "\n\n".join(f"Example: asyncrunner {example}" for example in self.examples)
        group.command(self.name, short_help=self.short_help, epilog=epilog)(self.function)


def command(
    name: str, short_help: str, *examples: str, options: type[Any] | None = None
) -> Callable[[Callable[..., None]], Command]:
    """Return a decorator that declares a function as the command *name*.

    The function's parameters are the command's arguments and options, and its docstring is the help. With *options*, a
    dataclass, the fields of that class are the arguments and options, and the function takes one instance of the class.
    The function raises ``typer.Exit`` for an exit code other than 0.
    """

    def declare(function: Callable[..., None]) -> Command:
        return Command(name, function if options is None else _from_fields(function, options), short_help, examples)

    return declare


def _from_fields(function: Callable[[Any], None], options: type[Any]) -> Callable[..., None]:
    """Return a function whose parameters are the fields of *options*, and which calls *function* with an instance."""

    def call(**values: Any) -> None:
        function(options(**values))

    hints = get_type_hints(options, include_extras=True)
    parameters = [
        inspect.Parameter(
            each.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if each.default is MISSING else each.default,
            annotation=hints[each.name],
        )
        for each in fields(options)
    ]
    call.__doc__ = function.__doc__
    call.__annotations__ = hints
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return call
