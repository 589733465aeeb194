"""A stored value is read back as the same value, or refused before it is written."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Optional, TypedDict, TypeVar
from uuid import UUID

import attrs
import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncrunner import run_batch
from asyncrunner.errors import ConfigurationError, InvalidKey, ItemNotStorable, PayloadUnreadable, ResultNotStorable
from asyncrunner.serialization.codec import MAX_BYTES, Codec, codecs_of
from asyncrunner.serialization.keys import default_key, given_key
from asyncrunner.serialization.signature import signature_of
from tests.support.state import rows_of


class Colour(Enum):
    RED = "red"


@dataclass
class Inner:
    when: datetime
    path: Path


@dataclass
class Data:
    n: int
    inner: Inner | None = None
    tags: set[str] = field(default_factory=set)


@attrs.define
class Attrs:
    n: int
    colour: Colour


class Typed(TypedDict):
    n: int
    price: Decimal


class Named(NamedTuple):
    a: int
    b: bytes


class Struct(msgspec.Struct):
    n: int
    ids: list[UUID]


class Model(pydantic.BaseModel):
    n: int
    when: datetime
    sub: list[dict[str, int]] = []


WHEN = datetime(2026, 11, 23, 12, 14, 15, 123456, tzinfo=timezone(timedelta(hours=2)))
ID = UUID("12345678-1234-5678-1234-567812345678")

VALUES: list[tuple[Any, Any]] = [
    (str, "text"), (str, ""), (str, "nul \0 and \u2028 and 😀"), (int, 2**63), (int, -(10**30)), (float, 1.5), (bool, True),
    (Optional[int], None), (int | str, "x"), (dict[str, int], {"a": 1}), (dict[int, str], {1: "a"}), (list[int], [1, 2]),
    (tuple[int, str], (1, "a")), (set[int], {1, 2}), (frozenset[str], frozenset({"a"})), (datetime, WHEN), (date, date(2026, 11, 23)),
    (timedelta, timedelta(seconds=1.5)), (UUID, ID), (Decimal, Decimal("1.10")), (Path, Path("/a/b.py")),
    (PurePosixPath, PurePosixPath("x")), (Colour, Colour.RED), (bytes, b"\x00\xff"), (Data, Data(1, Inner(WHEN, Path("p")), {"t"})),
    (Attrs, Attrs(1, Colour.RED)), (Typed, {"n": 1, "price": Decimal("2.5")}), (Named, Named(1, b"x")), (Struct, Struct(1, [ID])),
    (Model, Model(n=1, when=WHEN, sub=[{"a": 1}])), (list[Data], [Data(1)]), (dict[str, Path], {"a": Path("b")}), (None, None),
]  # fmt: skip


@pytest.mark.parametrize(("annotation", "value"), VALUES, ids=lambda value: str(value)[:30])
def test_an_annotated_value_comes_back_as_it_was(annotation: Any, value: Any) -> None:
    codec: Codec[Any] = Codec(annotation)
    back = codec.decode(codec.encode_item(value))
    assert back == value
    assert type(back) is type(value)


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


def has_lone_surrogate(value: object) -> bool:
    try:
        repr(value).encode()
        str(value).encode()
    except UnicodeEncodeError:
        return True
    return False


@given(plain)
def test_any_plain_value_round_trips_or_is_refused(value: Any) -> None:
    codec: Codec[Any] = Codec()
    try:
        text = codec.encode_item(value)
    except ItemNotStorable:
        return
    back = codec.decode(text)
    assert back == value
    assert type(back) is type(value)


@given(st.one_of(plain, st.floats(), st.lists(st.floats()), st.text(alphabet=st.characters(categories=["Cs", "Lu"]))))
def test_a_stored_value_is_valid_text_and_never_a_silent_null(value: Any) -> None:
    try:
        text = Codec[Any]().encode_item(value)
    except ItemNotStorable as error:
        assert "of type" in str(error)
        return
    assert text.encode()
    assert (text == "null") == (value is None)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (math.nan, "NaN"), ([1.0, {"a": math.inf}], "NaN"), ("\ud800", "cannot be stored"), (b"x", "annotate the handler's parameter"),
        ({1, 2}, "annotate the handler's parameter"), ({1: 2}, "dict key 1 is not a str"), (Path("x"), "annotate the handler's parameter"),
        (object(), "cannot be stored as JSON"), (Data, "the class Data"), (Named(1, b""), "annotate"),
        (lambda: None, "cannot be stored as JSON"), (WHEN, "annotate"),
    ],
    ids=lambda value: str(value)[:20],
)  # fmt: skip
def test_a_value_without_an_exact_json_form_is_refused_with_its_name_and_type(value: Any, said: str) -> None:
    with pytest.raises(ItemNotStorable, match=said):
        Codec[Any]().encode_item(value)


def test_a_list_that_holds_itself_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(ItemNotStorable):
        Codec[Any]().encode_item(endless)


def test_an_item_that_does_not_fit_the_annotation_is_refused() -> None:
    with pytest.raises(ItemNotStorable, match=r"'x' of type str does not fit the handler, which takes int"):
        Codec[Any](int).encode_item("x")
    with pytest.raises(ItemNotStorable, match="does not fit"):
        Codec[Any](Data).encode_item(Data("x"))  # type: ignore[arg-type]
    with pytest.raises(ItemNotStorable):
        Codec[Any](Model).encode_item({"n": "x"})


def test_an_item_that_is_too_large_is_refused() -> None:
    with pytest.raises(ItemNotStorable, match="more than the limit"):
        Codec[Any]().encode_item("x" * (MAX_BYTES + 1))


def shown_id(value: object) -> str:
    """A value whose JSON form is the same in every process."""
    return re.sub(r" at 0x\w+", "", str(value))


class Rude:
    def __repr__(self) -> str:
        raise RuntimeError


def test_a_broken_repr_does_not_hide_what_is_wrong() -> None:
    with pytest.raises(ItemNotStorable, match="Rude whose repr"):
        Codec[Any]().encode_item(Rude())


@pytest.mark.parametrize("result", [object(), math.nan, lambda: 1, "\ud800", {1j: 2}], ids=shown_id)
def test_a_result_that_cannot_be_stored_is_named_by_its_type(result: Any) -> None:
    with pytest.raises(ResultNotStorable, match="the handler returned"):
        Codec[Any]().encode_result(result)


def test_results_need_no_annotation() -> None:
    codec: Codec[Any] = Codec()
    assert codec.encode_result(Data(1)) == '{"n":1,"inner":null,"tags":[]}'
    assert codec.encode_result(None) == "null"
    assert codec.decode_result('{"n":1}') == {"n": 1}
    assert Codec[Any](int).decode_result('"no longer a number"') == "no longer a number"


def test_the_error_about_a_payload_that_no_longer_fits_names_the_likely_change() -> None:
    with pytest.raises(PayloadUnreadable, match="was the annotation of"):
        Codec[Any](int).decode('"x"')


def test_the_error_about_a_payload_that_is_not_json_names_the_item_and_what_to_do() -> None:
    with pytest.raises(PayloadUnreadable) as raised:
        Codec[Any](str).decode("Ada", "order-17")
    text = str(raised.value)
    assert text.startswith("the stored payload of item 'order-17' is not JSON (")
    assert "annotation" not in text
    assert "where a text needs double quotes, then run `asyncrunner retry`" in text


def test_an_annotation_without_a_json_form_is_refused_immediately() -> None:
    with pytest.raises(ConfigurationError, match="has no JSON form"):
        Codec[Any](int | list[int] | set[int])


@pytest.mark.parametrize(
    ("annotation", "value", "expected"),
    [
        (Any, "5", "5"), (str, "5", "5"), (int, "5", 5), (float, "5", 5.0), (Path, "/a", Path("/a")), (bool, "true", True),
        (Data, {"n": "5"}, Data(5)), (Data, '{"n": 5}', Data(5)), (dict[str, str], {"a": "1"}, {"a": "1"}), (date, "2026-11-23", date(2026, 11, 23)),
        (list[int], "[1]", [1]), (Model, {"n": "1", "when": "2026-11-23T10:14:15Z"}, Model(n=1, when="2026-11-23T10:14:15Z")),  # type: ignore[arg-type]
    ],
    ids=str,
)  # fmt: skip
def test_texts_are_converted_to_the_type_that_the_handler_takes(annotation: Any, value: Any, expected: Any) -> None:
    assert Codec[Any](annotation).from_strings(value) == expected


def test_a_text_that_does_not_fit_is_refused() -> None:
    with pytest.raises(PayloadUnreadable, match="takes int"):
        Codec[Any](int).from_strings("five")
    with pytest.raises(PayloadUnreadable):
        Codec[Any](Data).from_strings({"m": "5"})


# --- what comes back equals what was given -----------------------------------------------------------------------------


class Login(pydantic.BaseModel):
    user: str
    password: pydantic.SecretStr = pydantic.SecretStr("")
    note: str = pydantic.Field(default="", exclude=True)


class Derived(Inner):
    pass


@dataclass
class DerivedData(Data):
    more: int = 0


@dataclass
class Loose:
    part: Any


@pytest.mark.parametrize(
    ("annotation", "value", "said"),
    [
        (Login, Login(user="a", password=pydantic.SecretStr("x")), "password, pydantic.types.SecretStr"),
        (Login, Login(user="a", note="n"), "note, str 'n', would come back as str ''"),
        (list[Login], [Login(user="a"), Login(user="a", note="n")], r"\[1\]\.note, str 'n'"),
        (Data, DerivedData(1, more=2), "DerivedData.*would come back as .*Data"),
        (list[Data], [DerivedData(1)], r"\[0\], .*DerivedData.*would come back as"),
        (Typed, {"n": 1, "price": Decimal(1), "extra": 5}, r"\['extra'\], int 5, would not come back: the annotation"),
        (Data, {"n": 1, "extra": 5}, r"\['extra'\], int 5, would not come back: .*Data has no such field"),
        (Loose, Loose((1, 2)), r"part, tuple \(1, 2\), would come back as list"),
        (Loose, Loose({1}), r"part, set \{1\}, would come back as list"),
        (Loose, Loose(b"x"), "part, bytes b'x', would come back as str"),
        (Loose, Loose({"at": date(2026, 1, 2)}), r"part\['at'\], datetime.date .*would come back as str"),
        (list[Any], [{1: "a"}], "dict key 1 is not a str"),
        (dict[str, list[Any]], {"a": [ID]}, r"\['a'\]\[0\], uuid.UUID"),
        (list[int], (1, 2), "the value, tuple"),
        (Any, (1, 2), "tuple is not plain JSON"), (Any, {"a": (1, 2)}, "tuple is not plain JSON"),
        (list, (1, 2), "tuple is not list"), (dict, [1], "list is not dict"),
    ],
    ids=shown_id,
)  # fmt: skip
def test_a_value_that_would_lose_something_is_refused_and_the_part_is_named(annotation: Any, value: Any, said: str) -> None:
    with pytest.raises(ItemNotStorable, match=said):
        Codec[Any](annotation).encode_item(value)


class Aliased(pydantic.BaseModel):
    user_name: str = pydantic.Field(alias="userName")
    size: int = pydantic.Field(default=1, validation_alias="in", serialization_alias="out")


class Computed(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    n: int

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def double(self) -> int:
        return 2 * self.n


class Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True)
    when: datetime
    kinds: set[int] = set()


@attrs.define(eq=False)
class NoEquality:
    n: int


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (Aliased, Aliased(userName="a", **{"in": 5})), (Computed, Computed(n=2)), (Strict, Strict(when=WHEN, kinds={1})),
        (Login, Login(user="a")), (tuple, (1, "a")), (Loose, Loose([1, {"a": None}])),
    ],
    ids=shown_id,
)  # fmt: skip
def test_a_model_comes_back_equal(annotation: Any, value: Any) -> None:
    codec: Codec[Any] = Codec(annotation)
    assert codec.decode(codec.encode_item(value)) == value


def test_a_json_line_may_use_the_aliases_of_a_model() -> None:
    assert Codec[Any](Aliased).from_json('{"userName": "a", "in": 2}') == Aliased(userName="a", **{"in": 2})


def test_the_json_form_of_the_annotation_is_accepted() -> None:
    for annotation, form, expected in (
        (Data, {"n": 1}, Data(1)), (tuple[int, int], [1, 2], (1, 2)), (date, "2026-01-02", date(2026, 1, 2)), (set[int], [1], {1}),
        (float, 1, 1.0),
    ):  # fmt: skip
        codec: Codec[Any] = Codec(annotation)
        assert codec.decode(codec.encode_item(form)) == expected


def test_a_class_without_equality_is_compared_by_its_fields() -> None:
    codec: Codec[Any] = Codec(NoEquality)
    assert codec.decode(codec.encode_item(NoEquality(5))).n == 5


async def test_a_result_that_cannot_be_stored_is_kept_as_text_in_the_failure(db: str) -> None:
    report = await run_batch([1], _paid, db=db, max_attempts=1, progress=False)
    assert report.failed == 1
    (text,) = rows_of(db, "SELECT traceback FROM failures")[0]
    assert "The result was: {'invoice': 'R-17', 'raw': <object object at" in text
    with pytest.raises(ResultNotStorable) as caught:
        Codec[Any]().encode_result(["x" * 10**6, object()])
    assert len(caught.value.__notes__[0]) < 4100


async def _paid(item: int) -> Any:
    return {"invoice": "R-17", "raw": object()}


# --- keys -----------------------------------------------------------------------------------------------------------


@given(plain)
def test_the_key_of_an_item_depends_on_its_content_alone(value: Any) -> None:
    codec: Codec[Any] = Codec()
    try:
        text = codec.encode_item(value)
    except ItemNotStorable:
        return
    key = default_key(value, text)
    assert 0 < len(key) <= 200 or type(value) is int
    assert "\0" not in key
    if isinstance(value, dict):
        reordered = dict(reversed(value.items()))
        assert default_key(reordered, codec.encode_item(reordered)) == key


def test_a_number_and_its_text_are_two_items() -> None:
    items: list[Any] = [7, "7", '"7"', '"\\"7\\""', -7, "-7", "07", 7.0]
    keys = [default_key(item, msgspec.json.encode(item).decode()) for item in items]
    assert keys[:2] == ["7", '"7"']
    assert len(set(keys)) == len(items), keys
    assert default_key("7", '"7"', only_texts=True) == "7", "as in every file of a handler that takes str"


async def test_a_run_of_a_number_and_its_text_has_two_items(db: str) -> None:
    report = await run_batch([7, "7", 7, "7"], _anything, db=db)
    assert (report.total, report.duplicates) == (2, 2)
    assert rows_of(db, "SELECT id, payload FROM items ORDER BY seq") == [("7", "7"), ('"7"', '"7"')]


def test_short_texts_and_numbers_are_their_own_keys() -> None:
    assert (default_key("a b", '"a b"'), default_key(5, "5")) == ("a b", "5")
    assert (default_key("007 b", '"007 b"'), default_key("-", '"-"')) == ("007 b", "-")
    assert len(default_key("x" * 201, f'"{"x" * 201}"')) == 32
    assert len(default_key("a\0b", '"a\\u0000b"')) == 32


@pytest.mark.parametrize(("key", "expected"), [("k", "k"), (5, "5"), (-1, "-1")])
def test_a_given_key_is_a_text_or_a_number(key: Any, expected: str) -> None:
    assert given_key(key, "item") == expected


@pytest.mark.parametrize(
    ("key", "said"),
    [
        (True, "is bool; give a str, an int, or a tuple of them"), (1.5, "is float"), (None, "is NoneType"), ("", "has 0 characters"),
        ("x" * 513, "has 513 characters"), ("<object at 0x7f>", "memory address"), ("\ud800", "is not valid Unicode"), ("a\0", "NUL"),
    ],
    ids=str,
)  # fmt: skip
def test_a_key_that_identifies_nothing_is_refused(key: Any, said: str) -> None:
    with pytest.raises(InvalidKey, match=said):
        given_key(key, "item")


# --- signatures -----------------------------------------------------------------------------------------------------

T = TypeVar("T")


class Callable_:
    def __call__(self, item: int) -> str:
        return str(item)

    def method(self, item: Path) -> None: ...


async def generic(item: T) -> T:
    return item


def missing(item: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821 - that is the case


def two(a: int, b: int) -> None: ...


@pytest.mark.parametrize(
    ("handler", "item", "result"),
    [
        (Callable_(), int, str), (Callable_().method, Path, type(None)), (len, Any, Any), (lambda item: item, Any, Any),
        (partial(two, 1), int, type(None)), (print, Any, Any), (int, Any, Any),
    ],
    ids=shown_id,
)  # fmt: skip
def test_the_annotations_of_every_kind_of_callable_are_found(handler: Any, item: Any, result: Any) -> None:
    assert signature_of(handler)[0] == item
    codecs_of(handler)


def test_a_generic_handler_takes_anything() -> None:
    items, results = codecs_of(generic)
    assert items.decode(items.encode_item({"a": 1})) == {"a": 1}
    assert results.decode_result("1") == 1


def test_a_handler_that_needs_more_than_an_item_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"functools\.partial"):
        signature_of(two)


def test_an_annotation_that_cannot_be_resolved_is_named() -> None:
    with pytest.raises(ConfigurationError, match="import that name at run time"):
        signature_of(missing)


def test_a_return_annotation_without_a_json_form_is_no_obstacle() -> None:
    async def handler(item: int) -> int | list[int] | set[int]:
        return item

    assert codecs_of(handler)[1].decode_result("1") == 1


def test_a_set_has_the_same_payload_and_key_in_every_process() -> None:
    code = (
        "from asyncrunner.serialization.codec import Codec\nfrom asyncrunner.serialization.keys import default_key\n"
        "value = {'a', 'b', 'c', 'd', 'e'}\n"
        "text = Codec(set[str]).encode_item(value)\n"
        "print(text, default_key(value, text))"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in range(4)
    }
    assert len(said) == 1


def test_object_stands_for_any_plain_value() -> None:
    for annotation, value in ((list[object], [1, "a"]), (dict[str, object], {"a": [1]})):
        codec: Codec[Any] = Codec(annotation)
        assert codec.decode(codec.encode_item(value)) == value


class Named_(str, Enum):  # noqa: UP042 - not a StrEnum: that one's str() is its value anyway
    RED = "red"


def test_a_key_is_the_value_of_an_enum_and_a_long_number_is_no_key() -> None:
    assert given_key(Named_.RED, "item") == "red"
    with pytest.raises(InvalidKey):
        given_key(10**5000, "item")
    assert len(default_key(10**300, str(10**300))) == 32


async def test_the_same_content_in_another_order_is_the_same_item(db: str) -> None:
    async def handler(item: dict[str, int]) -> None: ...

    contents: list[dict[str, Any]] = [{"n": 1, "b": [1, {"x": 1, "y": 2}]}, {"b": [1, {"y": 2, "x": 1}], "n": 1}]
    for item in ({"a": 1, "b": 2}, {"b": 2, "a": 1}):
        report = await run_batch([item], handler, db=db)
        assert report.total == 1
    for content in contents:
        report = await run_batch([content], _anything, db=db, key="n")
        assert report.total == 1


async def _anything(item: Any) -> None: ...
