"""The command line: commands, and the drawing of their answers.

``program`` runs the command line, ``commands/`` has the commands, ``render/`` draws what they print.
"""

from asyncrunner.cli.program import main

__all__ = ["main"]
