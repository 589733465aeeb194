"""Complete command lines in bash, zsh and fish, by the protocol of click."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from click.shell_completion import BashComplete, CompletionItem, add_completion_class, shell_complete, split_arg_string

from asyncrunner.cli.command import COMPLETE_VARIABLE

if TYPE_CHECKING:
    import click

_BASH: Final = """\
%(complete_func)s() {
    local kind value
    COMPREPLY=()
    while IFS=, read -r kind value; do
        case $kind in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            plain) COMPREPLY+=("$value") ;;
        esac
    done < <(COMP_LINE="${COMP_LINE:0:COMP_POINT}" COMP_COMMAND="$1" COMP_WORDBREAKS="$COMP_WORDBREAKS" \\
        %(complete_var)s=bash_complete "$1" 2>/dev/null)
}
complete -o nosort -F %(complete_func)s %(prog_name)s 2>/dev/null || complete -F %(complete_func)s %(prog_name)s
"""


def complete(app: click.Command) -> int:
    """Print the completions that the shell has requested, and return the exit code."""
    return _answer(app, os.environ[COMPLETE_VARIABLE])


def print_script(app: click.Command, shell: str) -> None:
    """Print the script that a shell has to read, so that it completes command lines of *app*."""
    _answer(app, f"{shell}_source")


def _answer(app: click.Command, instruction: str) -> int:
    add_completion_class(_Bash)
    return shell_complete(app, {}, "asyncrunner", COMPLETE_VARIABLE, instruction)


class _Bash(BashComplete):
    """Completion in bash, which splits words also at characters of ids and batches, such as the colon."""

    name = "bash"
    source_template = _BASH

    @staticmethod
    def _check_version() -> None:
        """Do not start bash to find its version: the script works in every version since 3.2."""

    def get_completion_args(self) -> tuple[list[str], str]:
        line = os.environ["COMP_LINE"]
        words = split_arg_string(line)
        command = os.environ.get("COMP_COMMAND", "")
        arguments = words[words.index(command) + 1 :] if command in words else words[1:]
        incomplete = arguments.pop() if arguments and not line[-1].isspace() else ""
        return arguments, incomplete

    def format_completion(self, item: CompletionItem) -> str:
        _, incomplete = self.get_completion_args()
        typed = incomplete.partition("=")[2] if incomplete.startswith("--") else incomplete
        if not item.value.startswith(typed):
            return f"{item.type},{item.value}"
        breaks = [mark for mark in "=:@" if mark in os.environ.get("COMP_WORDBREAKS", "")]
        start = max((typed.rfind(mark) + 1 for mark in breaks), default=0)  # bash replaces only the text behind it
        return f"{item.type},{item.value[start:]}"
