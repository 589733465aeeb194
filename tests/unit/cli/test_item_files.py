"""The input of `run`: every format, bad lines, pipes."""

from __future__ import annotations

import asyncio
import gzip
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import attrs
import msgspec
import pydantic
import pytest

from asyncrunner import ConfigurationError, InvalidKey, ItemNotStorable, run_batch
from asyncrunner.cli.item_files import ItemFile, read_items
from asyncrunner.cli.item_formats import records
from asyncrunner.serialization.codec import Codec


async def items_of(file: ItemFile) -> list[Any]:
    return [item async for item in file]


async def read(path: Path, data: bytes, annotation: Any = Any, item_format: str | None = None, **options: Any) -> list[Any]:
    path.write_bytes(data)
    return await items_of(read_items(str(path), item_format, Codec(annotation, owner="work"), **options))


@dataclass
class Row:
    name: str
    n: int | None = None


# --- tables ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('size,qty\n5" pipe,2\nA,1\nB,2\n6" pipe,3\n', [('5" pipe', "2"), ("A", "1"), ("B", "2"), ('6" pipe', "3")]),
        ('size,qty\n"a ""b"" c",1\n"two\nlines",2\n', [('a "b" c', "1"), ("two\nlines", "2")]),
        ('size,qty\r"two\rlines",1\rb,2', [("two\rlines", "1"), ("b", "2")]),
        ("size,qty\r\n\r\na,1\r\n   \r\nb,2\r\n", [("a", "1"), ("b", "2")]),
        ('\ufeff"size",qty\na,1\n', [("a", "1")]),
        ("size,qty\n,\n", [("", "")]),
    ],
    ids=["quotation marks in a field", "quoted fields", "CR line ends", "CRLF and empty lines", "BOM", "empty cells"],
)
@pytest.mark.parametrize("block", [1, 2, 3, 1 << 16])
def test_a_table_is_one_stream_of_rows(text: str, expected: list[tuple[str, str]], block: int) -> None:
    data = text.encode()
    blocks = [data[at : at + block] for at in range(0, len(data), block)]
    found = [record.row for record in records(blocks, "a.csv", "csv")]
    assert found == [{"size": size, "qty": qty} for size, qty in expected]


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
@pytest.mark.parametrize("block", [1, 2, 3, 1 << 16])
def test_a_line_has_the_same_number_however_the_lines_end(end: str, block: int) -> None:
    data = f"v{end}a{end}{end}b{end}".encode()
    blocks = [data[at : at + block] for at in range(0, len(data), block)]
    assert [(record.first, record.last) for record in records(blocks, "a.csv", "csv")] == [(2, 2), (4, 4)]


async def test_a_table_of_tabs(tmp_path: Path) -> None:
    assert await read(tmp_path / "a.tsv", b'name\tn\n5" pipe, x\t2\n"a\tb"\t3\n', Row) == [Row('5" pipe, x', 2), Row("a\tb", 3)]


class Named(TypedDict):
    name: str
    n: int | None


@attrs.define
class Attributes:
    name: str
    n: int | None


class Struct(msgspec.Struct, rename={"number": "n"}):
    name: str
    number: int | None


class Model(pydantic.BaseModel):
    name: str
    number: int | None = pydantic.Field(alias="n")


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        (Row, Row("")), (Row | None, Row("")), (Named, {"name": "", "n": None}), (Attributes, Attributes("", None)), (Struct, Struct("", None)),
        (Model, Model(name="", n=None)), (dict[str, str | None], {"name": None, "n": None}), (dict[str, str], {"name": "", "n": ""}),
        (Any, {"name": "", "n": ""}),
    ],
    ids=str,
)  # fmt: skip
async def test_an_empty_cell_of_a_field_that_may_be_none_is_none(annotation: Any, expected: Any, tmp_path: Path) -> None:
    assert await read(tmp_path / "a.csv", b"name,n\n,\n", annotation) == [expected]


async def test_an_empty_cell_of_a_field_that_may_not_be_none_is_named(tmp_path: Path) -> None:
    @dataclass
    class Strict:
        name: str
        n: int

    with pytest.raises(ItemNotStorable, match=r"a\.csv, line 3: the item does not fit work, which takes .*Strict"):
        await read(tmp_path / "a.csv", b"name,n\na,1\nb,\n", Strict)


async def test_a_cell_may_be_long(tmp_path: Path) -> None:
    assert await read(tmp_path / "a.csv", b"name\n" + b"x" * 1_000_000 + b"\n") == [{"name": "x" * 1_000_000}]


