"""``python -m benchmarks``: run all benchmarks, each in a process of its own, and write what they found.

Results go to ``benchmarks/results/``: JSON, a page of tables, plots, a flame graph. A benchmark that is not run keeps the results
that it has there. With ``--check`` nothing is written: the ratios are compared with those.
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
    """Run that command; what it found, if it came to its end, and its exit code."""
    with scratch() as folder:
        path = folder / "section.json"
        command = [sys.executable, "-m", f"benchmarks.{name}", "--json", str(path), *arguments]
        code = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, env=dict(os.environ), check=False).returncode
        return (msgspec.json.decode(path.read_bytes(), type=Section) if path.exists() else None), code


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Run the benchmarks and write what they found.")
    parser.add_argument("--only", action="append", choices=NAMES, metavar="NAME", help=f"of {', '.join(NAMES)}; may be repeated")
    parser.add_argument("--quick", action="store_true", help="sizes that show only that it runs; writes nothing without --output")
    parser.add_argument(
        "--check", action="store_true", help=f"compare with the committed ratios; exit 1 on a loss of {LOSS:.0%}%"
    )
    parser.add_argument("--output", type=Path, help=f"where the results go; {COMMITTED.relative_to(ROOT)} by default")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME.SIZE=N", help="as in scale.items=1000000; may be repeated"
    )
    given = parser.parse_args()
    if given.quick and given.check:
        parser.error("--check compares what counts; --quick measures nothing that does")
    for text in given.set:
        name, _, rest = text.partition(".")
        if name not in NAMES or "=" not in rest:
            parser.error(f"--set {text}: give it as in scale.items=1000000, with a benchmark of {', '.join(NAMES)}")
        number = rest.partition("=")[2]
        if not (number.isascii() and number.replace(".", "", 1).isdigit() and float(number) > 0):
            parser.error(f"--set {text}: give a number above 0")
        if given.only and name not in given.only:
            parser.error(f"--set {text}: {name} is not run; add --only {name}")
    return given


def arguments_for(name: str, given: argparse.Namespace) -> list[str]:
    """What that benchmark's own command gets."""
    sizes = [text.partition(".")[2] for text in given.set if text.partition(".")[0] == name]
    return [f"--{size.replace('_', '-')}" for size in sizes] + (["--quick"] if given.quick else [])


def main() -> None:
    """Run, write or compare."""
    given = parse()
    folder: Path | None = given.output or (None if given.quick or given.check else COMMITTED)
    began = time.monotonic()
    measured: dict[str, Section] = {}
    failed: list[str] = []
    for name in given.only or NAMES:
        section, code = run_one(name, arguments_for(name, given))
        if section is not None:
            measured[name] = section
            if folder is not None:
                save(folder, load(folder) | measured)  # each by itself, so that an interruption keeps what there is
        if code != 0:
            failed.append(name)
    if folder is not None and measured:
        for why in draw(folder, load(folder), measured):
            print(f"not drawn: {why}")
        save(folder, load(folder))
        print(f"\nwritten to {folder}")
    print(f"{len(measured)} benchmarks in {(time.monotonic() - began) / 60:.1f} minutes")
    if failed:
        print(f"FAILED: {', '.join(failed)}")
    sys.exit(1 if failed or (given.check and not check(measured)) else 0)


def check(measured: dict[str, Section]) -> bool:
    """Whether no ratio lost a fifth against the committed ones; prints what did."""
    found = changes(load(COMMITTED), measured)
    if not found:
        names = ", ".join(measured)
        print(
            f"{names}: no ratio that is in {COMMITTED.relative_to(ROOT)}, too; times and rates are the machine's and not compared"
        )
        return False
    lost = sum(one.is_lost for one in found)
    print(f"\n{len(found)} ratios compared with {COMMITTED.relative_to(ROOT)}, {lost} lost {LOSS:.0%} or more")
    print(loss_table(found))
    return lost == 0


if __name__ == "__main__":
    main()
