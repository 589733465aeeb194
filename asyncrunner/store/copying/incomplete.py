"""Copies that are not complete: the checks before a batch runs, and the messages with the command that completes the copy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from asyncrunner.errors import ConfigurationError
from asyncrunner.text.escaping import safe_text, shell_word

if TYPE_CHECKING:
    from asyncrunner.store.batches import Batch, BatchOptions
    from asyncrunner.store.protocols import Store


class CopyCommand(NamedTuple):
    """The command line of a copy. ``batches``: the names that were given; none: all batches."""

    source: str
    target: str
    batches: Sequence[str] = ()

    def text(self, *, restart: bool = False) -> str:
        """Return the command for a shell, with ``--restart`` if requested."""
        words = [shell_word(self.source), shell_word(self.target)]
        words += [f"--batch {shell_word(name)}" for name in self.batches]
        return " ".join(["asyncrunner copy", *words, *(["--restart"] if restart else [])])


def why_blocked(command: CopyCommand) -> str:
    """Return why workers start no item of a batch before its copy is complete."""
    return f"the copy from {safe_text(command.source, limit=1000)} is not complete; repeat `{command.text()}`"


def incomplete_copy(location: str, batch: str, source: str) -> ConfigurationError:
    """Return the error for a batch at *location* that cannot be run or changed, because its copy is not complete."""
    reason = why_blocked(CopyCommand(source, location, [batch]))
    return ConfigurationError(f"{location}: the batch {safe_text(batch)!r} cannot be run or changed: {reason}")


async def check_complete(store: Store, batches: Sequence[str]) -> None:
    """Raise ConfigurationError if the copy of one of those batches is not complete. The call only reads."""
    for batch, source in sorted((await store.incomplete_copies(batches)).items()):
        raise incomplete_copy(store.location, batch, source)


async def open_to_submit(store: Store, name: str, handler: str, options: BatchOptions) -> Batch:
    """Open a batch whose items another worker runs; a batch whose copy is not complete is not changed."""
    batch = await store.find_batch(name) if await store.incomplete_copies([name]) else None
    return batch or await store.open_batch(name, handler, options)
