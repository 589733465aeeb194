"""The command line: the commands and the formatting of their output.

``program`` runs the command line, ``commands/`` has the commands, and ``render/`` formats their output.
"""

from asyncrunner.cli.program import main

__all__ = ["main"]
