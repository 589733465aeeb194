"""Declare commands: their functions, arguments, options and help, and the options and exit codes that several commands share."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Final, NamedTuple, get_args, get_origin, get_type_hints

import click

from asyncrunner.cli.completers import Completer, batch_names, files
from asyncrunner.domain import DEFAULT_DB
from asyncrunner.text.escaping import shell_word

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_INTERRUPTED: Final = 130

COMPLETE_VARIABLE: Final = "_ASYNCRUNNER_COMPLETE"  # set by the shell that asks for a completion


@dataclass(frozen=True, slots=True)
class Argument:
    """An argument of a command, in the annotation of a parameter: ``file: Annotated[Path, Argument("FILE", help="...")]``.

    ``name`` is how the help writes it. The argument is required if the parameter has no default, and may be repeated if
    the parameter is a list.
    """

    name: str
    help: str
    complete: Completer | None = None


class Option:
    """An option of a command, in the annotation of a parameter: ``wait: Annotated[float, Option("--wait", help="...")]``.

    Without *names*, the option has the name of the parameter. A ``bool`` is a flag, and a list is an option that may be
    repeated. The environment variable *envvar* also sets the option. *complete* returns the values that a shell completes.
    """

    def __init__(self, *names: str, envvar: str, help: str, complete: Completer | None = None) -> None:  # noqa: A002 - as click names it
        self.names = names
        self.envvar = envvar
        self.help = help
        self.complete = complete


class Exit(click.exceptions.Exit):
    """The end of a command with an exit code: ``raise Exit(EXIT_FAILED)``."""


def env(name: str) -> str:
    """Return the environment variable that also sets the option *name*."""
    return f"ASYNCRUNNER_{name.upper()}"


Db = Annotated[
    str, Option("--db", envvar=env("db"), help="The SQLite file or postgresql:// URL that stores the items.", complete=files)
]

BatchOption = Annotated[
    str | None,
    Option("--batch", "-b", envvar=env("batch"), help="Name of the batch. [default: the only one, or all]", complete=batch_names),
]

Json = Annotated[bool, Option("--json", envvar=env("json"), help="Print one JSON document on stdout.")]

Ids = Annotated[
    bool, Option("--ids", envvar=env("ids"), help="Print only ids, one per line, for `retry -`, `cancel -` and others.")
]

ErrorOption = Annotated[
    str | None,
    Option(
        envvar=env("error"),
        help="Only failed items (or those with --status) whose error contains this text (* matches anything) or cause.",
    ),
]

MaxProcessingAge = Annotated[
    str | None,
    Option(envvar=env("max_processing_age"), help="Acceptable time for which an item is processing (15m, 12h). [default: any]"),
]


def command_text(words: str, db: str) -> str:
    """Return a command as a person enters it for the store at *db*, such as ``asyncrunner resume --db jobs.db``."""
    return f"asyncrunner {words}" if db == DEFAULT_DB else f"asyncrunner {words} --db {shell_word(db)}"


def command(*, examples: Sequence[str], options: type[Any] | None = None) -> Callable[[Callable[..., None]], Command]:
    """Return a decorator that declares a function as a command; ``cli/app.py`` names the command.

    The function's parameters are the command's arguments and options, and its docstring is the help. With *options*, a
    dataclass, the fields of that class are the arguments and options, and the function takes one instance of the class.
    The help ends with the *examples*. The function raises ``Exit`` for an exit code other than 0.
    """

    def declare(function: Callable[..., None]) -> Command:
        def call(**values: Any) -> None:
            given = {name: _without_tuple(value) for name, value in values.items()}
            function(**given) if options is None else function(options(**given))

        return Command(
            None,
            params=[_click_parameter(each) for each in _parameters_of(function if options is None else options)],
            callback=call,
            help=inspect.cleandoc(function.__doc__ or ""),
            epilog="\n\n".join(f"Example: asyncrunner {example}" for example in examples),
        )

    return declare


class Command(click.Command):
    """A command whose help describes its arguments too."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the arguments and the options."""
        arguments = [each for each in self.params if isinstance(each, _ClickArgument)]
        if arguments:
            with formatter.section("Arguments"):
                formatter.write_dl([each.help_row for each in arguments])
        super().format_options(ctx, formatter)


class _ClickArgument(click.Argument):
    """An argument with a text for the help; click itself has such a text only since 8.5."""

    def __init__(self, parameter: _Parameter, declared: Argument, **attributes: Any) -> None:
        name = declared.name if parameter.is_required else f"[{declared.name}]"
        super().__init__([parameter.name], metavar=f"{name}..." if parameter.is_list else name, **attributes)
        self.meaning = declared.help
        self.help_row = declared.name, declared.help + _note_of(parameter.default)


class _Parameter(NamedTuple):
    """A parameter of a command's function; ``default`` is empty if the parameter has none."""

    name: str
    annotation: Any
    default: Any

    @property
    def is_required(self) -> bool:
        return self.default is inspect.Parameter.empty

    @property
    def is_list(self) -> bool:
        return get_origin(self.kind) is list

    @property
    def kind(self) -> Any:
        """The type of the value, without None."""
        hint, _ = get_args(self.annotation)
        if not isinstance(hint, UnionType):
            return hint
        (kind,) = (each for each in get_args(hint) if each is not NoneType)
        return kind


def _parameters_of(function: Callable[..., Any]) -> list[_Parameter]:
    """Return the parameters of a function, or of the instances of a dataclass."""
    hints = get_type_hints(function, include_extras=True)
    return [_Parameter(each.name, hints[each.name], each.default) for each in inspect.signature(function).parameters.values()]


def _click_parameter(parameter: _Parameter) -> click.Parameter:
    _, declared = get_args(parameter.annotation)
    (kind,) = get_args(parameter.kind) if parameter.is_list else (parameter.kind,)
    value_type = click.Path(path_type=Path) if kind is Path else kind
    default: dict[str, Any] = {} if parameter.is_required or parameter.is_list else {"default": parameter.default}
    if isinstance(declared, Argument):
        count = -1 if parameter.is_list else 1
        return _ClickArgument(
            parameter,
            declared,
            type=value_type,
            nargs=count,
            required=parameter.is_required,
            shell_complete=declared.complete,
            **default,
        )
    return click.Option(
        [parameter.name, *(declared.names or [f"--{parameter.name.replace('_', '-')}"])],
        type=value_type,
        is_flag=kind is bool,
        multiple=parameter.is_list,
        envvar=declared.envvar,
        show_envvar=True,
        show_default=True,
        help=declared.help,
        shell_complete=declared.complete,
        **default,
    )


def _note_of(default: Any) -> str:
    if default is inspect.Parameter.empty:
        return "  [required]"
    return "" if default is None else f"  [default: {default}]"


def _without_tuple(value: Any) -> Any:
    """Return a list for the values of an argument or option that may be repeated, or None if there are no values."""
    return [*value] or None if isinstance(value, tuple) else value
