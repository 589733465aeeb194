"""Shared tools of the benchmarks: interleaved rounds, quantiles, and functions that run in a separate process."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

__all__ = ["call_in_child", "child_result", "each_over", "interleaved", "percentile", "scratch", "start_child"]

ROOT: Final = Path(__file__).resolve().parents[2]
_CHILD_TIMEOUT: Final = 3600  # seconds


@contextmanager
def scratch() -> Generator[Path, None, None]:
    """Provide a temporary folder, deleted at the end."""
    with tempfile.TemporaryDirectory(prefix="asyncrunner-bench-") as name:
        yield Path(name)


def interleaved(rounds: int, ways: Mapping[str, Callable[[Path], float]]) -> dict[str, list[float]]:
    """Call each of *ways* once per round with an empty folder, and return their values by name.

    Every second round calls them in reverse order, so that changes of the machine's speed, and the state that one way leaves
    behind (for example in the disk cache), affect all of them.
    """
    values: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        for name in list(ways) if number % 2 == 0 else reversed(list(ways)):
            with scratch() as folder:
                values[name].append(ways[name](folder))
    return values


def each_over(these: Sequence[float], those: Sequence[float]) -> list[float]:
    """Return *these* divided by *those*, round by round, so that the machine's speed in a round cancels out."""
    return [this / that for this, that in zip(these, those, strict=True)]


def percentile(share: float, values: Sequence[float]) -> float:
    """Return the quantile *share* (0 to 1) of *values*."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def start_child(function: Callable[..., Any], *arguments: Any) -> subprocess.Popen[str]:
    """Call a module-level *function* in a new process; its arguments and its value must be JSON values."""
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "benchmarks.harness.measuring",
            f"{function.__module__}:{function.__name__}",
            json.dumps(arguments, default=str),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def child_result(process: subprocess.Popen[str]) -> Any:
    """Wait for the process and return the value of its function. Raises RuntimeError with its output if it failed."""
    try:
        output, errors = process.communicate(timeout=_CHILD_TIMEOUT)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"the process did not end within {_CHILD_TIMEOUT:,} s") from None
    finally:
        process.kill()  # does nothing if it has ended
        process.wait()
    if process.returncode != 0:
        raise RuntimeError(f"the process ended with {process.returncode}: {errors.strip()[-2000:] or output[-2000:]}")
    return json.loads(output.splitlines()[-1])


def call_in_child(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call *function* in a new process and return its value; see ``start_child`` and ``child_result``."""
    return child_result(start_child(function, *arguments))


def _serve() -> None:
    module, _, name = sys.argv[1].partition(":")
    function = getattr(importlib.import_module(module), name)
    returned = function(*json.loads(sys.argv[2]))
    print(f"\n{json.dumps(returned)}", flush=True)


if __name__ == "__main__":
    _serve()
