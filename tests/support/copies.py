"""Copies that stopped half way, as after a kill."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

from asyncrunner import Control
from asyncrunner.backends import shown_location
from asyncrunner.store.copying.incomplete import CopyCommand
from tests.support.files import BATCH


class Stopped(Exception):
    """A copy was stopped."""


async def stop_copy(source: str, target: str, *batches: str, steps: int = 3) -> None:
    """Copy pages of two items each, and stop after *steps* of them."""
    reports = 0

    def stop(*_: object) -> None:
        nonlocal reports
        reports += 1
        if reports == steps:
            raise Stopped

    with mock.patch("asyncrunner.store.copying.rows.PAGE_ITEMS", 2):
        async with Control(source) as control:
            try:
                await control.copy(target, batches or None, on_progress=stop)
            except Stopped:
                return
    raise AssertionError("the copy ended")


def command_of(source: str, target: str, *batches: str) -> CopyCommand:
    """Return the command that completes a copy, with those values of ``--batch``."""
    return CopyCommand(str(Path(source).resolve()), shown_location(target), batches)


def reason_of(source: str, target: str) -> str:
    """Return why the copy of the batch cannot be run, as every message has it."""
    command = command_of(source, target, BATCH)
    return f"the copy from {command.source} is not complete; repeat `{command.text()}`"
