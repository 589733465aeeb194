"""docs/guides/integrations.md is executed with the real packages, so that its code stays true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.test_readme import ROOT, run_block

TEXT = (ROOT / "docs" / "guides" / "integrations.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)

PRINTED = {
    "from fastapi import": "2\n2\n",
    "from quart import": "202\n{'result': 'a.png resized'}\n",
    "structlog.configure": "event='sending' batch='mail' item='1' attempt=1 to='ann@example.com'\n",
    "logger.contextualize": (
        "INFO sending {'batch': 'mail', 'item': '1', 'attempt': 1}\n"
        "WARNING item '1' of 'mail', attempt 1: failed: Fail: no such address {'batch': 'mail', 'item': '1', 'attempt': 1}\n"
    ),
    "uvloop.run": "['0 on uvloop', '1 on uvloop', '2 on uvloop']\n",
    "from dask.distributed import": "[0, 1, 4, 9]\n",
    "settings.configure": "refused\nsent 1\n",
    "CollectorRegistry()": 'asyncrunner_items{batch="shout",status="completed"} 2.0\n',
    "InMemorySpanExporter": "submit resize -> process resize\nTrue\n",
    "sentry_sdk.init": "ItemFailed\n",
}


@pytest.mark.parametrize("marker", PRINTED)
def test_every_block_prints_the_expected_text(marker: str, tmp_path: Path) -> None:
    (block,) = [block for block in BLOCKS if marker in block]
    assert run_block(block, tmp_path) == PRINTED[marker]


def test_every_block_of_the_page_is_executed() -> None:
    assert len(BLOCKS) == len(PRINTED)
