"""Save results as JSON and as a Markdown page of tables, and compare ratios with the saved ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from benchmarks.harness.figures import RATIO, Figure, Section, sizes_text
from benchmarks.harness.registry import NAMES

__all__ = ["COMMITTED", "LOSS", "Change", "changes", "load", "loss_table", "markdown", "save"]

COMMITTED: Final = Path(__file__).parents[1] / "results"
LOSS: Final = 0.2
"""The loss of a ratio, as a share of it, that fails ``--check``."""

_FILE: Final = "results.json"
_PICTURES: Final = {
    "throughput.png": "Items per second by system; the scale is logarithmic.",
    "scale.png": "Items per second over the finished items of the large run.",
    "wakeup.png": "Milliseconds from submit to the start of the handler, by quantile.",
    "profile.svg": "Flame graph of the no-op run, both threads; open the file to zoom in.",
}


def load(folder: Path) -> dict[str, Section]:
    """Return the results saved in *folder*, by benchmark; empty if there are none."""
    path = folder / _FILE
    return msgspec.json.decode(path.read_bytes(), type=dict[str, Section]) if path.exists() else {}


def save(folder: Path, sections: Mapping[str, Section]) -> None:
    """Write *sections* as JSON and as a page, in the order of the suite."""
    folder.mkdir(parents=True, exist_ok=True)
    ordered = {name: sections[name] for name in (*NAMES, *sections) if name in sections}
    (folder / _FILE).write_bytes(msgspec.json.format(msgspec.json.encode(ordered), indent=1) + b"\n")
    (folder / "README.md").write_text(markdown(ordered, [name for name in _PICTURES if (folder / name).exists()]))


def markdown(sections: Mapping[str, Section], pictures: Sequence[str]) -> str:
    """Return the Markdown page; *pictures* are the existing picture files."""
    lines = [
        "# Results of the benchmarks",
        "",
        "Written by `python -m benchmarks`; see [docs/concepts/performance.md](../../docs/concepts/performance.md).",
        "",
    ]
    lines += [*_targets(sections), ""]
    for name, section in sections.items():
        lines += [
            f"## {name}: {section.question}",
            "",
            f"`{section.command}`; {sizes_text(section)}.",
            "",
            f"{section.machine}.",
            "",
        ]
        lines += [*_table(section.result.figures), ""]
        lines += [f"- {note}" for note in _notes(section)]
        lines += [""] if lines[-1] else []
        lines += [f"![{_PICTURES[picture]}]({picture})\n" for picture in pictures if Path(picture).stem == name]
    return "\n".join(lines).rstrip() + "\n"


def _targets(sections: Mapping[str, Section]) -> Iterator[str]:
    yield "| target | measured | | benchmark |"
    yield "|---|---|---|---|"
    for name, section in sections.items():
        for one in section.result.figures:
            if one.target is not None:
                yield f"| {_cell(one.name)} {one.target_text} | {one.text(one.value)} | {_emphasised(one.verdict)} | {name} |"


def _table(figures: Sequence[Figure]) -> Iterator[str]:
    yield "| | median | lowest to highest | rounds | target | |"
    yield "|---|---:|---:|---:|---:|---|"
    for one in figures:
        spread = "" if one.rounds < 2 else f"{one.text(one.low)} to {one.text(one.high)}"
        cells = (_cell(one.name), one.text(one.value), spread, str(one.rounds), one.target_text, _emphasised(one.verdict))
        yield f"| {' | '.join(cells)} |"


def _notes(section: Section) -> Iterator[str]:
    yield from (f"{one.name}: {one.note}" for one in section.result.figures if one.note)
    yield from section.result.notes
    yield from (f"**BROKEN: {check}**" for check in section.result.broken)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _emphasised(verdict: str) -> str:
    return verdict if verdict in ("", "met") else f"**{verdict}**"


class Change(NamedTuple):
    """A ratio before and now. ``loss``: the lost share of it, negative if it improved; None if it was not measured now."""

    benchmark: str
    figure: str
    then: float
    now: float | None
    loss: float | None

    @property
    def is_lost(self) -> bool:
        return self.loss is not None and self.loss >= LOSS


def changes(then: Mapping[str, Section], now: Mapping[str, Section]) -> list[Change]:
    """Return every ratio in *then* of the benchmarks in *now*, with its value in both."""
    compared: list[Change] = []
    for name, section in now.items():
        measured = {one.name: one for one in section.result.figures}
        before = then[name].result.figures if name in then else []
        for old in before:
            if old.unit != RATIO or old.value is None:
                continue
            new = measured.get(old.name)
            value = None if new is None else new.value
            compared.append(Change(name, old.name, old.value, value, None if value is None else _loss(old, old.value, value)))
    return compared


def _loss(figure: Figure, then: float, now: float) -> float:
    better, worse = (now, then) if figure.better == "higher" else (then, now)
    return 1 - better / worse if worse else 0.0


def loss_table(found: Sequence[Change]) -> str:
    """Return a table of the lost ratios, and of those that were not measured now, for a terminal."""
    lines = [f"{'benchmark':12} {'ratio':60} {'then':>8} {'now':>8} {'lost':>6}"]
    for one in found:
        if one.is_lost or one.loss is None:
            now, lost = ("-", "?") if one.now is None or one.loss is None else (f"{one.now:.2f}", f"{one.loss:.0%}")
            lines.append(f"{one.benchmark:12} {one.figure:60} {one.then:8.2f} {now:>8} {lost:>6}")
    return "\n".join(lines)
