"""NaN and infinity, and the scalars of numpy and pandas, as items, keys and results."""
# ruff: noqa: DTZ001, UP017 - naive times are a case

from __future__ import annotations

import math
import subprocess
import sys
import warnings
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pandas as pd
import pydantic
import pytest

from asyncrunner import plan_batch, run_batch
from asyncrunner.errors import ConfigurationError, InvalidKey, ItemNotStorable, PayloadUnreadable, ResultNotStorable
from asyncrunner.serialization.codec import Codec
from asyncrunner.serialization.keys import default_key, given_key
from tests.support import child_handlers
from tests.support.state import rows_of

UTC_MOMENT = pd.Timestamp("2026-01-02T03:04:05.123456", tz="UTC")
NANOSECONDS = pd.Timestamp("2026-01-02T03:04:05.123456789")


@dataclass
class Row:
    price: float | None
    name: str = ""
    part: Any = None


class Model(pydantic.BaseModel):
    price: float | None = None
    part: Any = None


SCALARS: list[tuple[Any, Any, str]] = [
    (np.int64(5), 5, "5"), (np.uint64(2**64 - 1), 2**64 - 1, "18446744073709551615"), (np.int8(-5), -5, "-5"), (np.float64(1.5), 1.5, "1.5"),
    (np.float32(0.1), 0.10000000149011612, "0.10000000149011612"), (np.float16(0.5), 0.5, "0.5"), (np.bool_(True), True, "true"),
    (np.str_("a"), "a", '"a"'), (np.array(5), 5, "5"), (np.array("a"), "a", '"a"'),
]  # fmt: skip
TIMES: list[tuple[Any, Any]] = [
    (pd.Timestamp("2026-01-02 03:04"), datetime(2026, 1, 2, 3, 4)), (UTC_MOMENT, datetime(2026, 1, 2, 3, 4, 5, 123456, tzinfo=timezone.utc)),
    (pd.Timedelta("1 days 00:00:01.000005"), timedelta(days=1, seconds=1, microseconds=5)), (np.datetime64("2026-01-02"), date(2026, 1, 2)),
    (np.datetime64("2026-01-02T03:04"), datetime(2026, 1, 2, 3, 4)), (np.timedelta64(5, "s"), timedelta(seconds=5)),
    (np.datetime64("2026-01-02T03:04:05.123456000"), datetime(2026, 1, 2, 3, 4, 5, 123456)), (np.timedelta64(5000, "ns"), timedelta(microseconds=5)),
]  # fmt: skip
REFUSED: list[Any] = [
    NANOSECONDS, pd.Timedelta("1ns"), np.datetime64("2026-01-02T03:04:05.123456789"), np.timedelta64(5, "ns"), np.complex128(1), np.array([1]),
    np.longdouble(1) / 3, pd.Interval(1, 2), pd.Period("2026-01"), pd.Series([1]), pd.DataFrame({"a": [1]}),
]  # fmt: skip
MISSING: list[Any] = [
    math.nan, math.inf, -math.inf, np.float64("nan"), np.float32("inf"), np.array(math.nan), np.longdouble("nan"), np.datetime64("NaT", "s"),
    np.timedelta64("NaT", "s"), np.datetime64("NaT", "ns"), pd.NaT, pd.NA,
]  # fmt: skip


def shown(value: object) -> str:
    return f"{type(value).__name__} {str(value)[:30]}"


@pytest.mark.parametrize(("given", "own", "text"), SCALARS, ids=shown)
def test_a_numpy_scalar_is_stored_as_pythons_own(given: Any, own: Any, text: str) -> None:
    for annotation in (Any, type(own)):
        codec: Codec[Any] = Codec(annotation)
        assert codec.encode_item(given) == text
        assert codec.encode_result(given) == text
        assert type(codec.decode(text)) is type(own)
    assert Codec[Any]().encode_item({"a": [given]}) == f'{{"a":[{text}]}}'
    assert Codec[Any](Row).encode_item(Row(1.0, part=given)) == f'{{"price":1.0,"name":"","part":{text}}}'
    assert default_key(given, text) == default_key(own, text)


