"""Parquet: pyarrow reads the times of an export as timestamps in UTC."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from asyncrunner import Control, run_batch
from asyncrunner.admin.exports.formats import writer_of
from asyncrunner.store.snapshot import ItemRecord

TIMES = ("created_at", "due_at", "started_at", "completed_at")


def table_of(records: list[ItemRecord]) -> Any:
    stream = io.BytesIO()
    writer = writer_of("parquet", stream)
    writer.write(records)
    writer.close()
    return pq.read_table(io.BytesIO(stream.getvalue()))


async def test_times_are_timestamps_with_which_a_program_computes(db: str) -> None:
    before = datetime.now(UTC)
    await run_batch([1, 2, 3], str, db=db)
    async with Control(db) as control:
        table = table_of([record async for record in control.export()])
    assert {table.schema.field(name).type for name in TIMES} == {pa.timestamp("us", tz="UTC")}
    (first, *_) = table.column("created_at").to_pylist()
    assert 0 <= (first - before).total_seconds() + 0.001 < 60
    assert table.column("due_at").null_count == 3
    seconds = pc.subtract(table.column("completed_at"), table.column("started_at"))
    assert min(seconds.to_pylist()).total_seconds() >= 0


def test_texts_of_other_programs_are_times_or_null() -> None:
    texts = [
        "2026-11-27 03:04:05.678",
        "2026-11-27T05:04:05+02:00",
        "soon",
        "",
        None,
        "0001-01-01T00:00:00+14:00",
        "9999-12-31 23:59:59.999",
    ]
    records = [
        ItemRecord("b", str(n), "completed", 1, 0, 0, text or "", None, None, text, "1", "1", None, None, None)
        for n, text in enumerate(texts)
    ]
    expected = [
        datetime(2026, 11, 27, 3, 4, 5, 678_000, UTC),
        datetime(2026, 11, 27, 3, 4, 5, 0, UTC),
        None, None, None, None,
        datetime(9999, 12, 31, 23, 59, 59, 999_000, UTC),
    ]  # fmt: skip
    assert table_of(records).column("completed_at").to_pylist() == expected


def test_an_export_without_items_has_the_same_columns() -> None:
    assert table_of([]).schema.field("created_at").type == pa.timestamp("us", tz="UTC")
