"""``python -m benchmarks``: run all benchmarks, each in a separate process, and write their results.

Results go to ``benchmarks/results/``: JSON, a page of tables, plots, a flame graph. Results of benchmarks that are not run are
kept. With ``--check`` nothing is written: the measured ratios are compared with the committed ones.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from benchmarks.figures import Section
from benchmarks.measuring import ROOT, scratch
from benchmarks.pictures import draw
from benchmarks.results import COMMITTED, LOSS, changes, load, loss_table, save
from benchmarks.suite import NAMES


def run_one(name: str, arguments: list[str]) -> tuple[Section | None, int]:
    """Run the command of benchmark *name*. Returns its section, or None if it did not finish, and its exit code."""
    with scratch() as folder:
        path = folder / "section.json"
        command = [sys.executable, "-m", f"benchmarks.{name}", "--json", str(path), *arguments]
        code = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, env=dict(os.environ), check=False).returncode
        return (msgspec.json.decode(path.read_bytes(), type=Section) if path.exists() else None), code


def parse() -> argparse.Namespace:
    """Parse and validate the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Run the benchmarks and write their results.")
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
        for reason in draw(folder, load(folder), measured):
            print(f"not drawn: {reason}")
        save(folder, load(folder))
        print(f"\nwritten to {folder}")
    print(f"{len(measured)} benchmarks in {(time.monotonic() - began) / 60:.1f} minutes")
    if failed:
        print(f"FAILED: {', '.join(failed)}")
    sys.exit(1 if failed or (options.check and not check(measured)) else 0)


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
    main()
