"""A store in which every text is hostile, and what the pages would look like if one of them were more than a text."""

from __future__ import annotations

import json
from typing import Final

from asyncrunner import run_batch
from tests.support.files import lose_workers
from tests.support.state import changing

PLAIN: Final = "plain"
CORPUS: Final = {
    "a script": "<script>alert(1)</script>",
    "an attribute": '"><img src=x onerror=alert(1)>',
    "a single quote": "' onmouseover='alert(1)",
    "a template": "{{7*7}}{% raw %}${7*7}#{7*7}",
    "an address": "javascript:alert(1)//",
    "an entity": "&lt;script&gt;&#60;b&#62;&amp;quot;",
    "the end of a block": "</code></pre></title></textarea><!--<svg/onload=alert(1)>]]>",
    "a query": "a&b=c#d?e=f%0d%0a+g;h",
    "a path": "../../etc/passwd\\..\\x",
    "bidi": "\u202eabc\u202c\u2066\u200f\ufeff",
    "ANSI": "\x1b[31mred\x1b]0;title\x07\x9b1m",
    "line breaks": "a\r\nset-cookie: x=1\r\n\r\nb\nc\rd\u2028e\u2029f",
    "spaces": "  a\tb \u00a0",
    "very long": "long " * 30,
    "other scripts": "\u6f22\u5b57 \U0001f600 \u0e01\u0e33 e\u0301",
}
"""Texts with which a page must do nothing but show them."""

ITEMS: Final = ("completed", "failed", "failed too", "pending", "processing", "cancelled")
MARK: Final = "alert(1)"


def key_of(text: str, item: str) -> str:
    return f"{text}{item}"


async def make_hostile(db: str, text: str) -> None:
    """Create a store with *text* in every field that reaches a page."""
    error = type("Broken", (Exception,), {"__module__": "builtins"})
    error.__name__ = error.__qualname__ = text

    async def handle(item: dict[str, str]) -> object:
        if item["item"].startswith("failed"):
            raise error(f"{text} {item['item']}")
        return {text: [text, {text: text}]}

    items = [{text: text, "item": item} for item in ITEMS]
    await run_batch(items, handle, db=db, batch=text, key=lambda item: key_of(text, item["item"]), max_attempts=1, version=text)
    await lose_workers(db, "one", "two")
    with changing(db) as connection:
        connection.execute("UPDATE workers SET worker_id = ? WHERE worker_id = 'one'", [text])
        connection.execute(
            "UPDATE workers SET host = ?, slots = 4, slots_in_use = 2, loop_blocks = 1, longest_block = 2.5", [text]
        )
        connection.execute("UPDATE batches SET handler = ?, stopped = ?", [text, text])
        connection.execute(
            "UPDATE failures SET error_type = ?, message = ?, traceback = ?", [text, text, f"Traceback:\n  {text}\n{text}"]
        )
        connection.execute("UPDATE failures SET fingerprint = ? WHERE id LIKE '%failed too'", [text])
        connection.execute("UPDATE items SET fingerprint = ? WHERE id LIKE '%failed too'", [text])
        connection.execute("UPDATE items SET checkpoint = ?", [json.dumps({text: text})])
        for item in ("pending", "processing", "cancelled"):
            connection.execute(
                f"UPDATE items SET status = '{item}', result = NULL, completed_at = NULL, crashes = 1, error = ? WHERE id = ?",
                [text, key_of(text, item)],
            )
        connection.execute(
            "UPDATE items SET worker_id = ?, started_at = '2026-01-02 03:04:05.678', rerun_payload = ? WHERE status = 'processing'",
            [text, json.dumps({text: text})],
        )


NASTY: Final = "\r\n \"><script>alert(1)</script>&a=b#c%0d%0a+\x1b[1m\u202e{{7*7}}'\u2028\\ \u6f22\U0001f600\r"
"""The worst of the corpus in one text."""
