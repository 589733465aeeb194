"""Bulk work without jq: `--ids` in pipes, `list --contains`, `cancel --older-than`, and `export` of chosen fields."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import os
import pty
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from asyncrunner import Control, run_batch
from asyncrunner.cli.render.inspect import page_lines
from asyncrunner.cli.session import with_progress
from tests.support.files import make_store
from tests.support.state import execute, rows_of, snapshot
from tests.unit.cli.conftest import Call

REFUSED = ["refused-1", "refused-2", "refused-3"]
WRONG = ["wrong-1", "wrong-2"]


def fingerprint(shop: str) -> str:
    ((found,),) = rows_of(shop, "SELECT DISTINCT fingerprint FROM items WHERE id LIKE 'wrong-%'")
    return str(found)


# --- ids ------------------------------------------------------------------------------------------------------------


def test_ids_are_one_a_line_and_nothing_else(shop: str, call: Call) -> None:
    everything = call("list", "--ids")
    assert (everything.code, everything.err, len(everything.out.splitlines())) == (0, "", 13)
    assert call("list", "--ids", "--status", "failed", "--newest").out.split() == [
        "wrong-2",
        *REFUSED[:1:-1],
        "refused-2",
        "wrong-1",
        "refused-1",
    ]
    assert call("list", "--ids", "--error", "negative").out.split() == WRONG
    assert call("list", "--ids", "--limit", "2").out == "fine-1\nrefused-1\n"
    assert call("list", "--ids", "--contains", "-", "--limit", "3").out.split() == ["held-1", "open-2", "open-1"]
    assert call("list", "--ids", "--contains", "fine").out.split() == ["fine-4", "fine-3", "fine-2", "fine-1"]
    assert call("failures", "--ids").out.split() == ["refused-1", "wrong-1", "refused-2", "refused-3", "wrong-2"]
    assert call("failures", "--ids", "--error", fingerprint(shop)).out.split() == WRONG
    assert call("stuck", "--ids") == (0, "held-1\n", "")
    assert call("workers", "--ids") == (0, "", "")


def test_ids_of_more_items_than_a_page_are_all_ids(shop: str, call: Call) -> None:
    execute(shop, "UPDATE items SET status = 'processing', started_at = '2026-01-01 00:00:00.000', worker_id = 'gone'")
    execute(
        shop,
        "INSERT INTO items (batch_id, id, status, payload) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n "
        "WHERE i < 150) SELECT 1, 'more-' || i, 'processing', '1' FROM n",
    )
    execute(shop, "UPDATE items SET started_at = '2026-01-01 00:00:00.000', worker_id = 'gone'")
    for command in ("list", "stuck"):
        assert len(call(command, "--ids").out.splitlines()) == 163, command


def test_ids_are_what_the_commands_that_change_items_read(shop: str, call: Call) -> None:
    failed = call("list", "--status", "failed", "--ids").out
    assert call("retry", "-", given=failed).out == "shop: 5 items pending again\n"
    assert call("cancel", "-", given=failed).out == "shop: 5 items cancelled\n"
    assert call("rerun", "-", given=call("list", "--status", "completed", "--ids").out).out == "shop: 4 items run again\n"
    exported = call("export", "--id", "-", "--fields", "id", given=failed)
    assert [json.loads(line) for line in exported.out.splitlines()] == [{"id": key} for key in failed.split()]


def test_ids_that_cannot_be_lines_are_counted_and_the_command_fails(shop: str, call: Call) -> None:
    execute(shop, "UPDATE items SET id = ? WHERE id = 'wrong-1'", "two\nlines")
    execute(shop, "UPDATE items SET id = ' ' WHERE id = 'wrong-2'")
    said = call("list", "--status", "failed", "--ids")
    assert (said.code, said.out.split()) == (1, REFUSED)
    assert said.err == "2 ids with a line break or only spaces omitted; `asyncrunner export --fields id` has all ids\n"


def test_ids_are_raw_in_a_pipe_and_escaped_on_a_terminal(shop: str, call: Call, tmp_path: Path) -> None:
    execute(shop, "UPDATE items SET id = '\x1b[31mred' WHERE id = 'held-1'")
    assert call("stuck", "--ids").out == "\x1b[31mred\n"
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-m", "asyncrunner", "stuck", "--ids", "--db", shop], stdout=theirs, timeout=60, check=True
    )
    assert done.returncode == 0
    assert os.read(ours, 100) == b"\\x1b[31mred\r\n"
    os.close(ours)
    os.close(theirs)


@pytest.mark.parametrize("command", ["list", "failures", "stuck"])
def test_ids_of_several_batches_need_a_batch(shop: str, call: Call, command: str) -> None:
    make_store(shop, "other")
    said = call(command, "--ids")
    assert (said.code, said.out) == (2, "")
    assert "batch" in said.err
    assert call(command, "--ids", "--batch", "other").code == 0


@pytest.mark.parametrize("arguments", [["list"], ["failures"], ["stuck"], ["workers"]])
def test_ids_and_json_exclude_each_other(shop: str, call: Call, arguments: list[str]) -> None:
    said = call(*arguments, "--ids", "--json")
    assert (said.code, said.out, said.err) == (2, "", "Error: give either --ids or --json\n")
    assert call("failures", "--error", "x").err == "Error: --error needs --ids; `list --error` lists the items\n"


# --- list -----------------------------------------------------------------------------------------------------------


def test_a_list_has_the_start_of_the_payload_and_the_newest_first(shop: str, call: Call) -> None:
    lines = call("list", "--newest", "--limit", "3", "--status", "completed").out.splitlines()
    assert [line.split()[0] for line in lines] == ["ID", "fine-4", "fine-3", "fine-2"]
    assert lines[0].endswith("PAYLOAD")
    assert lines[1].endswith('"fine-4"')
    assert call("list", "--status", "failed", "--limit", "1").out.splitlines()[0].split()[-2:] == ["PAYLOAD", "ERROR"]
    more = call("list", "--newest", "--limit", "3", "--status", "completed", "--after", "fine-2")
    assert [line.split()[0] for line in more.out.splitlines()] == ["ID", "fine-1"]


@pytest.mark.parametrize(
    ("width", "names"), [(80, "ID STATUS ATTEMPTS PAYLOAD ERROR"), (120, "ID STATUS ATTEMPTS SINCE PAYLOAD ERROR")]
)
async def test_a_list_has_a_piece_of_the_payload_beside_the_error_on_a_narrow_terminal_too(
    db: str, width: int, names: str
) -> None:
    await asyncio.to_thread(make_store, db)
    async with Control(db) as control:
        page = await control.items(status="failed")
    lines = page_lines(page, width)
    assert lines[0].split() == names.split()
    assert '"refused-1"' in lines[1]
    assert max(map(len, lines)) <= width


def test_a_search_says_how_many_items_it_looked_at(shop: str, call: Call) -> None:
    said = call("list", "--contains", "BOOKED*fine-[")
    assert (said.code, said.out, said.err) == (0, "", "looked at all 13 items\n")
    said = call("list", "--contains", "booked*FINE-2")
    assert [line.split()[0] for line in said.out.splitlines()] == ["ID", "fine-2"]
    assert call("list", "--contains", "wrong", "--status", "failed").err == "looked at all 5 failed items\n"
    said = call("list", "--contains", "wrong", "--limit", "1")
    assert said.err == "looked at the newest 6 of 13 items; for older ones, add --after wrong-2\n"
    said = call("list", "--contains", "wrong", "--after", "wrong-2")
    assert said.err == "looked at 7 items older than wrong-2\n"
    said = call("list", "--contains", "nothing", "--error", "negative")
    assert said.err == "looked at the newest 2 items that the other options select\n"
    document = call("list", "--contains", "wrong", "--json").document
    assert (document["looked_at"], document["of"]) == (13, 13)


# --- cancel ---------------------------------------------------------------------------------------------------------


def test_old_pending_items_are_cancelled(shop: str, call: Call) -> None:
    execute(shop, "UPDATE items SET created_at = '2026-01-01 00:00:00.000' WHERE id IN ('open-2', 'held-1')")
    assert call("cancel", "--older-than", "7d") == (0, "shop: 1 item cancelled\n", "")
    assert rows_of(shop, "SELECT id FROM items WHERE status = 'pending'") == [("open-1",)]
    for arguments in (["open-1", "--older-than", "1h"], []):
        assert call("cancel", *arguments).code == 2
    assert "give a number and a unit" in call("cancel", "--older-than", "x").err or call("cancel", "--older-than", "x").code == 2


# --- export ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def nested(db: str, shop: str) -> str:
    items: list[dict[str, object]] = [
        {"id": "a", "user": {"name": "Ann", "tags": ["x", "y"]}, "cost": 1.10, "note": "=1+1"},
        {"id": "b", "user": {"name": None}, "deep": {"er": {"e": -5}}, "user.name": "dotted", "empty": {}},
        {"id": "c"},
    ]

    async def echo(item: dict[str, object]) -> object:
        return 7 if item["id"] == "c" else {"ok": True}

    asyncio.run(run_batch(items, echo, key="id", db=db, batch="nested"))
    return db


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_an_export_has_only_the_chosen_fields(nested: str, call: Call) -> None:
    fields = "id,payload.user.name,payload.user.tags.1,payload.deep,status"
    rows = [json.loads(line) for line in call("export", "--batch", "nested", "--fields", fields).out.splitlines()]
    assert rows[0] == {
        "id": "a", "payload.user.name": "Ann", "payload.user.tags.1": "y", "payload.deep": None, "status": "completed",
    }  # fmt: skip
    assert rows[1]["payload.deep"] == {"er": {"e": -5}}
    text = call("export", "--batch", "nested", "--fields", fields, "--format", "csv").out
    assert text.splitlines() == [
        fields, "a,Ann,y,,completed", 'b,,,"{""er"":{""e"":-5}}",completed', "c,,,,completed",
    ]  # fmt: skip


def test_a_flattened_export_has_a_column_for_each_value(nested: str, call: Call) -> None:
    lines = call("export", "--batch", "nested", "--flatten", "--fields", "id,payload,result").out.splitlines()
    assert json.loads(lines[0]) == {
        "id": "a", "payload.id": "a", "payload.user.name": "Ann", "payload.user.tags": ["x", "y"], "payload.cost": 1.1,
        "payload.note": "=1+1", "result.ok": True,
    }  # fmt: skip
    assert json.loads(lines[1])["payload.user.name#2"] == "dotted", "two values with one dotted name are both kept"
    assert json.loads(lines[2]) == {"id": "c", "payload.id": "c", "result": 7}
    rows = table(call("export", "--batch", "nested", "--flatten", "--format", "csv").out)
    assert list(rows[0])[:10] == [
        "batch", "id", "status", "attempts", "crashes", "priority", "created_at", "due_at", "started_at", "completed_at",
    ]  # fmt: skip
    assert [name for name in rows[0] if name.startswith(("payload", "result"))] == [
        "payload.cost", "payload.id", "payload.note", "payload.user.name", "payload.user.tags", "payload.deep.er.e",
        "payload.empty", "payload.user.name#2", "result.ok", "result",
    ]  # fmt: skip
    assert (rows[0]["payload.user.tags"], rows[0]["payload.cost"], rows[0]["payload.note"]) == ('["x","y"]', "1.1", "'=1+1")
    assert (rows[1]["payload.deep.er.e"], rows[1]["payload.user.name"], rows[1]["payload.empty"]) == ("-5", "", "{}")
    assert (rows[2]["result"], rows[2]["result.ok"], rows[2]["payload.cost"]) == ("7", "", "")


def test_a_flattened_csv_file_appears_complete(nested: str, call: Call, tmp_path: Path) -> None:
    assert call("export", "flat.csv", "--batch", "nested", "--flatten").err == "3 items exported to flat.csv\n"
    assert len(table(Path("flat.csv").read_text())) == 3


def test_an_export_has_the_items_with_an_error_or_an_id(shop: str, call: Call) -> None:
    assert call("export", "--error", "ConnectionError", "--fields", "id", "--format", "csv").out.split() == ["id", *REFUSED]
    said = call("export", "--id", "wrong-1", "--id", "fine-1", "--fields", "id,status")
    assert [json.loads(line)["status"] for line in said.out.splitlines()] == ["failed", "completed"]
    assert call("export", "--error", "nothing").code == 2
    assert call("export", "--id", "wrong-1", "--status", "failed").code == 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("id,staus", "there is no field 'staus'; did you mean 'status'?"),
        ("status.x", "the field 'status' has no parts, as in 'status.x'; only JSON values have"),
        ("payload..x", "the field 'payload..x' has an empty part"),
        ("", "there is no field ''"),
    ],
)
def test_a_field_that_does_not_exist_is_refused(shop: str, call: Call, fields: str, message: str) -> None:
    said = call("export", "none.csv", "--fields", fields)
    assert (said.code, message in said.err, Path("none.csv").exists()) == (2, True, False), said.err


def test_a_csv_with_too_many_columns_is_refused(shop: str, call: Call) -> None:
    execute(shop, "UPDATE items SET payload = ? WHERE id = 'fine-1'", json.dumps({f"k{at}": at for at in range(2001)}))
    said = call("export", "wide.csv", "--flatten")
    assert (said.code, Path("wide.csv").exists()) == (2, False)
    assert "more than 2,000 columns" in said.err
    assert call("export", "--flatten", "--fields", "payload").code == 0, "JSON lines have no header"


def test_parquet_has_chosen_columns_but_no_parts(shop: str, call: Call) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    assert call("export", "some.parquet", "--fields", "id,result").code == 0
    assert parquet.read_table("some.parquet").to_pylist()[0] == {"id": "fine-1", "result": '{"booked":"fine-1"}'}
    assert "parquet has a column for each field" in call("export", "parts.parquet", "--flatten").err


def test_text_that_is_no_json_is_exported_as_it_is(shop: str, call: Call) -> None:
    execute(shop, "UPDATE items SET payload = '{no json' WHERE id = 'fine-1'")
    said = call("export", "--id", "fine-1", "--flatten", "--fields", "payload,payload.x")
    assert json.loads(said.out) == {"payload": "{no json", "payload.x": None}


# --- progress -------------------------------------------------------------------------------------------------------


def test_a_change_of_many_items_shows_its_progress_on_a_terminal(shop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asyncrunner.cli.session._PROGRESS_INTERVAL_SECONDS", 0.0)
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    with_progress(shop, lambda control, on_progress: control.retry(failed=True, on_progress=on_progress))
    assert terminal.getvalue() == "\r5 of 5 items ...\r                \r"
    terminal.truncate(0)
    monkeypatch.setattr(terminal, "isatty", lambda: False)
    with_progress(shop, lambda control, on_progress: control.cancel(pending=True, on_progress=on_progress))
    assert terminal.getvalue() == ""


# --- show -----------------------------------------------------------------------------------------------------------


def test_show_names_the_size_of_a_large_value_and_the_command_for_the_whole(shop: str, call: Call) -> None:
    text = json.dumps("x" * 100_000)
    execute(shop, "UPDATE items SET payload = ? WHERE id = 'fine-1'", text)
    said = call("show", "fine-1")
    assert "... (100,002 bytes, of which the start was read)\n" in said.out
    (line,) = [line for line in said.out.splitlines() if "whole value" in line]
    arguments = shlex.split(line.partition("asyncrunner ")[2])
    assert json.loads(call(*arguments).out)["payload"] == "x" * 100_000
    document = call("show", "fine-1", "--json").document
    assert (document["payload"], document["cut"]) == (text[:65_536], {"payload": 100_002})


def test_the_ages_of_causes_are_ages(shop: str, call: Call) -> None:
    (line, *_) = call("failures").out.splitlines()[1:]
    assert line.count(" ago ") == 2


PEAK = """
import re, sys
from asyncrunner.cli import main
sys.argv = ["asyncrunner", "show", sys.argv[1]]
try:
    main()
