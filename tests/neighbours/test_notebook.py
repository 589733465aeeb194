"""A real kernel runs a batch in a cell: the cell's output is a bar that moves, and the report is shown as a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from nbclient import NotebookClient
from nbformat import v4

CODE = """
import asyncio
import tempfile
from asyncrunner import run_batch
from asyncrunner.batch.notebook_bar import NotebookBar
NotebookBar.interval = 0.01
shown = asyncio.Event()
draw = NotebookBar._draw
def drawn(bar, update):
    draw(bar, update)
    if update.completed:
        shown.set()
NotebookBar._draw = drawn

async def fetch(number: int) -> int:
    if number == 1:
        await shown.wait()  # until the bar has moved: it shows the item that is done
    return number

report = await run_batch([0, 1], fetch, db=tempfile.mkdtemp() + "/jobs.db", batch="<b>&", progress=True)
report
"""

SYNC = """
import tempfile
from asyncrunner import run_batch_sync
run_batch_sync([1, 2, 3], str, db=tempfile.mkdtemp() + "/jobs.db", batch="sync", progress=True).completed
"""


class Recorder(NotebookClient):
    """A client that records every picture of the cell's outputs; nbclient keeps only the newest."""

    pictures: list[dict[str, Any]]

    def process_message(self, msg: dict[str, Any], cell: Any, cell_index: int) -> Any:
        if msg["msg_type"] in ("display_data", "update_display_data"):
            self.pictures.append(msg)
        return super().process_message(msg, cell, cell_index)


@pytest.fixture
def kernel_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    return tmp_path


async def executed(code: str, folder: Path) -> tuple[list[dict[str, Any]], list[Any]]:
    """Return the pictures that the kernel sent while it executed *code* in one cell, and the outputs that remain."""
    notebook = v4.new_notebook(cells=[v4.new_code_cell(code)])  # type: ignore[no-untyped-call]
    client = Recorder(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    client.pictures = []
    await client.async_execute()
    return client.pictures, notebook.cells[0].outputs


async def test_a_notebook_has_a_bar_that_moves_and_a_report_as_a_table(kernel_folder: Path) -> None:
    pictures, outputs = await executed(CODE, kernel_folder)
    htmls = [picture["content"]["data"]["text/html"] for picture in pictures]
    assert pictures[0]["msg_type"] == "display_data"
    assert {picture["msg_type"] for picture in pictures[1:]} == {"update_display_data"}
    assert len({picture["content"]["transient"]["display_id"] for picture in pictures}) == 1
    assert any('value="0.5000"' in html for html in htmls)
    assert 'value="1.0000"' in htmls[-1]
    assert all("&lt;b&gt;&amp;" in html and "<b>" not in html for html in htmls)
    assert "2 of 2 done (100 %)" in pictures[-1]["content"]["data"]["text/plain"]
    bar, report = outputs
    assert bar["data"]["text/html"] == htmls[-1]
    assert report["data"]["text/html"].startswith("<table>")
    assert "<tr><th>completed</th><td>2</td></tr>" in report["data"]["text/html"]


async def test_a_bar_of_run_batch_sync_is_shown_in_its_cell_too(kernel_folder: Path) -> None:
    pictures, outputs = await executed(SYNC, kernel_folder)
    assert "3 of 3 done (100 %)" in pictures[-1]["content"]["data"]["text/plain"]
    assert outputs[0]["data"]["text/html"] == pictures[-1]["content"]["data"]["text/html"]
    assert outputs[-1]["data"]["text/plain"] == "3"


def test_a_program_without_a_notebook_has_no_notebook_bar() -> None:
    from asyncrunner.batch.notebook_bar import is_notebook

    assert not is_notebook()