@pytest.mark.parametrize(("given", "own"), TIMES, ids=shown)
def test_a_time_of_numpy_or_pandas_is_stored_as_pythons_own(given: Any, own: Any) -> None:
    codec: Codec[Any] = Codec(type(own))
    assert codec.decode(codec.encode_item(given)) == own
    assert codec.decode_result(codec.encode_result(given)) == own
    assert codec.encode_item(given) == codec.encode_item(own)
    with pytest.raises(ItemNotStorable, match="annotate the handler's parameter"):
        Codec[Any]().encode_item(given)


@pytest.mark.parametrize("given", REFUSED, ids=shown)
@pytest.mark.parametrize("nan", ["refuse", "null"])
def test_a_value_that_pythons_own_type_cannot_hold_is_refused(given: Any, nan: Literal["refuse", "null"]) -> None:
    for annotation in (Any, int, float, datetime, timedelta):
        codec: Codec[Any] = Codec(annotation, nan=nan)
        with warnings.catch_warnings(), pytest.raises(ItemNotStorable):
            warnings.simplefilter("error")
            codec.encode_item(given)
        with pytest.raises(ResultNotStorable):
            codec.encode_result(given)


@pytest.mark.parametrize("given", MISSING, ids=shown)
def test_a_missing_value_is_refused_or_stored_as_null(given: Any) -> None:
    for annotation in (Any, float | None, datetime | None):
        with pytest.raises(ItemNotStorable):
            Codec[Any](annotation).encode_item(given)
        with pytest.raises(ResultNotStorable):
            Codec[Any](annotation).encode_result(given)
        codec: Codec[Any] = Codec(annotation, nan="null")
        assert codec.encode_item(given) == "null"
        assert codec.encode_result(given) == "null"
    for value in ({"a": [1, given]}, {"a": given, "b": None}):
        with pytest.raises(ItemNotStorable):
            Codec[Any]().encode_item(value)
        assert Codec[Any](nan="null").decode(Codec[Any](nan="null").encode_item(value)) in (
            {"a": [1, None]},
            {"a": None, "b": None},
        )
    row: Codec[Any] = Codec(Row, nan="null")
    assert row.decode(row.encode_item(Row(given, part=[given]))) == Row(None, part=[None])
    with pytest.raises(ItemNotStorable):
        Codec[Any](Row).encode_item(Row(given))


def test_the_error_names_the_part_and_the_option() -> None:
    with pytest.raises(
        ItemNotStorable, match=r"\['a'\]\[1\], float inf, has no JSON form; the option nan=\"null\" \(--nan null\)"
    ):
        Codec[Any]().encode_item({"n": None, "a": [1, math.inf]})
    with pytest.raises(ItemNotStorable, match=r"cannot be stored as JSON: the value, float nan, has no JSON form"):
        Codec[Any](float).encode_item(math.nan)
    with pytest.raises(ItemNotStorable, match=r"nan=.null"):
        Codec[Any]().encode_item({"at": pd.NaT})
    with pytest.raises(ItemNotStorable, match=r"Expected `float`, got `null`"):
        Codec[Any](list[float], nan="null").encode_item([math.nan])


@pytest.mark.parametrize("annotation", [Any, Model, list[Model], dict[str, Any]])
def test_a_model_does_not_turn_nan_into_null_by_itself(annotation: Any) -> None:
    for model in (Model(part=math.nan), Model(price=math.nan)):
        value = [model] if annotation == list[Model] else {"a": model} if annotation == dict[str, Any] else model
        with pytest.raises(ResultNotStorable):
            Codec[Any](annotation).encode_result(value)
        Codec[Any](annotation, nan="null").encode_result(value)
    with pytest.raises(ItemNotStorable):
        Codec[Any](Model).encode_item(Model(part=math.nan))
    codec: Codec[Any] = Codec(Model, nan="null")
    assert codec.decode(codec.encode_item(Model(price=math.nan, part=math.nan))) == Model()