# --- documents, compressed files ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "annotation", "expected"),
    [
        ('[{"name": "a", "n": 1},\n {"name": "b"}]', Row, [Row("a", 1), Row("b")]),
        ('\ufeff {"name": "a", "n": 1}\n', Row, [Row("a", 1)]),
        ("[]", Any, []),
        ('"text"', Any, ["text"]),
        ('[1, [2, "[3]"], {"a": [4]}]', Any, [1, [2, "[3]"], {"a": [4]}]),
    ],
)
async def test_a_json_file_is_an_array_of_items_or_one_document(
    text: str, annotation: Any, expected: list[Any], tmp_path: Path
) -> None:
    assert await read(tmp_path / "a.json", text.encode(), annotation) == expected


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[1,\n 2,,3]", r"a\.json, line 2: not JSON"),
        ("[1,\n 2\n", r"a\.json, line 2: not JSON .*truncated"),
        ('{"a": 1}\n{"a": 2}\n', r"a\.json, line 2: not JSON .*add --format jsonl"),
        (" \n", "is empty, not a JSON document"),
        ('[{"name": "a"},\n\n {"name":\n 5}]', r"a\.json, lines 3 to 4: the item does not fit work"),
    ],
)
async def test_a_broken_document_is_named_with_its_line(text: str, problem: str, tmp_path: Path) -> None:
    with pytest.raises(ItemNotStorable, match=problem):
        await read(tmp_path / "a.json", text.encode(), Row)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.txt.gz", "x\ny\n", ["x", "y"]),
        ("a.jsonl.gz", '"x"\n"y"\n', ["x", "y"]),
        ("a.json.gz", '["x", "y"]', ["x", "y"]),
        ("a.csv.gz", "v\nx\n", [{"v": "x"}]),
        ("A.TSV.GZ", "v\nx\n", [{"v": "x"}]),
    ],
)
async def test_every_format_may_be_compressed(name: str, text: str, expected: list[Any], tmp_path: Path) -> None:
    half = len(text) // 2
    members = gzip.compress(text[:half].encode()) + gzip.compress(text[half:].encode()) + b"\0" * 8
    assert await read(tmp_path / name, members) == expected
    assert await read(tmp_path / name, text.encode()) == expected, "a program on the way has decompressed it"


async def test_a_large_compressed_file_is_read_whole(tmp_path: Path) -> None:
    lines = [f"line {number} {'x' * 1000}" for number in range(10_000)]
    assert await read(tmp_path / "a.txt.gz", gzip.compress("\n".join(lines).encode())) == lines


@pytest.mark.parametrize(("keep", "problem"), [(-10, "ends in the middle of its gzip data"), (-4, "ends in the middle")])
@pytest.mark.parametrize("on_bad_input", ["stop", "skip", "fail"])
async def test_a_compressed_file_that_was_cut_off_is_an_error(keep: int, problem: str, on_bad_input: str, tmp_path: Path) -> None:
    with pytest.raises(ItemNotStorable, match=problem):
        await read(tmp_path / "a.txt.gz", gzip.compress(b"x\n" * 1000)[:keep], on_bad_input=on_bad_input)


async def test_a_damaged_compressed_file_is_an_error(tmp_path: Path) -> None:
    data = bytearray(gzip.compress(os.urandom(1000)))
    data[500] ^= 255
    with pytest.raises(ItemNotStorable, match="is damaged"):
        await read(tmp_path / "a.txt.gz", bytes(data), on_bad_input="skip")


# --- the kind of the input ------------------------------------------------------------------------------------------


class Pair(NamedTuple):
    a: int
    b: int


class Text(pydantic.RootModel[str]):
    pass


class Filled(pydantic.BaseModel):
    """A model whose own validator expects a dict with certain names, as many do, and so raises KeyError or TypeError."""

    name: str

    @pydantic.model_validator(mode="before")
    @classmethod
    def fill(cls, data: Any) -> Any:
        data["name"] = data["first"]
        return data


@pytest.mark.parametrize(
    "annotation", [dict, dict[str, Any], dict[str, int], Row, Row | None, Named, Attributes, Struct, Model, Filled]
)
@pytest.mark.parametrize("on_bad_input", ["stop", "skip"])
@pytest.mark.parametrize(("text", "looks"), [('{"name": "a", "n": 1}\n', "like JSON"), ("some text\n", "like plain text")])
async def test_lines_of_text_are_refused_for_items_with_fields(
    annotation: Any, on_bad_input: str, text: str, looks: str, tmp_path: Path
) -> None:
    with pytest.raises(ItemNotStorable, match=rf"a\.txt, line 1: the line looks {looks}, and work takes .* add --format jsonl"):
        await read(tmp_path / "a.txt", text.encode() * 2, annotation, on_bad_input=on_bad_input)


