"""Each kind of value comes back equal as an item and as a result, or it is refused."""
# ruff: noqa: DTZ001, DTZ901 - naive times are a case

from __future__ import annotations

import collections
from dataclasses import InitVar, dataclass, field
from datetime import UTC, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from fractions import Fraction
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Annotated, Any, Generic, Literal, NamedTuple, NewType, NotRequired, TypedDict, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

import attrs
import msgspec
import pydantic
import pytest

from asyncrunner.errors import ConfigurationError, ItemNotStorable, ResultNotStorable
from asyncrunner.serialization.codec import Codec, codecs_of

T = TypeVar("T")
UserId = NewType("UserId", int)
BERLIN = ZoneInfo("Europe/Berlin")


class Colour(Enum):
    RED = 1
    CRIMSON = 1  # noqa: PIE796 - an alias


class Kind(StrEnum):
    A = "a"


class Level(IntEnum):
    LOW = 1


class Text(str):
    __slots__ = ()


class Whole(int):
    pass


class Names(dict[str, int]):
    pass


class Compact(msgspec.Struct, omit_defaults=True, rename="camel"):
    user_name: str
    size: int = 1


class Array(msgspec.Struct, array_like=True, tag="array"):
    n: int


class Cat(msgspec.Struct, tag=True):
    n: int


class Dog(msgspec.Struct, tag=True):
    n: int


class Closed(TypedDict):
    n: int
    note: NotRequired[str]


class Defaults(NamedTuple):
    a: int
    b: str = "b"


@dataclass
class Box(Generic[T]):
    value: T


@dataclass
class Initial:
    n: int
    scale: InitVar[int] = 1

    def __post_init__(self, scale: int) -> None:
        self.n *= scale


@dataclass
class Computed:
    n: int
    double: int = field(init=False, default=0)


@dataclass(kw_only=True, slots=True, frozen=True)
class Modern:
    n: int
    tags: tuple[str, ...] = ()


@dataclass
class Doubling:
    n: int

    def __post_init__(self) -> None:
        self.n *= 2


@dataclass
class Uncompared:
    n: int
    cache: Any = field(default=None, compare=False)


@dataclass
class Price:
    amount: float


@dataclass
class Node:
    n: int
    children: list[Node] = field(default_factory=list)


@dataclass
class Loose:
    part: Any


@attrs.define
class Attrs:
    n: int
    _hidden: int = 0
    late: int = attrs.field(init=False, default=5)


class Private(pydantic.BaseModel):
    n: int
    _cache: int = pydantic.PrivateAttr(default=0)


class Frozen(pydantic.BaseModel, frozen=True):
    n: int


def private(cache: int) -> Private:
    model = Private(n=1)
    model._cache = cache
    return model


def computed(double: int) -> Computed:
    value = Computed(1)
    value.double = double
    return value