finally:
    print("peak", re.search("VmHWM: *(.*) kB", open("/proc/self/status").read())[1], file=sys.stderr)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is of Linux")
def test_show_needs_no_memory_for_the_rest_of_a_large_value(shop: str) -> None:
    execute(shop, "UPDATE items SET payload = ? WHERE id = 'fine-1'", '"' + "0" * 64_000_000 + '"')
    peaks: list[int] = []
    for key in ("fine-2", "fine-1"):
        done = subprocess.run(
            [sys.executable, "-c", PEAK, key],
            env={**os.environ, "ASYNCRUNNER_DB": shop}, capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        peaks.append(int(done.stderr.split()[-1]))
    assert "64,000,002 bytes" in done.stdout
    assert peaks[1] - peaks[0] < 10_000, "kB"


@pytest.mark.parametrize(
    ("command", "document"),
    [
        (["retry", "-"], {"batch": None, "changed": 0, "unchanged": 0}),
        (["rerun", "-"], {"batch": None, "changed": 0, "unchanged": 0, "dry_run": False}),
        (["cancel", "-"], {"batch": None, "changed": 0, "unchanged": 0}),
        (["export", "--id", "-"], {"items": 0}),
        (["export", "new.csv", "--id", "-"], {"file": None, "items": 0}),
    ],
)
def test_a_list_without_ids_changes_nothing_and_is_no_error(shop: str, call: Call, command: list[str], document: object) -> None:
    before = snapshot(shop)
    for given in ("", "\n \n"):
        answer = call(*command, given=given)
        effect = "exported" if command[0] == "export" else "changed"
        assert answer == (0, "", f"no ids were given on standard input: nothing was {effect}\n")
    answer = call(*command, "--json")
    assert (answer.code, json.loads(answer.out)) == (0, document)
    assert snapshot(shop) == before
    assert not Path("new.csv").exists()
