"""Run the command of ``--on-end`` when a run has ended."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, Final

from asyncrunner.text.escaping import json_text, safe_text

_COUNTS: Final = ("total", "completed", "skipped", "failed", "cancelled", "pending")
_MAX_SUMMARY: Final = 100_000  # characters; the kernel accepts 128 KiB in a variable


def run_on_end(command: str, code: int, db: str, batch: str, summary: Mapping[str, Any] | None) -> None:
    """Run *command* in a shell, with the end of the run in its environment, and wait for it.

    *code*: the exit code of the run. *summary*: its report; None if it ended without one. The command's stdout is the
    stderr of this process, because stdout is for data. A command that fails is reported on stderr; it does not change the exit
    code of the run.
    """
    environment = {**os.environ, "ASYNCRUNNER_EXIT_CODE": str(code), "ASYNCRUNNER_DB": db, "ASYNCRUNNER_BATCH": batch}
    environment.pop("ASYNCRUNNER_ON_END", None)  # so that a run in the command does not run the command
    if summary is not None:
        # COUNT_: ASYNCRUNNER_FAILED would be the option --failed of a command like `asyncrunner retry`.
        environment |= {f"ASYNCRUNNER_COUNT_{name.upper()}": str(summary[name]) for name in _COUNTS}
        text = json_text(summary)
        if len(text) > _MAX_SUMMARY:
            text = json_text({**summary, "failures": summary["failures"][:1]})[:_MAX_SUMMARY]
        environment["ASYNCRUNNER_SUMMARY"] = text
    try:
        ended = subprocess.run(command, shell=True, env=environment, stdout=sys.stderr.fileno(), check=False)  # noqa: S602
    except (OSError, ValueError) as error:
        print(f"Warning: the command of --on-end did not run: {safe_text(error)}", file=sys.stderr)
        return
    if ended.returncode != 0:
        print(f"Warning: the command of --on-end ended with exit code {ended.returncode}", file=sys.stderr)
