"""``python -m benchmarks``: run all benchmarks, each in a separate process, and write their results.

``python -m benchmarks NAME`` runs one benchmark with its sizes as options, and prints its figures.

Results go to ``benchmarks/results/``: JSON, a page of tables, plots, a flame graph. Results of benchmarks that are not run are
kept. With ``--check`` nothing is written: the measured ratios are compared with the committed ones.
"""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

import msgspec

from benchmarks.harness.figures import Section
from benchmarks.harness.measuring import ROOT, scratch
from benchmarks.harness.plots import draw
from benchmarks.harness.registry import NAMES
from benchmarks.harness.results import COMMITTED, LOSS, changes, load, loss_table, save
from benchmarks.questions.profile import flame_graph

OPERATE: Final = "operate"  # measures the commands of operators on a large file, and writes no figures


def run_one(name: str, arguments: list[str]) -> tuple[Section | None, int]:
    """Run the command of benchmark *name*. Returns its section, or None if it did not finish, and its exit code."""
    with scratch() as folder:
        path = folder / "section.json"
        command = [sys.executable, "-m", "benchmarks", name, "--json", str(path), *arguments]
        code = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, env=dict(os.environ), check=False).returncode
        return (msgspec.json.decode(path.read_bytes(), type=Section) if path.exists() else None), code


def answer(name: str, arguments: list[str]) -> None:
    """Run one benchmark in this process, with its own options, and print its figures."""
    module: Any = importlib.import_module(f"benchmarks.questions.{name}")
    sys.argv[1:] = arguments
    if name == OPERATE:
        module.main()
    else:
        module.BENCHMARK.main()


def parse() -> argparse.Namespace:
    """Parse and validate the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Run the benchmarks and write their results.",
        epilog=f"`python -m benchmarks NAME` runs one with its sizes as options (NAME as for --only, or {OPERATE}).",
    )
    parser.add_argument(
        "--only", action="append", choices=NAMES, metavar="NAME", help=f"one of {', '.join(NAMES)}; may be repeated"
    )
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes, to test that the benchmarks run; writes nothing without --output"
    )
    parser.add_argument(
        "--check", action="store_true", help=f"compare with the committed ratios; exit 1 on a loss of {LOSS:.0%}%"
    )
    parser.add_argument("--output", type=Path, help=f"folder for the results; {COMMITTED.relative_to(ROOT)} by default")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME.SIZE=N", help="set a size, as in scale.items=1000000; may be repeated"
    )
    options = parser.parse_args()
    if options.quick and options.check:
        parser.error("--check needs full sizes: figures of --quick are not comparable; give one of the two")
    for text in options.set:
        name, _, rest = text.partition(".")
        if name not in NAMES or "=" not in rest:
            parser.error(f"--set {text}: give it as in scale.items=1000000, with a benchmark of {', '.join(NAMES)}")
        number = rest.partition("=")[2]
        if not (number.isascii() and number.replace(".", "", 1).isdigit() and float(number) > 0):
            parser.error(f"--set {text}: give a number above 0")
        if options.only and name not in options.only:
            parser.error(f"--set {text}: {name} is not run; add --only {name}")
    return options


def arguments_for(name: str, options: argparse.Namespace) -> list[str]:
    """Return the command-line arguments for benchmark *name*."""
    sizes = [text.partition(".")[2] for text in options.set if text.partition(".")[0] == name]
    return [f"--{size.replace('_', '-')}" for size in sizes] + (["--quick"] if options.quick else [])


def main() -> None:
    """Run the benchmarks, then write or compare their figures."""
    options = parse()
    folder: Path | None = options.output or (None if options.quick or options.check else COMMITTED)
    began = time.monotonic()
    measured: dict[str, Section] = {}
    failed: list[str] = []
    for name in options.only or NAMES:
        section, code = run_one(name, arguments_for(name, options))
        if section is not None:
            measured[name] = section
            if folder is not None:
                save(folder, load(folder) | measured)  # after each benchmark, so that an interruption keeps the results so far
        if code != 0:
            failed.append(name)
    if folder is not None and measured:
        for reason in draw(folder, load(folder), measured) + draw_flame_graph(folder, measured):
            print(f"not drawn: {reason}")
        save(folder, load(folder))
        print(f"\nwritten to {folder}")
    print(f"{len(measured)} benchmarks in {(time.monotonic() - began) / 60:.1f} minutes")
    if failed:
        print(f"FAILED: {', '.join(failed)}")
    sys.exit(1 if failed or (options.check and not check(measured)) else 0)


def draw_flame_graph(folder: Path, measured: dict[str, Section]) -> list[str]:
    """Draw the flame graph if the profile was measured; return the reason if that failed."""
    if "profile" not in measured:
        return []
    reason = flame_graph(folder / "profile.svg", int(measured["profile"].sizes["items"]))
    return [] if reason is None else [f"profile.svg: {reason}"]


def check(measured: dict[str, Section]) -> bool:
    """Return whether every measured ratio lost less than a fifth against the committed one; print the losses."""
    ratios = changes(load(COMMITTED), measured)
    if not ratios:
        names = ", ".join(measured)
        print(
            f"{names}: no ratio to compare with {COMMITTED.relative_to(ROOT)}; times and rates are not compared between machines"
        )
        return False
    lost = sum(one.is_lost for one in ratios)
    print(f"\n{len(ratios)} ratios compared with {COMMITTED.relative_to(ROOT)}, {lost} lost {LOSS:.0%} or more")
    print(loss_table(ratios))
    return lost == 0


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] in (*NAMES, OPERATE):
        answer(sys.argv[1], sys.argv[2:])
    else:
        main()
