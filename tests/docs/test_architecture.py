"""The picture of the rooms in docs/architecture.md is drawn from the import contract, so it cannot become outdated."""

from __future__ import annotations

import ast
import re
import tomllib
from collections import Counter
from pathlib import Path

from tests.docs.test_readme import ROOT

PAGE = ROOT / "docs" / "architecture.md"
WIDTH = 124


def layers() -> list[list[str]]:
    """Return the layers of the import contract, the highest first."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (contract,) = [contract for contract in contracts if contract["type"] == "layers"]
    assert contract["exhaustive"] is True
    return [re.split(r"\s*\|\s*", layer) for layer in contract["layers"]]


def responsibility(room: str) -> str:
    """Return the first sentence of the room's docstring, or of the module's."""
    place = ROOT / "asyncrunner" / room
    module = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    docstring = ast.get_docstring(ast.parse(module.read_text()))
    assert docstring, f"{module} has no docstring that says what it is for"
    return " ".join(re.split(r"(?<=[.])\s|\n\n", docstring)[0].split()).rstrip(".:")


def picture() -> str:
    """Return one line for each room, the highest layer first; a rule with an arrow between layers."""
    lines: list[str] = []
    for number, layer in enumerate(layers()):
        lines.append(("-" * 6 + " imports ").ljust(WIDTH, "-") + "v" if number == 1 else "-" * WIDTH + ("v" if number else "-"))
        for room in layer:
            line = f"{room:<14} {responsibility(room)}"
            assert len(line) <= WIDTH, f"the first sentence of {room} is too long for the picture: {line!r}"
            lines.append(line)
    return "\n".join([*lines, "-" * (WIDTH + 1)])


def test_the_picture_is_the_contract() -> None:
    found = re.search(r"<!-- rooms -->\n```text\n(.*?)\n```", PAGE.read_text(), re.DOTALL)
    assert found is not None
    assert found[1] == picture(), f"replace the picture in {PAGE.name} by:\n{picture()}"


def test_each_room_is_in_the_contract() -> None:
    package = ROOT / "asyncrunner"
    rooms = {place.stem for place in package.iterdir() if place.suffix == ".py" or (place / "__init__.py").exists()} - {
        "__init__"
    }
    assert {room for layer in layers() for room in layer} == rooms


def test_a_room_has_at_most_ten_files_and_a_file_at_most_400_lines() -> None:
    package = ROOT / "asyncrunner"
    files = list(package.rglob("*.py"))
    sizes = Counter(file.parent.relative_to(package) for file in files if file.name != "__init__.py")
    assert {str(room): size for room, size in sizes.items() if size > 10} == {}
    assert [str(file) for file in files if len(file.read_text().splitlines()) > 400] == []


def test_the_path_of_an_item_names_files_that_exist() -> None:
    named = re.findall(r"`(\w+(?:/\w+)*/\w+\.py)`", PAGE.read_text())
    assert len(named) > 10
    assert [name for name in named if not (Path(ROOT) / "asyncrunner" / name).exists()] == []