EQUAL: list[tuple[Any, Any]] = [
    (Compact, Compact("a")), (Compact, Compact("a", 2)), (Array, Array(1)), (Cat | Dog, Dog(1)), (list[Cat | Dog], [Cat(1), Dog(2)]),
    (Closed, {"n": 1}), (Closed, {"n": 1, "note": "x"}), (Defaults, Defaults(1)), (Colour, Colour.CRIMSON), (Kind, Kind.A), (Level, Level.LOW),
    (str, Kind.A), (int, Level.LOW), (bool, True), (int | None, None), (Literal["a", 1], "a"), (UserId, UserId(5)),
    (Annotated[int, "positive"], 5), (Decimal, Decimal("1E+5")), (Decimal, Decimal("-0")), (datetime, datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN)),
    (datetime, datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=BERLIN)), (datetime, datetime(2026, 1, 2)), (time, time(1, 2, 3, 4)),
    (datetime, datetime.max), (datetime, datetime(1, 1, 1, tzinfo=UTC)), (timedelta, timedelta(days=-1, microseconds=1)),
    (timedelta, timedelta(days=999_999, microseconds=1)), (bytes, b"\0\xff"), (bytearray, bytearray(b"x")), (Path, Path("a/./b//c")),
    (PurePosixPath, PurePosixPath("/a")), (PureWindowsPath, PureWindowsPath("c:\\a")), (UUID, UUID(int=5)), (frozenset[str], frozenset("ab")),
    (set[tuple[int, int]], {(1, 2), (3, 4)}), (dict[int, str], {1: "a", -2: "b"}), (dict[UUID, int], {UUID(int=1): 1}), (dict[Kind, int], {Kind.A: 1}),
    (dict[str, dict[int, list[set[int]]]], {"a": {1: [{1, 2}]}}), (Box[int], Box(1)), (Box[Box[str]], Box(Box("a"))), (int, 2**70), (int, -(2**200)),
    (float, -0.0), (float, 5e-324), (float, 1.7976931348623157e308), (str, "\0\u2028\U0010ffff"), (Modern, Modern(n=1, tags=("a",))),
    (Uncompared, Uncompared(1)), (Node, Node(1, [Node(2)])), (Attrs, Attrs(1)), (Private, private(0)), (Frozen, Frozen(n=1)), (Price, Price(2)),
    (dict[str, Any], {"b": 2**64, "c": -0.0}), (Computed, computed(7)),
    (Uncompared, Uncompared(1, {1})), (dict[str, int], Names(a=1)), (Loose, Loose(collections.Counter("a"))), (Loose, Loose({"a": [1, None]})), (tuple[()], ()), (tuple[int, ...], (1, 2)),
]  # fmt: skip
REFUSED: list[tuple[Any, Any]] = [
    (Closed, {"n": 1, "extra": 2}), (Initial, Initial(2, 3)), (Doubling, Doubling(2)), (Loose, Loose({1: "a", "1": "b"})), (str, "\ud800"),
    (Fraction, Fraction(1, 3)), (complex, 1j), (Decimal, Decimal("nan")), (float, 2**63 + 1), (collections.OrderedDict, collections.OrderedDict(a=1)),
    (Loose, Loose({"a": Text("x")})), (str, Text("a")), (int, Whole(5)), (dict[str, Any], {"a": Kind.A}), (dict[str, Any], {1: 2}),
]  # fmt: skip


def shown(value: object) -> str:
    return type(value).__name__  # the text of a set differs between processes


def results_of(annotation: Any) -> Codec[Any]:
    async def work(item: int) -> None: ...

    work.__annotations__["return"] = annotation
    return codecs_of(work)[1]


@pytest.mark.parametrize(("annotation", "value"), EQUAL, ids=shown)
def test_it_comes_back_equal(annotation: Any, value: Any) -> None:
    items: Codec[Any] = Codec(annotation)
    results = results_of(annotation)
    for back in (items.decode(items.encode_item(value)), results.decode_result(results.encode_result(value))):
        # In the hour that a clock change repeats, Python finds no datetime equal to one with another tzinfo.
        assert back == value or (isinstance(back, datetime) and back.timestamp() == value.timestamp())


@pytest.mark.parametrize(("annotation", "value"), REFUSED, ids=shown)
def test_it_is_refused(annotation: Any, value: Any) -> None:
    with pytest.raises((ItemNotStorable, ConfigurationError)):
        Codec[Any](annotation).encode_item(value)


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (Closed, {"n": 1, "extra": 2}), (Doubling, Doubling(2)), (str, "\ud800"), (Fraction, Fraction(1, 3)), (complex, 1j),
        (Loose, Loose({"a": Text("x")})), (str, Text("a")), (int, Whole(5)), (Any, {"a": 1j}),
    ],
    ids=shown,
)  # fmt: skip
def test_the_result_fails_the_item(annotation: Any, value: Any) -> None:
    with pytest.raises(ResultNotStorable):
        results_of(annotation).encode_result(value)


def test_the_private_attributes_of_a_model_are_not_stored() -> None:
    codec: Codec[Any] = Codec(Private)
    assert codec.decode(codec.encode_item(private(5))) == private(0)
