"""What a handler returns comes back equal, or the item fails with ResultNotStorable."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import msgspec
import pydantic
import pytest

from asyncrunner import run_batch
from asyncrunner.errors import ResultNotStorable
from asyncrunner.serialization.codec import Codec, codecs_of
from tests.support.state import rows_of

WHEN = datetime(2026, 11, 23, 12, 14, 15, 123456, tzinfo=timezone(timedelta(hours=2)))


class Colour(Enum):
    RED = 1


@dataclass
class Inner:
    n: int


@dataclass
class DerivedInner(Inner):
    more: int = 0


@dataclass
class Record:
    name: str
    when: datetime
    tags: list[str] = field(default_factory=list)
    path: Path | None = None


@dataclass
class DerivedRecord(Record):
    more: int = 0


@dataclass
class Outer:
    inner: Inner


@dataclass
class Loose:
    part: Any


@dataclass
class Changing:
    n: int

    def __post_init__(self) -> None:
        self.n += 1


class Tree(msgspec.Struct):
    n: int
    children: list[Tree] = []


@dataclass
class Nested:
    part: Loose
    trees: list[Tree]


class Typed(TypedDict):
    n: int


class Pair(NamedTuple):
    a: int
    b: bytes


class Login(pydantic.BaseModel):
    user: str
    password: pydantic.SecretStr = pydantic.SecretStr("")
    note: str = pydantic.Field(default="", exclude=True)
    tags: list[str] = pydantic.Field(default_factory=list, exclude=True)


class Revealed(pydantic.BaseModel):
    password: pydantic.SecretStr

    @pydantic.field_serializer("password", when_used="json")
    def reveal(self, value: pydantic.SecretStr) -> str:
        return value.get_secret_value()


class OneWay(pydantic.BaseModel):
    price: int

    @pydantic.field_serializer("price")
    def with_unit(self, value: int) -> str:
        return f"{value} EUR"


class Base(pydantic.BaseModel):
    n: int


class Special(Base):
    more: int


class Holder(pydantic.BaseModel):
    base: Base


EQUAL: list[tuple[Any, Any]] = [
    (int, 5), (float, 1.5), (float, 2), (str, "a"), (bool, True), (None, None), (dict[str, Any], {"a": [1]}), (list[int], [1]),
    (tuple[int, str], (1, "a")), (set[int], {1, 2}), (dict[int, str], {1: "a"}), (datetime, WHEN), (date, date(2026, 1, 2)),
    (timedelta, timedelta(days=400, microseconds=1)), (Decimal, Decimal("1.10")), (Path, Path("/a/b")), (Colour, Colour.RED), (bytes, b"\0"),
    (Record, Record("a", WHEN, ["t"], Path("p"))), (Record | None, Record("a", WHEN)), (Outer, Outer(Inner(1))), (list[Inner], [Inner(1)]),
    (Tree, Tree(1, [Tree(2)])), (Typed, {"n": 1}), (Pair, Pair(1, b"x")), (Login, Login(user="a")),
    (Revealed, Revealed(password=pydantic.SecretStr("x"))), (Holder, Holder(base=Base(n=1))), (dict[str, Holder], {"a": Holder(base=Base(n=1))}),
    (Loose, Loose([1, {"a": None}])), (int, "not an int"), (Record, {"name": "a", "of": "another shape"}), (int | list[int] | set[int], [1]),
]  # fmt: skip


@pytest.mark.parametrize(("annotation", "value"), EQUAL, ids=lambda value: type(value).__name__)
def test_a_result_comes_back_equal(annotation: Any, value: Any) -> None:
    async def work(item: int) -> None: ...

    work.__annotations__["return"] = annotation
    results = codecs_of(work)[1]
    assert results.decode_result(results.encode_result(value)) == value


SECRET = pydantic.SecretStr("x")


@pytest.mark.parametrize(
    ("annotation", "value", "said"),
    [
        (Login, Login(user="a", password=SECRET), "password, pydantic.types.SecretStr"),
        (Any, Login(user="a", password=SECRET), r"password, pydantic.types.SecretStr .* would be stored as '\*+'"),
        (Any, Login(user="a", note="n"), "note, str 'n', would not be stored: the JSON form of the model excludes it"),
        (Any, Login(user="a", tags=["t"]), r"tags, list \['t'\], would not be stored"),
        (dict[str, Any], {"login": Login(user="a", password=SECRET)}, "password, pydantic.types.SecretStr"),
        (list[Login], [Login(user="a"), Login(user="a", note="n")], r"\[1\]\.note, str 'n'"),
        (Loose, Loose({"a": Login(user="a", password=SECRET)}), "password, pydantic.types.SecretStr"),
        (list[Loose], [Loose(Login(user="a", password=SECRET))], "password, pydantic.types.SecretStr"),
        (Typed, {"n": 1, "login": Login(user="a", note="x")}, r"\['login'\].* would not come back"),
        (Record, DerivedRecord("a", WHEN, more=5), "DerivedRecord.* would come back as .*Record"),
        (Outer, Outer(DerivedInner(1, 2)), r"inner, .*DerivedInner.* would come back as"),
        (list[Inner], [DerivedInner(1, 2)], r"\[0\], .*DerivedInner.* would come back as"),
        (Base, Special(n=1, more=2), "Special.* would come back as .*Base"),
        (Any, Holder(base=Special(n=1, more=2)), r"base\.more, int 2, would not be stored"),
        (Holder, Holder(base=Special(n=1, more=2)), "base, .*Special"),
        (Typed, {"n": 1, "extra": 5}, r"\['extra'\], int 5, would not come back"),
        (Record, {"name": "a", "when": WHEN, "extra": 5}, r"\['extra'\], int 5, would not come back"),
        (Changing, Changing(1), "n, int 2, would come back as int 3"),
        (OneWay, OneWay(price=2), "OneWay.* would come back as dict {'price': '2 EUR'}"),
        (Inner, Outer(Inner(1)), "Outer.* would come back as dict"),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_a_result_that_would_lose_something_fails_the_item(annotation: Any, value: Any, said: str) -> None:
    with pytest.raises(ResultNotStorable, match=said):
        Codec[Any](annotation).encode_result(value)


@pytest.mark.parametrize(
    ("annotation", "value", "back"),
    [
        (Any, (1, "a"), [1, "a"]), (Any, {1}, [1]), (Any, date(2026, 1, 2), "2026-01-02"), (Any, b"\xff", "/w=="), (Any, {1: "a"}, {"1": "a"}),
        (Any, Record("a", WHEN), {"name": "a", "when": WHEN.isoformat(), "tags": [], "path": None}), (Any, Colour.RED, 1),
        (Any, OneWay(price=5), {"price": "5 EUR"}), (Any, Login(user="a"), {"user": "a", "password": ""}), (Any, Pair(1, b""), [1, ""]),
        (list[Loose], [Loose((1, {date(2026, 1, 2)}))], [Loose([1, ["2026-01-02"]])]), (list[Loose], [Loose(Inner(1))], [Loose({"n": 1})]),
        (list[Loose], [Loose({1: Decimal("1.5")})], [Loose({"1": "1.5"})]), (list[Loose], [Loose(OneWay(price=1))], [Loose({"price": "1 EUR"})]),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_a_part_without_an_annotation_comes_back_as_its_json_form(annotation: Any, value: Any, back: Any) -> None:
    codec: Codec[Any] = Codec(annotation)
    assert codec.decode_result(codec.encode_result(value)) == back


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (Any, {"a": 1}), (int, 5), (str, "a"), (dict[str, int], {"a": 1}), (list[str], ["a"]), (tuple[int, str], (1, "a")),
        (Nested, Nested(Loose(1), [Tree(1)])), (list[Loose], [Loose(1)]), (Tree, Tree(1, [Tree(2)])), (Loose | None, Loose(1)), (datetime, WHEN),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_a_common_result_is_not_decoded(annotation: Any, value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the result is compared")

    monkeypatch.setattr(Codec, "_check_back", refuse)
    codec: Codec[Any] = Codec(annotation)
    codec.encode_result(value)


@pytest.mark.parametrize("annotation", [Any, dict, list, dict[str, Any], list[Any]])
@pytest.mark.parametrize(
    "colliding",
    [{1: 2, "1": 3}, {Decimal(1): 1, "1": 2}, {"a": [{1.5: 1, "1.5": 2}]}],
)
def test_dict_keys_that_become_one_name_fail_the_item(annotation: Any, colliding: Any) -> None:
    value = [colliding] if "list" in str(annotation) else colliding
    with pytest.raises(ResultNotStorable, match="become the name"):
        Codec(annotation).encode_result(value)


def test_equal_names_in_different_objects_are_no_collision() -> None:
    value = {"a": {"x": 1}, "b": {"x": 1, "ä": "\u2028\ud7ff"}, "c": [1.0, 1e300, 2**60, -0.0, {3: {3: "3"}}]}
    assert Codec().encode_result(value)


async def test_a_secret_in_a_result_fails_the_item_and_keeps_the_rest_as_text(db: str) -> None:
    report = await run_batch([1, 2], _login, db=db, progress=False)
    assert (report.completed, report.failed) == (1, 1)
    assert [outcome.result async for outcome in report.outcomes()] == [None, Login(user="2")]
    (trace,) = rows_of(db, "SELECT traceback FROM failures")[0]
    assert "ResultNotStorable: the handler returned tests.unit.serialization.test_results.Login" in trace
    assert "password, pydantic.types.SecretStr" in trace
    assert "The result was: Login(user='1'" in trace


async def _login(item: int) -> Login:
    return Login(user=str(item), password=pydantic.SecretStr("x" if item == 1 else ""))
