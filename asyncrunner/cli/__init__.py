"""The command line: ``asyncrunner`` and ``python -m asyncrunner``."""

from asyncrunner.cli.app import main

__all__ = ["main"]
