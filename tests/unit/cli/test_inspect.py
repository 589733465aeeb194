"""`list`, `show`, `failures`, `stuck` and `workers`: tables on stdout, notes on stderr, JSON."""

from __future__ import annotations

import json
import re

from asyncrunner.cli.render.tables import Column, table
from tests.support.files import BATCH
from tests.support.state import changing
from tests.unit.cli.conftest import Call


def test_list_is_a_table_whose_next_page_is_named_on_stderr(shop: str, call: Call) -> None:
    said = call("list", "--status", "failed", "--limit", "2")
    assert (said.code, said.err) == (0, "more items: add --after wrong-1\n")
    lines = said.out.splitlines()
    assert lines[0].split() == ["ID", "STATUS", "ATTEMPTS", "SINCE", "PAYLOAD", "ERROR"]
    assert [line.split()[0] for line in lines[1:]] == ["refused-1", "wrong-1"]
    rest = call("list", "--status", "failed", "--after", "wrong-1", "--json").document
    assert [item["id"] for item in rest["items"]] == ["refused-2", "refused-3", "wrong-2"]  # type: ignore[attr-defined]
    assert rest["after"] is None
    for age in ("30d", "1d12h"):
        assert call("list", "--status", "failed", "--older-than", age) == (0, "", "no matching items\n")


def test_failures_are_a_line_a_cause(shop: str, call: Call) -> None:
    said = call("failures")
    lines = said.out.splitlines()
    assert (said.code, len(lines)) == (0, 3)
    assert re.match(r" +3 +6 .* [0-9a-f]{16} +refused-1 +ConnectionError: cannot reach 10.0.0.1$", lines[1])
    (first, second) = call("failures", "--json").document["causes"]  # type: ignore[misc]
    assert (first["items"], second["items"]) == (3, 2)  # type: ignore[has-type]
    with changing(shop) as connection:
        connection.execute("DELETE FROM failures")
        connection.execute("UPDATE items SET status = 'completed'")
    assert call("failures").out == "no failures\n"


def test_failures_join_causes_of_one_place_and_count_what_they_omit(shop: str, call: Call) -> None:
    with changing(shop) as connection:
        for name, key in (("one", "refused-1"), ("two", "refused-2")):
            connection.execute("UPDATE failures SET fingerprint = ?, message = ? WHERE id = ?", (name, f"no table {name}", key))
            connection.execute(
                "UPDATE items SET fingerprint = ?, error = ? WHERE id = ?", (name, f"ConnectionError: no table {name}", key)
            )
    lines = call("failures", "--limit", "4").out.splitlines()
    assert [line.split()[0] for line in lines] == ["ITEMS", "2", "1", "1", "1"]
    lines = call("failures", "--limit", "2").out.splitlines()
    assert [line.split()[0] for line in lines] == ["ITEMS", "3", "2"]
    assert re.match(r" +3 +6 .* 3 causes +refused-[123] +ConnectionError: \*$", lines[1])
    document = call("failures", "--limit", "1", "--json").document
    assert (document["more_causes"], document["more_items"]) == (1, 2)
    (cause,) = document["causes"]  # type: ignore[misc]
    assert (cause["causes"], cause["fingerprint"], cause["items"]) == (3, None, 3)  # type: ignore[has-type]
    lines = call("failures", "--limit", "1").out.splitlines()
    assert lines[2:] == ["and 1 more cause, 2 items"]
    assert "3 items pending again" in call("retry", "--error", "ConnectionError: *").out


def test_show_has_the_tracebacks_and_the_times(shop: str, call: Call) -> None:
    said = call("show", "refused-2")
    assert said.out.startswith("refused-2 of shop: failed\n  2 attempts\n")
    assert said.out.count("Traceback (most recent call last):") == 2
    assert '  payload     "refused-2"' in said.out
    assert re.search(r"attempt 2 failed after [0-9.]+ m?s: ConnectionError: cannot reach 10.0.0.2", said.out)
    assert re.search(r"^attempt 1, started 20[0-9 :.-]+, failed after [0-9.]+ m?s:$", said.out, re.MULTILINE)
    assert call("show", "fine-1", "--json").document["result"] == {"booked": "fine-1"}
    assert '  result      {"booked": "fine-1"}' in call("show", "fine-1").out


