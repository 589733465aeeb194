"""Register the commands, which the files of ``commands/`` declare."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated, Final

import typer

from asyncrunner.cli.command import Command
from asyncrunner.cli.commands.backup import backup, restore
from asyncrunner.cli.commands.change import cancel, pause, recover, rerun, resume, retry, set_concurrency
from asyncrunner.cli.commands.doctor import doctor
from asyncrunner.cli.commands.export import export
from asyncrunner.cli.commands.inspect import list_items, show_failures, show_item, show_stuck, show_workers
from asyncrunner.cli.commands.purge import purge
from asyncrunner.cli.commands.run import run
from asyncrunner.cli.commands.status import check, show_status
from asyncrunner.cli.commands.stop import stop
from asyncrunner.cli.commands.work import work

# The help lists the commands in this order.
_COMMANDS: Final[tuple[Command, ...]] = (
    run,
    work,
    stop,
    doctor,
    show_status,
    list_items,
    show_item,
    show_failures,
    show_stuck,
    show_workers,
    retry,
    rerun,
    cancel,
    pause,
    resume,
    recover,
    export,
    purge,
    backup,
    restore,
    check,
)

_SET_COMMANDS: Final[tuple[Command, ...]] = (set_concurrency,)

app = typer.Typer(
    name="asyncrunner",
    help="Run a coroutine over many items and never lose one; every item's state is kept in one SQLite file.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

_SET_HELP: Final = "Change settings of a batch, also while it runs."
_set = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help=_SET_HELP)


def _print_version(is_given: bool) -> None:
    if is_given:
        print(f"asyncrunner {version('asyncrunner')}")
        raise typer.Exit


@app.callback()
def _top(
    _version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


for _command in _COMMANDS:
    _command.add_to(app)

app.add_typer(_set, name="set", short_help=_SET_HELP)

for _command in _SET_COMMANDS:
    _command.add_to(_set)
