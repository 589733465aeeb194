"""The command line."""

from asyncrunner.cli.app import main

__all__ = ["main"]