def test_show_explains_what_suspicion_means(shop: str, call: Call) -> None:
    for suspect, words in (
        (1, "  a suspect: it ran when workers died; "),
        (2, "  isolated: it was the only suspect when a worker died; "),
    ):
        with changing(shop) as connection:
            connection.execute("UPDATE items SET crashes = 3, suspect = ? WHERE id = 'open-1'", (suspect,))
        assert words in call("show", "open-1").out
        document = call("show", "open-1", "--json").document
        assert (document["suspect"], document["isolated"]) == (True, suspect == 2)


def test_show_has_the_payload_with_which_a_running_item_runs_once_more(shop: str, call: Call) -> None:
    assert "runs again" not in call("show", "open-1").out
    with changing(shop) as connection:
        connection.execute("UPDATE items SET status = 'processing', rerun_payload = '[7]' WHERE id = 'open-1'")
    assert "\n  runs again  [7]\n" in call("show", "open-1").out
    assert call("show", "open-1", "--json").document["rerun_payload"] == [7]


def test_stuck_and_workers_for_a_person_and_as_json(shop: str, call: Call) -> None:
    assert "held-1" in call("stuck").out
    assert call("stuck", "--older-than", "4000d").out == "no item has been processing for longer than 4000d\n"
    assert call("stuck", "--json").document["stuck"][0]["worker_alive"] is False  # type: ignore[index]
    assert call("workers").out == "no workers: nothing is running here\n"
    with changing(shop) as connection:
        connection.execute("UPDATE workers SET ended_at = NULL, host = 'h\x1b[2J', slots = 4, slots_in_use = 3")
    said = call("workers")
    assert "3/4" in said.out
    assert "h\\x1b[2J" in said.out
    assert call("workers", "--json").document["workers"][0]["slots"] == 4  # type: ignore[index]
    assert call("workers", "--batch", BATCH).out == "no worker holds items of the batch\n"


def test_texts_from_a_file_reach_the_terminal_escaped(shop: str, call: Call) -> None:
    evil = "x\x1b[2J\u202e\x9b"
    with changing(shop) as connection:
        connection.execute("UPDATE batches SET name = ?, stopped = ?", (evil, evil))
        connection.execute(
            "UPDATE items SET id = ? || id, error = ?, worker_id = ?, payload = ?", (evil, evil, evil, json.dumps(evil))
        )
        connection.execute(
            "UPDATE failures SET id = ? || id, error_type = ?, message = ?, traceback = ?, fingerprint = ?", (evil,) * 5
        )
    commands_that_show = [
        ["list"], ["failures"], ["show", f"{evil}refused-1"], ["show", f"{evil}held-1"], ["stuck"], ["workers"], ["status"], ["check"],
        ["retry", f"{evil}wrong-1"], ["cancel", f"{evil}open-1"], ["purge", "--before", "0s"], ["show", evil],
    ]  # fmt: skip
    for arguments in commands_that_show:
        for form in ([], ["--json"]):
            said = call(*arguments, *form)
            assert said.out + said.err != ""
            assert not set("\x1b\u202e\x9b") & set(said.out + said.err), arguments


def test_a_table_omits_optional_columns_before_it_cuts_the_last_column() -> None:
    columns = [Column("id"), Column("much", spare=1), Column("more", spare=2), Column("error")]
    rows = [("a", "m" * 10, "n" * 10, "e" * 50)]
    assert table(columns, rows, None)[1].split() == ["a", "m" * 10, "n" * 10, "e" * 50]
    assert table(columns, rows, 50)[1].split() == ["a", "m" * 10, "e" * 31 + "..."]
    assert table(columns, rows, 40)[1].split() == ["a", "e" * 33 + "..."]
    assert table(columns, [], 40) == []
