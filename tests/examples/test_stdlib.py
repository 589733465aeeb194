"""The example handler measures real files."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from asyncrunner import Fail, run_batch
from asyncrunner.examples.stdlib import Measured, measure, source_files


async def test_a_file_is_checksummed_and_its_lines_of_code_are_counted(tmp_path: Path) -> None:
    source = '"""A docstring\nof two lines."""\n\n# a comment\nx = 1\ny = (\n    2\n)\n'
    path = tmp_path / "module.py"
    path.write_text(source)
    digest = hashlib.sha256(source.encode()).hexdigest()
    assert await measure(path) == Measured(sha256=digest, size=len(source), lines=8, code_lines=4)


async def test_a_file_that_is_no_python_is_measured_as_far_as_it_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text("x = 1\ny = (\n")
    assert (await measure(path)).code_lines == 2


async def test_a_missing_file_is_a_permanent_failure(tmp_path: Path) -> None:
    with pytest.raises(Fail, match="does not exist"):
        await measure(tmp_path / "gone.py")


async def test_the_first_hundred_files_of_the_standard_library_come_back_as_typed_results(tmp_path: Path) -> None:
    paths = [path for path, _ in zip(source_files(), range(100), strict=False)]
    report = await run_batch(paths, measure, db=tmp_path / "a.db")
    assert (report.completed, report.failed) == (100, 0)
    async for outcome in report.outcomes():
        assert outcome.result is not None
        assert outcome.result.size == outcome.item.stat().st_size