@pytest.mark.parametrize(
    ("annotation", "text", "expected"),
    [(Any, "{}", "{}"), (str, "{}", "{}"), (Row | str, "a", "a"), (Text, "a", Text("a")), (list[int], "[1]", [1]), (Pair, "[1,2]", Pair(1, 2))],
    ids=str,
)  # fmt: skip
async def test_lines_of_text_that_can_be_items_are_accepted(annotation: Any, text: str, expected: Any, tmp_path: Path) -> None:
    assert await read(tmp_path / "a.txt", text.encode(), annotation) == [expected]


@pytest.mark.parametrize("data", [b"a\rb\r", b"a\r\nb", b"a\n\n \nb\n", b"\xef\xbb\xbfa\nb"])
async def test_lines_may_end_in_any_way(data: bytes, tmp_path: Path) -> None:
    assert await read(tmp_path / "a.txt", data) == ["a", "b"]


async def test_the_items_of_a_pipe_are_read_as_they_come(tmp_path: Path) -> None:
    pipe = tmp_path / "items.jsonl"
    os.mkfifo(pipe)
    opened = threading.Thread(target=lambda: writers.append(os.open(pipe, os.O_WRONLY)))
    writers: list[int] = []
    opened.start()
    file = read_items(str(pipe), None, Codec())
    opened.join()
    os.write(writers[0], b"1\n2")
    async with aclosing(file.__aiter__()) as items:  # type: ignore[type-var]
        assert await asyncio.wait_for(anext(items), 20) == 1
        os.write(writers[0], b"3\n")
        assert await asyncio.wait_for(anext(items), 20) == 23
        os.close(writers[0])
        with pytest.raises(StopAsyncIteration):
            await asyncio.wait_for(anext(items), 20)


@pytest.mark.parametrize("prefix", ["/dev/fd/", "/proc/self/fd/"])
async def test_a_descriptor_is_read_as_text_or_in_the_given_format(prefix: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("name,n\na,1\n")
    for item_format, expected in ((None, ["name,n", "a,1"]), ("csv", [{"name": "a", "n": "1"}])):
        with (tmp_path / "a").open() as file:
            assert await items_of(read_items(f"{prefix}{file.fileno()}", item_format, Codec())) == expected


@pytest.mark.parametrize(
    ("name", "problem"),
    [("no.txt", "does not exist"), ("folder", "is a folder"), ("plain", "the name has no suffix"), ("a.xml.gz", r"\.xml is not a known")],
)  # fmt: skip
def test_a_source_that_cannot_be_read_is_refused_before_the_run(name: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "plain").touch()
    (tmp_path / "a.xml.gz").touch()
    with pytest.raises(ConfigurationError, match=problem):
        read_items(str(tmp_path / name), None, Codec())


# --- bad lines ------------------------------------------------------------------------------------------------------

BAD: dict[str, tuple[bytes, str, list[Any]]] = {
    "a.jsonl": (b'{"name": "a"}\n{"name": \n{"nam": "b"}\n{"name": "c"}\n', "line 2: not JSON", [Row("a"), Row("c")]),
    "a.csv": (b'name,n\na,1\nb,x\nb,1,2\n"b"b,1\nc,3\n', "line 3: the item does not fit work", [Row("a", 1), Row("c", 3)]),
    "b.csv": (b"name,n\na,1\n\xe4,2\nc,3\n", "line 3: not UTF-8 text", [Row("a", 1), Row("c", 3)]),
    "c.csv": (b'name,n\na,1\n"b\nc",x\nd,4\n', "lines 3 to 4: the item does not fit", [Row("a", 1), Row("d", 4)]),
    "a.json": (b'[{"name": "a"},\n {"name": 5},\n 7, {"name": "c"}]', "line 2: the item does not fit", [Row("a"), Row("c")]),
}
SKIPPED = {"a.jsonl": 2, "a.csv": 3, "b.csv": 1, "c.csv": 2, "a.json": 2}


@pytest.mark.parametrize("name", BAD)
async def test_stop_gives_the_items_before_the_bad_line_and_names_it(name: str, tmp_path: Path) -> None:
    data, problem, expected = BAD[name]
    (tmp_path / name).write_bytes(data)
    items = []
    with pytest.raises(ItemNotStorable, match=rf"{name}, {problem}.*add --on-bad-input skip"):
        async for item in read_items(str(tmp_path / name), None, Codec(Row, owner="work")):
            items.append(item)
    assert items == expected[:1]


@pytest.mark.parametrize("name", BAD)
async def test_skip_gives_every_other_item_and_counts_the_lines(name: str, tmp_path: Path) -> None:
    data, problem, expected = BAD[name]
    (tmp_path / name).write_bytes(data)
    file = read_items(str(tmp_path / name), None, Codec(Row, owner="work"), on_bad_input="skip")
    assert await items_of(file) == expected
    assert file.skipped == SKIPPED[name]
    assert problem in file.skipped_lines()[1]


async def test_a_line_for_which_a_validator_raises_another_error_is_a_bad_line(tmp_path: Path) -> None:
    data, problem = b'{"first": "a"}\n{"last": "b"}\n', r"line 2: its conversion to an item raised KeyError\('first'\)"
    with pytest.raises(ItemNotStorable, match=rf"a\.jsonl, {problem}.*add --on-bad-input skip"):
        await read(tmp_path / "a.jsonl", data, Filled)
    with pytest.raises(ItemNotStorable, match=problem):
        await read(tmp_path / "a.jsonl", data, Filled, on_bad_input="fail")
    assert [item.name for item in await read(tmp_path / "a.jsonl", data, Filled, on_bad_input="skip")] == ["a"]


async def test_skip_names_five_lines_and_counts_the_rest(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{\n" * 8)
    file = read_items(str(tmp_path / "a.jsonl"), None, Codec(), on_bad_input="skip")
    assert await items_of(file) == []
    lines = file.skipped_lines()
    assert (lines[0], len(lines), lines[-1]) == ("8 bad lines of a.jsonl skipped:", 7, "  and 3 more")


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b'name,n\na,1\n"b,2\nc,3\n', "line 3: a quoted field is not closed"),
        (b"name,name\na,1\n", "line 1: the header name,name has an empty or repeated name"),
        (b"\xe4,n\na,1\n", "line 1: not UTF-8 text"),
    ],
)
@pytest.mark.parametrize("on_bad_input", ["stop", "skip", "fail"])
async def test_a_table_whose_rest_cannot_be_read_is_never_skipped(
    data: bytes, problem: str, on_bad_input: str, tmp_path: Path
) -> None:
    with pytest.raises(ItemNotStorable, match=rf"a\.csv, {problem}"):
        await read(tmp_path / "a.csv", data, on_bad_input=on_bad_input)


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("is_pipe", [False, True])
async def test_fail_names_all_bad_lines_before_the_first_item(name: str, is_pipe: bool, tmp_path: Path) -> None:
    data, problem, _ = BAD[name]
    with pytest.raises(ItemNotStorable) as caught:
        opened(name, data, tmp_path, is_pipe=is_pipe).check(lambda item: item)
    lines = str(caught.value).splitlines()
    assert "so no item of the input was accepted (--on-bad-input fail):" in lines[0]
    assert problem in lines[1]


