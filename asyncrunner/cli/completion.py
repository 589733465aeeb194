"""Complete command lines in bash, zsh and fish."""

from __future__ import annotations

import os

from click.shell_completion import shell_complete

from asyncrunner.cli.app import app
from asyncrunner.cli.command import COMPLETE_VARIABLE


def complete() -> int:
    """Answer the shell that asks for a completion of a command line, and return the exit code."""
    return shell_complete(app, {}, "asyncrunner", COMPLETE_VARIABLE, os.environ[COMPLETE_VARIABLE])
