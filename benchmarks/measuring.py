"""What several benchmarks need: rounds in which the ways take turns, quantiles, processes of their own."""

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

ROOT: Final = Path(__file__).resolve().parents[1]
_PATIENCE_SECONDS: Final = 3600


@contextmanager
def scratch() -> Generator[Path, None, None]:
    """A folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="asyncrunner-bench-") as name:
        yield Path(name)


def interleaved(rounds: int, ways: Mapping[str, Callable[[Path], float]]) -> dict[str, list[float]]:
    """What each way returned in each round, each time called with an empty folder.

    The ways take turns, every second round the other way round, so that the machine's moods and what one leaves behind hit
    all of them.
    """
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        for name in list(ways) if number % 2 == 0 else reversed(list(ways)):
            with scratch() as folder:
                found[name].append(ways[name](folder))
    return found


def each_over(these: Sequence[float], those: Sequence[float]) -> list[float]:
    """Round by round, *these* over *those*: what a round had in common cancels out."""
    return [this / that for this, that in zip(these, those, strict=True)]


def percentile(share: float, values: Sequence[float]) -> float:
    """That quantile: the value that *share* of all do not exceed."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def start_child(function: Callable[..., Any], *arguments: Any) -> subprocess.Popen[str]:
    """Call *function*, of a module of this package, in a process of its own; the arguments and what it returns are JSON."""
    module = function.__module__
    if module == "__main__":
        main: Any = sys.modules["__main__"]
        module = main.__spec__.name
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.measuring", f"{module}:{function.__name__}", json.dumps(arguments, default=str)],
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def child_result(process: subprocess.Popen[str]) -> Any:
    """What the function returned. Raises RuntimeError with what the process said if it failed."""
    try:
        said, complained = process.communicate(timeout=_PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"the process had not ended after {_PATIENCE_SECONDS:,} s") from None
    finally:
        process.kill()  # nothing, if it has ended
        process.wait()
    if process.returncode != 0:
        raise RuntimeError(f"the process ended with {process.returncode}: {complained.strip()[-2000:] or said[-2000:]}")
    return json.loads(said.splitlines()[-1])


def call_in_child(function: Callable[..., Any], *arguments: Any) -> Any:
    """Start it and wait."""
    return child_result(start_child(function, *arguments))


def _serve() -> None:
    module, _, name = sys.argv[1].partition(":")
    function = getattr(importlib.import_module(module), name)
    returned = function(*json.loads(sys.argv[2]))
    print(f"\n{json.dumps(returned)}", flush=True)


if __name__ == "__main__":
    _serve()
