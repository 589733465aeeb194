"""Shells complete commands, options, values, batches and ids; each shell that is installed does it here with its own script."""

from __future__ import annotations

import asyncio
import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from asyncrunner.backends import open_engine
from asyncrunner.domain.item import NewItem
from asyncrunner.store.batches import BatchOptions
from docs.generate_cli import commands
from tests.support.cli import run_command

BASH = shutil.which("bash")
FISH = shutil.which("fish")
ZSH = shutil.which("zsh")
STATUSES = {"pending", "processing", "completed", "failed", "cancelled"}


def completions(folder: Path, line: str, shell: str = "zsh", **environment: str) -> list[str]:
    """Return the completions of the last word of *line*, by the protocol between a shell and the program."""
    words = line.split(" ")
    done = subprocess.run(
        [sys.executable, "-m", "asyncrunner"], cwd=folder, capture_output=True, text=True, timeout=60,
        env={
            **os.environ, "_ASYNCRUNNER_COMPLETE": f"{shell}_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1),
            **environment,
        },
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()[1::3]


async def add(db: Path, batches: dict[str, list[str]]) -> None:
    """Add items to batches of a file."""
    store = open_engine(str(db))
    await store.open()
    for name, keys in batches.items():
        batch = await store.open_batch(name, "handler", BatchOptions())
        await store.add(batch.batch_id, [NewItem(key, "1") for key in keys], on_change="error")
    await store.close()


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create jobs.db with two batches, one of them with names that a shell would not take as they are."""
    batches = {
        "shop.jobs:welcome": ["mail-1", "mail-2", "other:1", "two words", "$(touch broken)", "a\nb"],
        "thumbnails": ["img/1.png", "img/2.png"],
        "a'b": ["x"],
    }
    folder = tmp_path_factory.mktemp("jobs")
    asyncio.run(add(folder / "jobs.db", batches))
    return folder


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("asyncrunner re", {"retry", "rerun", "resume", "recover", "restore"}),
        ("asyncrunner retry --fa", {"--failed"}),
        ("asyncrunner set co", {"concurrency"}),
        ("asyncrunner list --status ", STATUSES),
        ("asyncrunner export --status f", {"failed"}),
        ("asyncrunner rerun --status ", STATUSES - {"pending"}),
        ("asyncrunner purge --status ", {"completed", "failed", "cancelled"}),
        ("asyncrunner export --format ", {"jsonl", "csv", "parquet"}),
        ("asyncrunner run h.py:f items --format js", {"json", "jsonl"}),
        ("asyncrunner run h.py:f items --leftovers ", {"run", "leave"}),
        ("asyncrunner run h.py:f items --on-change ", {"error", "keep", "rerun"}),
        ("asyncrunner check --probe ", {"liveness", "readiness"}),
        ("asyncrunner work shop:runner --log-level w", {"warning"}),
        ("asyncrunner --show-completion ", {"bash", "zsh", "fish"}),
        ("asyncrunner status --batch ", {"shop.jobs:welcome", "thumbnails"}),
        ("asyncrunner stop --batch th", {"thumbnails"}),
        ("asyncrunner run h.py:f --batch sh", {"shop.jobs:welcome"}),
        ("asyncrunner show m", {"mail-1", "mail-2"}),
        ("asyncrunner show ", {"mail-1", "mail-2", "other:1", "img/1.png", "img/2.png", "x"}),
        ("asyncrunner show --batch thumbnails ", {"img/1.png", "img/2.png"}),
        ("asyncrunner retry mail-1 m", {"mail-2"}),
        ("asyncrunner cancel two", set()),
        ("asyncrunner show $", set()),
    ],
)  # fmt: skip
def test_a_shell_completes_commands_options_values_batches_and_ids(line: str, expected: set[str], jobs: Path) -> None:
    assert set(completions(jobs, line, ASYNCRUNNER_DB="jobs.db")) == expected


def test_the_newest_ids_come_first_and_batches_and_ids_are_bounded(tmp_path: Path) -> None:
    batches = {"b": [f"key-{number:03}" for number in range(60)], **{f"batch-{number:03}": ["k"] for number in range(105)}}
    asyncio.run(add(tmp_path / "jobs.db", batches))
    newest = completions(tmp_path, "asyncrunner show --db jobs.db --batch b ")
    assert newest == [f"key-{number:03}" for number in range(59, 9, -1)]
    assert len(completions(tmp_path, "asyncrunner show --db jobs.db --batch b key")) == 50
    assert len(completions(tmp_path, "asyncrunner status --db jobs.db --batch ")) == 100


@pytest.mark.parametrize("content", [None, b"", b"no database at all " * 100])
def test_a_file_that_cannot_be_read_completes_nothing_prints_nothing_and_is_not_created(
    content: bytes | None, tmp_path: Path
) -> None:
    file = tmp_path / "jobs.db"
    if content is not None:
        file.write_bytes(content)
    for line in ("asyncrunner show --db jobs.db ", "asyncrunner status --db jobs.db --batch "):
        assert completions(tmp_path, line) == []
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == ([] if content is None else [("jobs.db", content)])


def environment_of(jobs: Path) -> dict[str, str]:
    """Return the environment of a shell that finds ``asyncrunner``, and whose file is jobs.db."""
    program = jobs / "bin" / "asyncrunner"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m asyncrunner "$@"\n')
    program.chmod(0o755)
    return {**os.environ, "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}", "ASYNCRUNNER_DB": "jobs.db"}


@pytest.mark.skipif(BASH is None, reason="bash is not installed")
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("asyncrunner re", ["retry", "rerun", "resume", "recover", "restore"]),
        ("asyncrunner list --status p", ["pending", "processing"]),
        ("asyncrunner status --batch th", ["thumbnails"]),
        ("asyncrunner show mail", ["mail-1", "mail-2"]),
        # Bash splits words at a colon and an equals sign, and replaces only the part behind it.
        ("asyncrunner status --batch shop.jobs:we", ["welcome"]),
        ("asyncrunner status --batch=shop.jobs:we", ["welcome"]),
        ("asyncrunner status --batch=th", ["thumbnails"]),
        ("asyncrunner show $(", []),
        ("FOO=1 asyncrunner show other:", ["1"]),
    ],
)
def test_bash_completes_with_the_script_that_the_program_prints(line: str, expected: list[str], jobs: Path) -> None:
    assert BASH is not None
    script = """
        source <(asyncrunner --show-completion bash)
        [[ $(complete -p asyncrunner) == *"-F _asyncrunner_completion asyncrunner" ]] || exit 9
        COMP_LINE=$1 COMP_POINT=${#1} COMP_WORDBREAKS=$' \\t\\n"><=;|&(:@'"'"
        _asyncrunner_completion asyncrunner
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    done = subprocess.run(
        [BASH, "--norc", "-c", script, "bash", line], cwd=jobs, capture_output=True, text=True, timeout=60,
        env=environment_of(jobs),
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == expected
    assert not (jobs / "broken").exists()


# In fish and zsh a word may be an option with its value, which must stay.
BEHIND_AN_OPTION = [
    ("asyncrunner stat", "asyncrunner status"),
    ("asyncrunner status --batch th", "asyncrunner status --batch thumbnails"),
    ("asyncrunner status --batch=shop.jobs:we", "asyncrunner status --batch=shop.jobs:welcome"),
    ("asyncrunner show other:", "asyncrunner show other:1"),
    ("asyncrunner list --status=pr", "asyncrunner list --status=processing"),
    ("asyncrunner list --db=jobs.db-l", "asyncrunner list --db=jobs.db-locks/"),
    ("asyncrunner list --db jobs.db-l", "asyncrunner list --db jobs.db-locks/"),
    ("FOO=1 asyncrunner show img/1", "FOO=1 asyncrunner show img/1.png"),
    ("asyncrunner show two", "asyncrunner show two"),
]


@pytest.mark.skipif(FISH is None, reason="fish is not installed")
@pytest.mark.parametrize(("line", "completed"), BEHIND_AN_OPTION)
def test_fish_completes_with_the_script_that_the_program_prints(line: str, completed: str, jobs: Path) -> None:
    assert FISH is not None
    script = "asyncrunner --show-completion fish | source; complete -C $argv[1]"
    done = subprocess.run(
        [FISH, "--no-config", "-c", script, line], cwd=jobs, capture_output=True, text=True, timeout=60, env=environment_of(jobs)
    )
    assert (done.returncode in (0, 1), done.stderr) == (True, "")
    offered = [each.split("\t")[0] for each in done.stdout.splitlines()]
    assert offered == ([] if completed == line else [completed.split()[-1]])
    assert not (jobs / "broken").exists()


ZSH_SCRIPT = """
PS1='' PS2=''
autoload -U compinit && compinit -u -D
eval "$(asyncrunner --show-completion zsh)"
report() { print -r -- "<${BUFFER}>"; exit }
zle -N report
bindkey '^G' report
print rea''dy
"""


@pytest.mark.skipif(ZSH is None, reason="zsh is not installed")
@pytest.mark.parametrize(("line", "completed"), [*BEHIND_AN_OPTION, ("asyncrunner show $(", "asyncrunner show $(")])
def test_zsh_completes_with_the_script_that_the_program_prints(line: str, completed: str, jobs: Path, tmp_path: Path) -> None:
    """Type the line, a tab and Ctrl-G in a terminal; Ctrl-G prints the line."""
    assert ZSH is not None
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [ZSH, "-f", "-i"], cwd=jobs, stdin=child, stdout=child, stderr=child, start_new_session=True,
        env={**environment_of(jobs), "TERM": "dumb", "HOME": str(tmp_path)},
    )  # fmt: skip
    os.close(child)
    try:
        os.write(parent, ZSH_SCRIPT.encode())
        read_until(parent, "ready")
        os.write(parent, f"{line}\t\x07".encode())
        shown = read_until(parent, ">\r\n")
    finally:
        process.kill()
        process.wait()
        os.close(parent)
    assert shown.rpartition("<")[2].partition(">")[0].rstrip() == completed
    assert not (jobs / "broken").exists()


def read_until(terminal: int, text: str) -> str:
    """Return the output of a terminal up to *text*; after 60 s the test fails."""
    output = b""
    give_up_at = time.monotonic() + 60
    while text.encode() not in output:
        assert time.monotonic() < give_up_at, output
        if select.select([terminal], [], [], 1)[0]:
            output += os.read(terminal, 65_536)
    return output.decode(errors="replace")


@pytest.mark.parametrize(
    ("shell", "words"), [("bash", "complete -o nosort -F"), ("zsh", "compdef"), ("fish", "complete --no-files")]
)
def test_the_program_prints_the_script_of_each_shell(shell: str, words: str, tmp_path: Path) -> None:
    done = run_command(tmp_path, "--show-completion", shell)
    assert (done.returncode, done.stderr) == (0, "")
    assert words in done.stdout


@pytest.mark.parametrize("script", ["bash", "zsh", "fish"])
def test_the_script_is_valid_for_its_shell_where_the_shell_is_installed(script: str, tmp_path: Path) -> None:
    shell = shutil.which(script)
    if shell is None:
        pytest.skip(f"{script} is not installed")
    subprocess.run(
        [shell, "-n"], input=run_command(tmp_path, "--show-completion", script).stdout, text=True, check=True, timeout=60
    )


def test_every_batch_option_and_every_id_completes() -> None:
    for name, command in commands():
        for parameter in command.params:
            if parameter.name == "batch" or (parameter.param_type_name == "argument" and parameter.name in ("id", "ids")):
                assert parameter._custom_shell_complete is not None, (name, parameter.name)
