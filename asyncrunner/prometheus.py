"""Export the state of a file to Prometheus, as text or by a collector for ``prometheus_client``.

``asyncrunner metrics`` prints the text. In a program that serves metrics already, install
``pip install 'asyncrunner[prometheus]'`` and call ``REGISTRY.register(Collector("jobs.db"))``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias

from asyncrunner.admin.live_status import LiveStatus
from asyncrunner.admin.read_models import BatchStatus, FileStatus
from asyncrunner.domain.item import Status
from asyncrunner.text.escaping import safe_text

if TYPE_CHECKING:
    from prometheus_client.core import Metric

__all__ = ["Collector", "metric_values", "metrics_text"]
_MAX_LABEL: Final = 1_000  # characters


class _Family(NamedTuple):
    """A metric of each batch. ``values`` returns its values by the labels that it has beside ``batch``."""

    name: str
    kind: Literal["gauge", "counter"]
    description: str
    values: Callable[[BatchStatus], _Values]

    @property
    def sample(self) -> str:
        """The name of the samples, which ends in _total for a counter."""
        return f"{self.name}_total" if self.kind == "counter" else self.name


_Values: TypeAlias = Mapping[tuple[tuple[str, str], ...], float]


def _one(value: Callable[[BatchStatus], float | None]) -> Callable[[BatchStatus], _Values]:
    def values(batch: BatchStatus) -> _Values:
        number = value(batch)
        return {} if number is None else {(): float(number)}

    return values


def _by_status(batch: BatchStatus) -> _Values:
    return {(("status", status.value),): float(getattr(batch.counts, status.value)) for status in Status}


_FAMILIES: Final = (
    _Family("asyncrunner_items", "gauge", "Items by status.", _by_status),
    _Family(
        "asyncrunner_items_waiting", "gauge", "Pending items that are not due yet.", _one(lambda batch: batch.counts.waiting)
    ),
    _Family(
        "asyncrunner_oldest_item_seconds",
        "gauge",
        "Seconds since the oldest item that is due was added.",
        _one(lambda batch: batch.oldest or 0.0),
    ),
    _Family("asyncrunner_workers", "gauge", "Live workers that serve the batch.", _one(lambda batch: batch.workers)),
    _Family("asyncrunner_items_per_second", "gauge", "Finished items per second.", _one(lambda batch: batch.rate)),
    _Family("asyncrunner_suspects", "gauge", "Unfinished items that may have killed workers.", _one(lambda b: b.suspects)),
    _Family("asyncrunner_paused", "gauge", "1 if an operator paused the batch.", _one(lambda batch: batch.paused)),
    _Family("asyncrunner_stopped", "gauge", "1 if a guardrail stopped the batch.", _one(lambda batch: batch.stopped is not None)),
    _Family("asyncrunner_put_offs", "counter", "How often items were put off.", _one(lambda batch: batch.put_offs)),
)


def metrics_text(status: FileStatus) -> str:
    """Return *status* in Prometheus' text format. Control characters in names of batches are escaped as on a terminal."""
    lines: list[str] = []
    for family in _FAMILIES:
        lines += [f"# HELP {family.sample} {family.description}", f"# TYPE {family.sample} {family.kind}"]
        for labels, value in _samples(family, status.batches):
            texts = [f'{label}="{_escaped(text)}"' for label, text in labels.items()]
            lines.append(f"{family.sample}{{{','.join(texts)}}} {value!r}")
    return "".join(f"{line}\n" for line in lines)


def metric_values(status: FileStatus) -> list[dict[str, Any]]:
    """Return the name, the labels and the value of each line of ``metrics_text()``, as plain JSON types."""
    return [
        {"name": family.sample, "labels": labels, "value": value}
        for family in _FAMILIES
        for labels, value in _samples(family, status.batches)
    ]


def _samples(family: _Family, batches: Iterable[BatchStatus]) -> Iterator[tuple[dict[str, str], float]]:
    for batch in batches:
        for labels, value in family.values(batch).items():
            yield {label: _label(text) for label, text in (("batch", batch.name), *labels)}, value


def _label(text: str) -> str:
    return safe_text(text, limit=_MAX_LABEL)


def _escaped(label: str) -> str:
    return label.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


class Collector:
    """A collector for ``prometheus_client`` with the metrics of ``asyncrunner metrics``.

    The file is read for each scrape, at most once a second, and need not exist when the collector is registered. Without a
    file, there are no metrics of batches. Raises StoreError in the scrape if the file cannot be read.
    """

    def __init__(self, db: str | os.PathLike[str] = "asyncrunner.db") -> None:
        self._db = db
        self._status = LiveStatus(db)

    def describe(self) -> Iterable[Metric]:
        """Return the metrics without values, so that registering the collector does not read the file."""
        return list(self._families(()))

    def collect(self) -> Iterable[Metric]:
        """Return the metrics of the file."""
        return list(self._families(self._status().batches if os.path.exists(self._db) else ()))  # noqa: PTH110

    def _families(self, batches: Iterable[BatchStatus]) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        for family in _FAMILIES:
            kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
            names = ["batch", "status"] if family.values is _by_status else ["batch"]
            metric = kind(family.name, family.description, labels=names)
            for labels, value in _samples(family, batches):
                metric.add_metric(list(labels.values()), value)
            yield metric
