"""The command line: ``program`` runs it, ``commands/`` has the commands, ``render/`` draws what they print."""

from asyncrunner.cli.program import main

__all__ = ["main"]
