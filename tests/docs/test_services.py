"""docs/guides/services.md is executed, so that its code stays true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.test_readme import ROOT, run_block

TEXT = (ROOT / "docs" / "guides" / "services.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)

PRINTED = {
    "class Mail": "sent to ann@example.com\n",
    "async def divide": "0.25 completed\nZeroDivisionError: division by zero\nTrue cancelled\nTrue\n",
    "async def build_report": "pending\npending\n",
    "async def write_invoice": "invoice for 1\nNone\n",
    "async def import_pages": "the last attempt imported 2 pages\n",
    "async def on_stopped": "watched:work 1 completed 1 None\n",
    "def with_tenant": "acme pays 995\n",
    "async def charge": "failed 2\n",
}


@pytest.mark.parametrize("marker", PRINTED)
def test_every_block_prints_the_expected_text(marker: str, tmp_path: Path) -> None:
    (block,) = [block for block in BLOCKS if marker in block]
    expected = PRINTED[marker].replace("watched:work", "shown:work")
    assert run_block(block, tmp_path) == expected


def test_every_block_of_the_page_is_executed() -> None:
    assert len(BLOCKS) == len(PRINTED)
