"""Complete command lines in bash, zsh and fish, by the protocol of click."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from click.shell_completion import (
    BashComplete,
    CompletionItem,
    FishComplete,
    ZshComplete,
    add_completion_class,
    shell_complete,
    split_arg_string,
)

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

_ZSH: Final = """\
#compdef %(prog_name)s

%(complete_func)s() {
    local kind key help
    local -a response plain described
    (( ! $+commands[%(prog_name)s] )) && return 1
    response=("${(@f)$(env COMP_WORDS="${words[*]}" COMP_CWORD=$((CURRENT-1)) %(complete_var)s=zsh_complete %(prog_name)s)}")
    compset -P 1 '--*='
    for kind key help in ${response}; do
        case $kind in
            dir) _path_files -/ ;;
            file) _path_files -f ;;
            plain) if [[ $help == _ ]]; then plain+=("$key"); else described+=("${key//:/\\\\:}:$help"); fi ;;
        esac
    done
    (( $#described )) && _describe -V unsorted described
    (( $#plain )) && compadd -V unsorted -a plain
}

if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    %(complete_func)s "$@"
else
    compdef %(complete_func)s %(prog_name)s
fi
"""

_FISH: Final = """\
function %(complete_func)s
    set -l token (commandline -ct)
    set -l option (string match -r -- '^--[a-z-]+=' $token)
    for line in (env %(complete_var)s=fish_complete COMP_WORDS=(commandline -cp | string collect) COMP_CWORD=$token %(prog_name)s)
        set -l parts (string split -m 1 , -- $line)
        switch $parts[1]
            case dir
                for path in (__fish_complete_directories $parts[2])
                    echo "$option$path"
                end
            case file
                for path in (__fish_complete_path $parts[2])
                    echo "$option$path"
                end
            case plain
                echo "$option$parts[2]"
        end
    end
end

complete --no-files --command %(prog_name)s --arguments "(%(complete_func)s)"
"""


def complete(app: click.Command) -> int:
    """Print the completions that the shell has requested, and return the exit code."""
    return _answer(app, os.environ[COMPLETE_VARIABLE])


def print_script(app: click.Command, shell: str) -> None:
    """Print the script that a shell has to read, so that it completes command lines of *app*."""
    _answer(app, f"{shell}_source")


def _answer(app: click.Command, instruction: str) -> int:
    for shell in (_Bash, _Zsh, _Fish):
        add_completion_class(shell)
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


class _Zsh(ZshComplete):
    """Completion in zsh, also of the value behind the equals sign of an option, where the script keeps the option."""

    name = "zsh"
    source_template = _ZSH

    def format_completion(self, item: CompletionItem) -> str:
        return f"{item.type}\n{item.value}\n{item.help or '_'}"


class _Fish(FishComplete):
    """Completion in fish, which offers only texts that begin with the whole word, so with the option and its equals sign."""

    name = "fish"
    source_template = _FISH

    def format_completion(self, item: CompletionItem) -> str:
        return f"{item.type},{item.value}\t{item.help}" if item.help else f"{item.type},{item.value}"
