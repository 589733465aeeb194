"""Draw the plots with matplotlib (in the extra ``bench``)."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from benchmarks.harness.figures import Section

__all__ = ["draw"]

_OURS: Final = "#2c6fbb"
_THEIRS: Final = "#9a9a9a"
_DPI: Final = 110


def draw(folder: Path, sections: Mapping[str, Section], measured: Mapping[str, Section]) -> list[str]:
    """Draw the pictures of the *measured* benchmarks into *folder*; return the pictures that failed, with the reason.

    A picture of several benchmarks takes those that were not measured now from *sections*.
    """
    if find_spec("matplotlib") is None:
        return ["the plots: matplotlib is not installed (extra bench)"]
    import matplotlib as mpl

    mpl.use("agg")
    if {"throughput", "peers"} & set(measured):
        _systems(folder / "throughput.png", sections)
    if "scale" in measured:
        _scale(folder / "scale.png", sections["scale"])
    if "wakeup" in measured:
        _quantiles(folder / "wakeup.png", sections["wakeup"])
    return []


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(width, height), dpi=_DPI, layout="constrained")
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Any, path: Path) -> None:
    from matplotlib import pyplot as plt

    figure.savefig(path, metadata={"Software": None})
    plt.close(figure)


def _systems(path: Path, sections: Mapping[str, Section]) -> None:
    """Draw bars of items per second; the label adds the ratio to asyncrunner in the same benchmark."""
    bars: list[tuple[str, float, float]] = []
    for name in ("throughput", "peers"):
        if name not in sections:
            continue
        rates = {one.name: one.value for one in sections[name].result.figures if one.unit == "items/s" and one.value is not None}
        ours = next(rate for label, rate in rates.items() if label.startswith("asyncrunner"))
        bars += [(label, rate, rate / ours) for label, rate in rates.items() if name == "throughput" or rate != ours]
    bars.sort(key=lambda bar: bar[1])
    figure, axes = _figure(8, 0.42 * len(bars) + 1.2)
    colours = [_OURS if label.startswith("asyncrunner") else _THEIRS for label, _, _ in bars]
    drawn = axes.barh([label for label, _, _ in bars], [rate for _, rate, _ in bars], color=colours)
    axes.bar_label(drawn, [f"{rate:,.0f}  ({_share(ratio)})" for _, rate, ratio in bars], padding=4, fontsize=9)
    axes.set_xscale("log")
    axes.set_xlim(right=max(rate for _, rate, _ in bars) * 6)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("no-op items per second, until all are finished (and ratio to asyncrunner)")
    _save(figure, path)


def _share(ratio: float) -> str:
    return f"{ratio:.2f} x" if ratio >= 0.1 else f"1/{1 / ratio:,.0f}"


def _scale(path: Path, section: Section) -> None:
    """Draw the rate over the finished items, one line per round."""
    figure, axes = _figure(8, 3.6)
    unit, divisor = ("million", 1e6) if section.sizes["items"] >= 2e6 else ("thousand", 1e3)
    for number, (name, points) in enumerate(section.result.series.items()):
        axes.plot([x / divisor for x, _ in points], [y for _, y in points], label=name, color=_OURS, alpha=1 - 0.3 * number)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"finished items, {unit}")
    axes.set_ylabel("items per second")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.legend(frameon=False)
    _save(figure, path)


def _quantiles(path: Path, section: Section) -> None:
    """Draw milliseconds by quantile, one line per series."""
    figure, axes = _figure(8, 3.6)
    for name, points in section.result.series.items():
        places = range(len(points))
        axes.plot(places, [y for _, y in points], marker="o", markersize=4, label=name)
        axes.set_xticks(places, [f"p{x:.0f}" for x, _ in points])
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylabel("ms")
    axes.legend(frameon=False)
    axes.grid(axis="y", alpha=0.3)
    _save(figure, path)
