"""List the commands, in the order of the help. Only the command that is called is imported, so that each one starts quickly."""

from __future__ import annotations

from difflib import get_close_matches
from importlib import import_module
from typing import Any, Final

import click

from asyncrunner.cli.command import EXIT_USAGE


class LazyCommand(click.Command):
    """The name and the short help of a command; ``place`` is where the command itself is declared, ``module:function``."""

    def __init__(self, name: str, place: str, short_help: str) -> None:
        super().__init__(name, short_help=short_help)
        self._place = place

    def load(self) -> click.Command:
        """Import the command and return it."""
        module, function = self._place.split(":")
        command: click.Command = getattr(import_module(f"asyncrunner.cli.commands.{module}"), function)
        command.name, command.short_help = self.name, self.short_help
        return command


class Group(click.Group):
    """A group of commands that imports a command when it is called."""

    def __init__(self, name: str, commands: list[click.Command], **attributes: Any) -> None:
        super().__init__(name, {str(each.name): each for each in commands}, **attributes)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments; without any, print the help and exit with EXIT_USAGE. (Before click 8.2 the code would be 0.)"""
        if not args and not ctx.resilient_parsing:
            click.echo(ctx.get_help(), err=True, color=ctx.color)
            ctx.exit(EXIT_USAGE)
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click calls it
        """Return the names in the order of the help."""
        return list(self.commands)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the name, the imported command and its arguments."""
        name = args[0]
        if name not in self.commands and not name.startswith("-") and not ctx.resilient_parsing:
            matches = ", ".join(map(repr, get_close_matches(name, self.commands)))
            ctx.fail(f"No such command {name!r}.{f' Did you mean {matches}?' if matches else ''}")
        resolved, command, rest = super().resolve_command(ctx, args)
        return resolved, command.load() if isinstance(command, LazyCommand) else command, rest


def _print_version(ctx: click.Context, _option: click.Parameter, is_given: bool) -> None:
    if is_given and not ctx.resilient_parsing:
        from importlib.metadata import version  # the import takes as long as the rest of a short command

        print(f"asyncrunner {version('asyncrunner')}")
        ctx.exit()


def _print_completion(ctx: click.Context, _option: click.Parameter, shell: str | None) -> None:
    if shell is not None and not ctx.resilient_parsing:
        from asyncrunner.cli.completion import print_script

        print_script(app, shell)
        ctx.exit()


app: Final = Group(
    "asyncrunner",
    [
        LazyCommand("run", "run:run", "Run a handler over items, or continue with the stored items."),
        LazyCommand("work", "work:work", "Run the handlers of a service in a separate process."),
        LazyCommand("stop", "stop:stop", "Stop the runs and workers of a file or server."),
        LazyCommand("doctor", "doctor:doctor", "Check a file or server for problems."),
        LazyCommand("status", "status:show_status", "Show the status of the batches."),
        LazyCommand("dashboard", "dashboard:dashboard", "Show and steer the batches in a browser."),
        LazyCommand("list", "inspect:list_items", "List items by status, error or age."),
        LazyCommand("show", "inspect:show_item", "Show everything about an item."),
        LazyCommand("failures", "inspect:show_failures", "Show why items fail, one line per cause."),
        LazyCommand("stuck", "inspect:show_stuck", "Show items that have been processing for a long time."),
        LazyCommand("workers", "inspect:show_workers", "Show the workers, their slots and claimed items."),
        LazyCommand("retry", "change:retry", "Make failed or cancelled items pending again."),
        LazyCommand("rerun", "change:rerun", "Run completed items once more."),
        LazyCommand("cancel", "change:cancel", "Cancel items, including running ones."),
        LazyCommand("pause", "change:pause", "Pause a batch: no more items start."),
        LazyCommand("resume", "change:resume", "Resume a paused or stopped batch."),
        LazyCommand("recover", "change:recover", "Recover the items of dead workers."),
        LazyCommand("export", "export:export", "Export items as JSON Lines, CSV or Parquet."),
        LazyCommand("purge", "change:purge", "Delete finished items."),
        LazyCommand("backup", "backup:backup", "Copy a file while workers run."),
        LazyCommand("restore", "backup:restore", "Put a backup in place of a file."),
        LazyCommand("schema", "doctor:schema", "Print the SQL that creates a PostgreSQL schema."),
        LazyCommand("copy", "backup:copy", "Copy batches from a file to a server, or back."),
        LazyCommand("check", "status:check", "Health check for monitoring: exits 1 if a batch needs attention."),
        LazyCommand("metrics", "status:metrics", "Print the state of the batches for Prometheus."),
        Group(
            "set",
            [LazyCommand("concurrency", "change:set_concurrency", "Set how many handlers run concurrently in each worker.")],
            help="Change settings of a batch, also while it runs.",
            short_help="Change settings of a batch, also while it runs.",
        ),
    ],
    params=[
        click.Option(
            ["--version"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_print_version,
            help="Show the version and exit.",
        ),
        click.Option(
            ["--show-completion"],
            type=click.Choice(["bash", "zsh", "fish"]),
            is_eager=True,
            expose_value=False,
            callback=_print_completion,
            help="Print the script that completes commands, options, batches and ids in this shell.",
        ),
    ],
    help="Run a coroutine over many items and never lose one; every item's state is kept in one SQLite file, or on a PostgreSQL "
    "server.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
