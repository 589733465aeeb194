"""``retry``, ``cancel``, ``pause``, ``resume``, ``set`` and ``recover``: what a person asks of a batch and its workers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from asyncrunner.cli.calling import ask, ids_of, print_json, print_lines, say
from asyncrunner.cli.options import BatchOption, Db, Json, env
from asyncrunner.control import Control
from asyncrunner.errors import ConfigurationError
from asyncrunner.inspection import lives
from asyncrunner.settings import DEFAULT_DB
from asyncrunner.text import counted, safe_text
from asyncrunner.views import Changed

__all__ = ["cancel", "pause", "recover", "resume", "retry", "set_concurrency"]


def retry(
    ids: Annotated[list[str] | None, typer.Argument(metavar="ID", help="Ids of items, or - for a line an id from stdin.")] = None,
    db: Db = Path(DEFAULT_DB),
    batch: BatchOption = None,
    failed: Annotated[bool, typer.Option("--failed", envvar=env("failed"), help="Every failed item.")] = False,
    error: Annotated[
        str | None,
        typer.Option(envvar=env("error"), help="Failed items whose error has this part (* stands for anything) or fingerprint."),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", envvar=env("all"), help="Every failed and every cancelled item.")] = False,
    as_json: Json = False,
) -> None:
    """Give items a fresh start: pending, with all their attempts, due at once.

    Give ids, --failed, --error or --all. Running workers take them up at once. Items that are being processed or are completed
    are refused, and then nothing is changed; with --all they are left as they are.
    """
    named = ids_of(ids)
    if [named is not None, failed, error is not None, everything].count(True) != 1:
        raise ConfigurationError("say what to retry: ids, --failed, --error PATTERN or --all, and only one of them")

    async def change(control: Control) -> tuple[Changed, bool]:
        changed = await control.retry(named, batch, failed=failed, error=error, everything=everything)
        return changed, any(lives(worker) for worker in await control.workers())

    changed, works = ask(db, change)
    if as_json:
        print_json(changed)
    else:
        rest = f", {changed.unchanged:,} were pending or have changed meanwhile" if changed.unchanged else ""
        print_lines([f"{safe_text(changed.batch)}: {counted(changed.changed, 'item')} pending again{rest}"])
    if changed.changed and not works:
        say("no worker lives: `asyncrunner run` or `asyncrunner work` does them")


def cancel(
    ids: Annotated[list[str] | None, typer.Argument(metavar="ID", help="Ids of items, or - for a line an id from stdin.")] = None,
    db: Db = Path(DEFAULT_DB),
    batch: BatchOption = None,
    pending: Annotated[bool, typer.Option("--pending", envvar=env("pending"), help="Every pending item.")] = False,
    as_json: Json = False,
) -> None:
    """Cancel items that are pending or being processed; `retry` brings them back.

    Give ids or --pending. A running handler is cancelled within a second, and what it would have returned is not kept. Items that
    are done stay as they are.
    """
    named = ids_of(ids)
    if (named is not None) == pending:
        raise ConfigurationError("say what to cancel: ids, or --pending for every pending item")
    changed = ask(db, lambda control: control.cancel(named, batch, pending=pending))
    if as_json:
        print_json(changed)
    else:
        rest = f", {changed.unchanged:,} were done already" if changed.unchanged else ""
        print_lines([f"{safe_text(changed.batch)}: {counted(changed.changed, 'item')} cancelled{rest}"])


def pause(db: Db = Path(DEFAULT_DB), batch: BatchOption = None, as_json: Json = False) -> None:
    """Let nothing more of a batch start, in any process, until `resume`.

    Workers obey within a second: what runs ends, what was claimed and has not started is given back. It holds over restarts.
    """
    is_new = ask(db, lambda control: control.pause(batch))
    if as_json:
        print_json({"paused": True, "changed": is_new})
    else:
        print_lines(["paused; go on with `asyncrunner resume`" if is_new else "it was paused already"])


def resume(db: Db = Path(DEFAULT_DB), batch: BatchOption = None, as_json: Json = False) -> None:
    """Lift a pause, and also a stop by --max-failures or --deadline and a cool-down, if there is one.

    Running workers go on at once.
    """
    was_held = ask(db, lambda control: control.resume(batch))
    if as_json:
        print_json({"paused": False, "changed": was_held})
    else:
        print_lines(["it goes on" if was_held else "nothing held it"])


def set_concurrency(
    number: Annotated[
        str, typer.Argument(metavar="N", help="How many handlers at once in each worker, or default: as the program says.")
    ],
    db: Db = Path(DEFAULT_DB),
    batch: BatchOption = None,
    as_json: Json = False,
) -> None:
    """Set how many handlers of a batch run at once in each worker.

    Running workers obey within a second; with fewer, what runs ends. It holds, also for workers to come and over their
    --concurrency, until it is set to default.
    """
    if number != "default" and not (number.isascii() and number.isdigit() and int(number[:9]) > 0):
        raise ConfigurationError(f"concurrency {number!r}: give a whole number of at least 1, or default")
    wanted = None if number == "default" else int(number)
    ask(db, lambda control: control.set_concurrency(wanted, batch))
    if as_json:
        print_json({"concurrency": wanted})
    else:
        print_lines(["as the program says" if wanted is None else f"{wanted:,} at once in each worker"])


def recover(
    workers: Annotated[
        list[str] | None,
        typer.Argument(metavar="WORKER", help="Workers to give up though they live, because they hang. [default: the dead ones]"),
    ] = None,
    db: Db = Path(DEFAULT_DB),
    batch: BatchOption = None,
    as_json: Json = False,
) -> None:
    """Take from dead workers what they held; it is pending again, and the attempt counts as a crash.

    The next worker does this by itself, so it is for a file on which none works. A worker without a lock file, as when those
    were deleted, is watched for 5 s: if its heartbeat stands still, it is dead. A worker that is named is taken for dead: its
    handlers are cancelled when it comes to itself, and their outcomes are not kept. With --batch, only
    workers that hold items of it; what else they held goes back with those.
    """
    recovered = ask(db, lambda control: control.recover(workers or (), batch))
    if as_json:
        print_json({"recovered": recovered})
    elif recovered:
        print_lines(
            [
                f"{counted(items, 'item')} of {f'worker {safe_text(worker, limit=64)}' if worker else 'no known worker'}"
                for worker, items in recovered.items()
            ]
        )
    else:
        print_lines([f"{'' if batch is None else f'of {safe_text(batch)}: '}no worker is dead, and nothing is held by nobody"])
