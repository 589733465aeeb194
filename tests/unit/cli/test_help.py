"""The help, the environment variables, the reference in the documentation."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs.generate_cli import commands, reference
from tests.support.cli import run_command
from tests.support.files import BATCH
from tests.unit.cli.conftest import Call

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("name", [name for name, _ in commands()])
def test_every_command_has_help_with_an_example_that_names_it(name: str, call: Call) -> None:
    said = call(*name.split(), "--help", COLUMNS="100")
    assert said.code == 0
    assert f"Usage: asyncrunner {name}" in said.out
    assert f"Example: asyncrunner {name}" in said.out
    assert "-h, --help" in said.out


# A variable for `list` must not change a deletion, and the format of an export must not change the format of the input.
OWN_VARIABLES = {
    ("purge", "--status"): "ASYNCRUNNER_PURGE_STATUS",
    ("rerun", "--status"): "ASYNCRUNNER_RERUN_STATUS",
    ("export", "--format"): "ASYNCRUNNER_EXPORT_FORMAT",
    ("backup", "--batch"): "ASYNCRUNNER_BACKUP_BATCH",
    ("copy", "--batch"): "ASYNCRUNNER_COPY_BATCH",
}


def test_every_option_may_be_set_by_its_environment_variable() -> None:
    for name, command in commands():
        for option in command.params:
            if option.param_type_name == "option" and option.name != "help":
                long = max(option.opts, key=len)
                variable = OWN_VARIABLES.get((name, long), f"ASYNCRUNNER_{long[2:].replace('-', '_').upper()}")
                assert option.envvar == variable, (name, long)
                assert option.help, (name, long)


def test_environment_variables_are_obeyed(shop: str, call: Call) -> None:
    said = call("list", ASYNCRUNNER_STATUS="failed", ASYNCRUNNER_LIMIT="1", ASYNCRUNNER_JSON="1", ASYNCRUNNER_BATCH=BATCH)
    assert [item["id"] for item in said.document["items"]] == ["refused-1"]  # type: ignore[attr-defined]


def test_the_reference_in_the_documentation_matches_the_help_of_the_commands() -> None:
    page = ROOT / "docs" / "reference" / "cli.md"
    assert page.read_text() == reference(), "run python docs/generate_cli.py > docs/reference/cli.md"


def test_the_examples_of_the_help_are_commands_with_options_that_exist() -> None:
    known = dict(commands())
    for name, command in known.items():
        for example in re.findall(r"Example: asyncrunner (.*)", command.epilog):
            words = example.split(" | ")[0]
            assert words.startswith(name), example
            options = {option for each in command.params for option in each.opts}
            assert set(re.findall(r"(?<=\s)--[a-z-]+", words)) <= options, example


@pytest.mark.parametrize("arguments", [[], ["set"]])
def test_a_group_without_a_command_prints_its_help_as_wrong_usage(arguments: list[str], folder: Path) -> None:
    done = run_command(folder, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Commands:" in done.stderr


def test_help_and_version(folder: Path) -> None:
    assert "asyncrunner " in run_command(folder, "--version").stdout
    for command in ([], ["run"], ["status"]):
        done = run_command(folder, *command, "--help")
        assert done.returncode == 0
        assert "Usage:" in done.stdout
    assert "Example: asyncrunner run prices.py:fetch" in run_command(folder, "run", "--help").stdout


@pytest.mark.parametrize(
    "name", [name for name, command in commands() if any(option.name == "batch" for option in command.params)]
)
def test_the_help_of_each_command_says_what_it_does_with_several_batches(name: str) -> None:
    (command,) = [command for each, command in commands() if each == name]
    assert "several batches" in " ".join((command.help or "").lower().split())
