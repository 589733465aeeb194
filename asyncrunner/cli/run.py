"""``asyncrunner run``: one batch in the foreground, with signals, progress and a summary."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final, cast

from asyncrunner.batch import BatchRun
from asyncrunner.cli.items import items_of
from asyncrunner.cli.signals import Signals
from asyncrunner.cli.summary import as_json, summary
from asyncrunner.cli.target import load_target
from asyncrunner.codec import codecs_of
from asyncrunner.errors import AsyncRunnerError
from asyncrunner.report import BatchReport
from asyncrunner.retry import RetryPolicy
from asyncrunner.settings import RunOptions, Settings
from asyncrunner.text import safe_text

__all__ = ["EXIT_FAILED", "EXIT_INTERRUPTED", "EXIT_USAGE", "RunRequest", "run_target"]

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_INTERRUPTED: Final = 130


@dataclass(frozen=True, slots=True)
class RunRequest:
    """What was asked for on the command line; ``retry`` are the arguments of the RetryPolicy."""

    target: str
    items: str | None
    item_format: str | None
    options: dict[str, Any]
    retry: dict[str, Any]
    quiet: bool
    as_json: bool


def run_target(request: RunRequest) -> int:
    """Run it and return the exit code. Raises AsyncRunnerError for what the caller has to mend."""
    settings = Settings.of("run", cast("RunOptions", {**request.options, "retry": RetryPolicy(**request.retry)}))
    handler = load_target(request.target)
    items: AsyncIterator[Any] | None = None
    if request.items is not None:
        items = items_of(request.items, request.item_format, codecs_of(handler)[0])
    run: BatchRun[Any, Any] = BatchRun(items, handler, settings)
    signals = Signals(run.runner, run.request_stop, run.request_cancel)
    try:
        report = asyncio.run(_finished(run, signals))
    except (KeyboardInterrupt, asyncio.CancelledError):
        return EXIT_INTERRUPTED
    except AsyncRunnerError:
        raise
    except Exception as error:  # noqa: BLE001 - the input's own error: said in one line, not as our traceback
        print(f"Error: the run ended with {safe_text(repr(error), limit=1000)}; what was done is kept", file=sys.stderr)
        return EXIT_USAGE
    return _tell(request, report, interrupted=signals.received > 0)


async def _finished(run: BatchRun[Any, Any], signals: Signals) -> BatchReport[Any, Any]:
    signals.listen()
    async with run:
        return await run.finish()


def _tell(request: RunRequest, report: BatchReport[Any, Any], *, interrupted: bool) -> int:
    if request.as_json:
        print(as_json(report))
    if not request.quiet or report.failed:
        print(summary(report, request.target, request.options["batch"]), file=sys.stderr)
    if interrupted:
        return EXIT_INTERRUPTED
    return EXIT_FAILED if report.failed or report.stopped else 0
