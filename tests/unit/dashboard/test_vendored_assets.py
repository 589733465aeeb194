"""The third-party files of the dashboard are those of the table, with their licences; all files together stay small."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support import vendored_assets
from tests.support.vendored_assets import FILES, STATIC, differences

if TYPE_CHECKING:
    import pytest

OWN = {"page.css", "page.js", "icon.svg"}
MAX_BYTES = 80_000


def test_every_third_party_file_has_the_hash_of_the_table_and_every_other_file_is_our_own() -> None:
    assert differences() == []
    assert {path.name for path in STATIC.iterdir()} == {file.name for file in FILES} | OWN


def test_a_changed_and_a_missing_file_are_named(tmp_path: Path) -> None:
    for file in FILES[1:]:
        (tmp_path / file.name).write_bytes((STATIC / file.name).read_bytes())
    (tmp_path / "uPlot.min.css").write_text("body { display: none }")
    missing, changed = differences(tmp_path)
    assert missing == "idiomorph.min.js is missing"
    assert re.fullmatch(r"uPlot\.min\.css: sha256 [0-9a-f]{64}, expected df630c6a[0-9a-f]{56} from uplot 1\.6\.32", changed)


def test_each_package_has_its_licence_beside_its_files() -> None:
    licensed = {file.package for file in FILES if file.member == "LICENSE"}
    assert licensed == {file.package for file in FILES}
    text = {file.package: (STATIC / file.name).read_text() for file in FILES if file.member == "LICENSE"}
    assert "Zero-Clause BSD" in text["idiomorph"]
    assert "MIT License" in text["uplot"]


def test_all_files_together_have_less_than_80_kilobytes() -> None:
    assert sum(path.stat().st_size for path in STATIC.iterdir()) < MAX_BYTES


def test_the_program_names_a_file_that_differs_from_its_package_and_replaces_it_on_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    packed = {file.name: (STATIC / file.name).read_bytes() for file in FILES}
    for name, content in packed.items():
        (tmp_path / name).write_bytes(content)
    monkeypatch.setattr(vendored_assets, "STATIC", tmp_path)
    monkeypatch.setattr(vendored_assets, "fetched", lambda _: packed)
    assert vendored_assets.main([]) == 0
    (tmp_path / "uPlot.min.css").write_text("body { display: none }")
    capsys.readouterr()
    assert vendored_assets.main([]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines if line.startswith("differs")] == ["differs  uplot 1.6.32 dist/uPlot.min.css"]
    assert vendored_assets.main(["--write"]) == 1
    assert differences(tmp_path) == []
