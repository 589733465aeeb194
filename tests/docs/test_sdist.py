"""The source distribution has every file of the repository, so that its tests and its CI run from it."""

from __future__ import annotations

import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_source_distribution_has_every_folder_and_file_of_the_repository() -> None:
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listing.returncode != 0:
        pytest.skip("this is not a clone")
    tracked = {f"/{name.split('/')[0]}" for name in listing.stdout.splitlines()}
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["sdist"]
    assert set(build["include"]) == tracked - {"/.gitignore"}
