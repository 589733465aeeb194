"""Prometheus: the parser and the registry of the real client read what the command prints and the collector yields."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from asyncrunner import Control, run_batch
from asyncrunner.admin.live_status import read_status
from asyncrunner.prometheus import Collector, metrics_text
from asyncrunner.text.escaping import safe_text
from tests.support.cli import run_command

HOSTILE = 'a"b\\c\nd{x="1"} 2\x1b[2J\u202e{}'

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def samples_of(text: str) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def printed(file: Path, *options: str) -> str:
    process = run_command(file.parent, "metrics", "--db", str(file), *options)
    assert (process.returncode, process.stderr) == (0, "")
    return process.stdout


async def fail_for_two(number: int) -> int:
    if number == 2:
        raise ValueError("two")
    return number


@pytest.fixture
async def file(tmp_path: Path) -> Path:
    db = tmp_path / "jobs.db"
    await run_batch([1, 2, 3], fail_for_two, db=db, batch=HOSTILE, max_attempts=1)
    await run_batch([1], fail_for_two, db=db, batch="other", max_attempts=1)
    async with Control(db) as control:
        await control.retry(batch=HOSTILE, failed=True)
        await control.pause(HOSTILE)
    return db


def check(samples: Samples) -> None:
    batch = ("batch", safe_text(HOSTILE))
    assert samples["asyncrunner_items", (batch, ("status", "completed"))] == 2
    assert samples["asyncrunner_items", (batch, ("status", "pending"))] == 1
    assert samples["asyncrunner_items", (batch, ("status", "failed"))] == 0
    assert samples["asyncrunner_workers", (batch,)] == 0
    assert samples["asyncrunner_paused", (batch,)] == 1
    assert samples["asyncrunner_paused", (("batch", "other"),)] == 0
    assert samples["asyncrunner_oldest_item_seconds", (batch,)] >= 0
    assert samples["asyncrunner_put_offs_total", (batch,)] == 0
    assert len(samples) == 2 * 13, "five statuses, and eight metrics, of two batches"


def test_the_command_prints_what_the_parser_of_prometheus_reads(file: Path) -> None:
    result = printed(file)
    check(samples_of(result))
    assert "\x1b" not in result
    values = json.loads(printed(file, "--json"))["metrics"]
    assert {(each["name"], tuple(sorted(each["labels"].items()))): each["value"] for each in values}.keys() == samples_of(
        result
    ).keys()
    only = samples_of(printed(file, "--batch", "other"))
    assert {labels[0] for _, labels in only} == {("batch", "other")}


async def test_the_collector_yields_the_same_even_while_an_event_loop_runs(file: Path) -> None:
    registry = CollectorRegistry(auto_describe=True)
    registry.register(Collector(file))
    check(samples_of(generate_latest(registry).decode()))


def test_a_collector_without_a_file_has_no_samples_and_finds_the_file_later(tmp_path: Path) -> None:
    registry = CollectorRegistry(auto_describe=True)
    registry.register(Collector(tmp_path / "missing.db"))
    assert samples_of(generate_latest(registry).decode()) == {}
    assert not (tmp_path / "missing.db").exists()


async def test_a_name_that_is_no_unicode_and_a_huge_number_are_text(file: Path) -> None:
    status = read_status(file)
    batch = msgspec.structs.replace(status.batches[0], name="a\udcffb", put_offs=10**18)
    samples = samples_of(metrics_text(msgspec.structs.replace(status, batches=[batch])))
    assert samples["asyncrunner_put_offs_total", (("batch", safe_text("a\udcffb")),)] == 1e18