@pytest.mark.parametrize("is_pipe", [False, True])
async def test_fail_reads_a_good_input_a_second_time(is_pipe: bool, tmp_path: Path) -> None:
    seen: list[Any] = []
    file = opened("a.csv", b"name,n\na,1\nb,2\n", tmp_path, is_pipe=is_pipe)
    file.check(seen.append)
    assert await items_of(file) == seen == [Row("a", 1), Row("b", 2)]


def opened(name: str, data: bytes, folder: Path, *, is_pipe: bool) -> ItemFile:
    path = folder / name
    if not is_pipe:
        path.write_bytes(data)
        return read_items(str(path), None, Codec(Row, owner="work"), on_bad_input="fail")
    os.mkfifo(path)
    threading.Thread(target=path.write_bytes, args=(data,)).start()
    return read_items(str(path), None, Codec(Row, owner="work"), on_bad_input="fail")


# --- in a run -------------------------------------------------------------------------------------------------------


async def test_a_key_that_is_missing_is_named_with_file_and_line_or_skipped(tmp_path: Path, db: str) -> None:
    async def work(item: dict[str, Any]) -> None:
        pass

    (tmp_path / "a.jsonl").write_text('{"id": 1}\n\n{"no": 2}\n{"id": 3}\n')
    source = str(tmp_path / "a.jsonl")
    with pytest.raises(InvalidKey, match=r"a\.jsonl, line 3: item .* has no field 'id'"):
        await run_batch(read_items(source, None, Codec(dict)), work, key="id", db=db)
    file = read_items(source, None, Codec(dict), on_bad_input="skip")
    report = await run_batch(file, work, key="id", db=db)
    assert (report.completed + report.skipped, file.skipped) == (2, 1)


async def test_the_thread_and_the_file_are_closed_when_a_run_is_left_early(
    tmp_path: Path, until: Callable[[Callable[[], object]], Any]
) -> None:
    (tmp_path / "a.txt").write_text("x\n" * 100_000)
    before = set(threading.enumerate())
    items: AsyncIterator[Any] = read_items(str(tmp_path / "a.txt"), None, Codec()).__aiter__()
    assert await anext(items) == "x"
    (thread,) = set(threading.enumerate()) - before
    await items.aclose()  # type: ignore[attr-defined]
    await until(lambda: not thread.is_alive())
    assert str(tmp_path / "a.txt") not in [str(each.readlink()) for each in Path("/proc/self/fd").iterdir() if each.is_symlink()]
