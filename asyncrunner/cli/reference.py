"""``python -m asyncrunner.cli.reference`` prints docs/reference/cli.md: every command as it says of itself."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from typing import Any

import typer.main

from asyncrunner.cli.app import app

__all__ = ["commands", "reference"]

_HEAD = """# The command line

Made by `python -m asyncrunner.cli.reference`; do not edit it.

`asyncrunner` and `python -m asyncrunner` are the same. Every command says this of itself with `--help`.

- **Exit codes** 0: all good. 1: some items failed, or `check` or `doctor` found something. 2: usage, configuration, or a file
  that cannot be used; then nothing was changed. 130: interrupted by Ctrl-C.
- **Output** Data goes to stdout, progress and errors to stderr. What comes from items is escaped, so that no terminal obeys it.
  With `--json` it is one JSON document.
- **Environment** Every option may also be set as `ASYNCRUNNER_<OPTION>`, for example `ASYNCRUNNER_DB=jobs.db`; three have
  names of their own, `ASYNCRUNNER_PURGE_STATUS`, `ASYNCRUNNER_EXPORT_FORMAT` and `ASYNCRUNNER_BACKUP_BATCH`.
- **Completion** `asyncrunner --install-completion` teaches bash, zsh, fish and PowerShell the commands and options.
- **Ages** are `90s`, `15m`, `12h`, `30d` or `2w`.
- **Patterns** are a part of an error's text in which `*` stands for anything, upper and lower case alike, or a cause as
  `failures` shows it.
"""


def commands(group: Any = None, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every command with its full name, in the order of the help."""
    group = typer.main.get_command(app) if group is None else group
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{prefix}{name} ")
        else:
            yield prefix + name, command


def reference() -> str:
    """The page, in Markdown."""
    found = list(commands())
    lines = [_HEAD, "| command | |", "|---|---|"]
    lines += [f"| [`{name}`](#{name.replace(' ', '-')}) | {command.get_short_help_str(200)} |" for name, command in found]
    for name, command in found:
        lines += ["", *_command(name, command)]
    return "\n".join(lines) + "\n"


def _command(name: str, command: Any) -> Iterator[str]:
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    options = [each for each in command.params if each.param_type_name == "option" and not each.hidden and each.name != "help"]
    yield f"## {name}"
    yield ""
    yield "```"
    yield " ".join(["asyncrunner", name, "[OPTIONS]", *map(_shown, arguments)])
    yield "```"
    yield ""
    yield inspect.cleandoc(command.help or "")
    if arguments:
        yield ""
        yield from (f"- `{_shown(each)}` {each.help}" for each in arguments)
    yield ""
    yield "| option | environment | |"
    yield "|---|---|---|"
    for option in options:
        names = ", ".join(f"`{each}`" for each in sorted(option.opts, key=len))
        default = "" if option.default in (None, False, ()) or option.multiple else f" Default: {option.default}."
        yield f"| {names} | `{option.envvar}` | {_cell(option.help)}{default} |"
    yield ""
    yield "```sh"
    yield from (line.removeprefix("Example: ") for line in (command.epilog or "").splitlines() if line.strip())
    yield "```"


def _shown(argument: Any) -> str:
    name = argument.metavar or argument.name.upper()
    return (name if argument.required else f"[{name}]") + ("..." if argument.nargs == -1 else "")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(reference())