def test_a_key_of_numpy_is_a_key() -> None:
    assert given_key(np.int64(5), "item") == "5"
    assert given_key(np.str_("a"), "item") == "a"
    for key in (np.bool_(True), np.float64(1.5), pd.NA, pd.NaT):
        with pytest.raises(InvalidKey):
            given_key(key, "item")


FRAME: Any = pd.DataFrame({
    "n": [1, 2], "price": [1.5, math.nan], "at": [pd.Timestamp("2026-01-02"), pd.NaT], "i": pd.array([1, None], dtype="Int64"), "kind": pd.Categorical(["u", "v"]),
})  # fmt: skip


@dataclass
class Record:
    n: int
    price: float | None
    at: datetime | None
    i: int | None
    kind: str


async def test_the_rows_of_a_data_frame_are_a_batch(db: str) -> None:
    with pytest.raises(ItemNotStorable, match="nan="):
        await run_batch(FRAME.to_dict("records"), _take_record, db=db, key="n", progress=False)
    report = await run_batch(FRAME.to_dict("records"), _take_record, db=db, key="n", nan="null", progress=False)
    # The refused call may have run the row before the refused one.
    assert (report.completed + report.skipped, report.failed) == (2, 0)
    assert [outcome.result async for outcome in report.outcomes()] == ["1.5 2026-01-02 00:00:00 1 u", "None None None v"]
    assert rows_of(db, "SELECT id FROM items ORDER BY seq") == [("1",), ("2",)]


async def _take_record(item: Record) -> str:
    return f"{item.price} {item.at} {item.i} {item.kind}"


async def test_nan_in_items_and_results_as_the_option_says(db: str) -> None:
    report = await run_batch([1, 2], _divide, db=db, progress=False)
    assert (report.completed, report.failed) == (1, 1)
    (trace,) = rows_of(db, "SELECT traceback FROM failures")[0]
    assert '[1], float nan, has no JSON form; the option nan="null"' in trace
    report = await run_batch([1, 2], _divide, db=db, nan="null", retry_failed=True, progress=False)
    assert [outcome.result async for outcome in report.outcomes()] == [[1, None], [2, 1.0]]
    plan = await plan_batch([math.nan], _divide, db=db, nan="null")
    assert plan.new == 1
    with pytest.raises(ConfigurationError, match="nan"):
        await run_batch([1], _divide, db=db, nan="keep")  # type: ignore[call-overload]


async def _divide(item: Any) -> Any:
    return [item, math.nan if item == 1 else 1.0]


async def test_a_child_process_follows_the_option(db: str) -> None:
    report = await run_batch([1], child_handlers.not_a_number, db=db, run_in="process", nan="null", progress=False)
    assert [outcome.result async for outcome in report.outcomes()] == [cast("Any", [None])]


def test_a_cell_of_nan_is_refused_or_null() -> None:
    assert math.isnan(Codec[Any](float).from_strings("nan"))
    assert Codec[Any](float | None, nan="null").encode_item(math.nan) == "null"
    with pytest.raises(PayloadUnreadable):
        Codec[Any](float).from_json("NaN")
    with pytest.raises(ItemNotStorable):
        Codec[Any](Decimal).encode_item(Decimal("nan"))


def test_asyncrunner_imports_none_of_these_packages(tmp_path: Path) -> None:
    code = (
        "import sys, asyncrunner, asyncrunner.serialization.codec as c; c.Codec().encode_item({'a': [1.5, None]});"
        "print({'numpy', 'pandas', 'pydantic', 'attrs'} & set(sys.modules))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    assert printed.strip() == "set()"
