"""docs/guides/dashboard.md is executed: each application with its own server, and the requests of programs."""

from __future__ import annotations

import inspect
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from asyncrunner import Control, run_batch
from asyncrunner.dashboard import dashboard
from asyncrunner.dashboard.api import ANSWERS
from docs.generate_cli import commands
from tests.docs.test_readme import ROOT
from tests.support.files import make_store
from tests.support.web import Visitor

TEXT = (ROOT / "docs" / "guides" / "dashboard.md").read_text()
PROGRAMS = {
    name: (source, command)
    for source, name, command in re.findall(r"```python\n(# (\w+)\.py\n.*?)```\n\n```sh\n(.*?)\n```", TEXT, re.DOTALL)
}
SHELL_LINES = [line for block in re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines()]
UNMEASURED = {"COVERAGE_PROCESS_CONFIG": "", "COVERAGE_PROCESS_START": ""}

SETTINGS = """
SECRET_KEY = "x" * 50
ALLOWED_HOSTS = ["*"]
INSTALLED_APPS = ["django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "site.db"}}
ROOT_URLCONF = "settings"
urlpatterns = []
"""
USERS = """
import django
django.setup()
from django.contrib.auth.models import User
from django.core.management import call_command
from django.test import Client
call_command("migrate", verbosity=0)
for name, is_staff in (("ann", True), ("bob", False)):
    client = Client()
    client.force_login(User.objects.create_user(name, is_staff=is_staff))
    print(client.cookies["sessionid"].value)
"""


def test_every_block_of_python_is_a_program_with_its_command() -> None:
    assert sorted(PROGRAMS) == ["asgi", "fastapi_app", "litestar_app", "quart_app", "starlette_app"]
    assert TEXT.count("```python") == len(PROGRAMS)


@contextmanager
def served(name: str, folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Run the program as the page says. Yields its address and the lines of its log before that."""
    source, command = PROGRAMS[name]
    (folder / f"{name}.py").write_text(source)
    server, application = command.split()
    port = ["--port", "0"] if server == "uvicorn" else ["--bind", "127.0.0.1:0"]
    process = subprocess.Popen(
        [sys.executable, "-m", server, application, *port], cwd=folder, env={**os.environ, **UNMEASURED},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    lines: list[str] = []
    try:
        for line in process.stderr:
            lines.append(line)
            if found := re.search(r"unning on (http://127\.0\.0\.1:\d+)", line):
                yield f"{found[1]}/", lines
                break
        else:
            pytest.fail("".join(lines))
    finally:
        process.terminate()
        process.communicate(timeout=30)


@pytest.fixture
async def folder(tmp_path: Path) -> Path:
    await run_batch(["a", "b"], str.upper, db=tmp_path / "jobs.db", batch="words")
    return tmp_path


async def check(visitor: Visitor, db: Path) -> None:
    """Look at pages, and pause a batch."""
    assert (await visitor.get(visitor.start.rstrip("/"))).url == visitor.start
    assert "words" in (await visitor.get(visitor.start)).text
    assert "words" in (await visitor.first_event(visitor.start))["html"]
    assert "is paused" in (await visitor.press(f"{visitor.start}batch?batch=words", "/pause")).text
    async with Control(db) as control:
        assert (await control.status("words")).batches[0].paused


async def test_the_program_with_fastapi_prints_a_token_that_opens_the_dashboard(folder: Path) -> None:
    with served("fastapi_app", folder) as (url, lines):
        (token,) = re.findall(r"add \?token=(\S+) to the address", "".join(lines))
        async with httpx.AsyncClient() as client:
            visitor = Visitor(client, f"{url}jobs/")
            assert (await client.get(visitor.start)).status_code == 401
            assert str((await visitor.get(f"{url}jobs?token={token}")).url) == visitor.start
            await check(visitor, folder / "jobs.db")


@pytest.mark.parametrize("name", ["starlette_app", "litestar_app", "quart_app"])
async def test_a_program_with_users_lets_in_who_has_logged_in(name: str, folder: Path) -> None:
    with served(name, folder) as (url, _):
        async with httpx.AsyncClient() as client:
            visitor = Visitor(client, f"{url}jobs/")
            assert (await client.get(visitor.start)).status_code == 401
            welcome = await client.get(f"{url}login", follow_redirects=True)
            assert (welcome.status_code, str(welcome.url)) == (200, visitor.start)
            await check(visitor, folder / "jobs.db")


async def test_the_program_with_django_lets_in_members_of_the_staff(folder: Path) -> None:
    (folder / "settings.py").write_text(SETTINGS)
    command = [sys.executable, "-c", USERS]
    environment = {**os.environ, **UNMEASURED, "DJANGO_SETTINGS_MODULE": "settings"}
    made = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    staff, other = made.stdout.split()
    with served("asgi", folder) as (url, _):
        for cookies in ({}, {"sessionid": other}, {"sessionid": "x"}):
            async with httpx.AsyncClient(cookies=cookies) as client:
                assert (await client.get(f"{url}jobs/")).status_code == 401
                assert (await client.get(url)).status_code == 404, "Django answers, which has no page there"
        async with httpx.AsyncClient(cookies={"sessionid": staff}) as client:
            await check(Visitor(client, f"{url}jobs/"), folder / "jobs.db")


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_requests_of_programs_are_answered(tmp_path: Path) -> None:
    make_store(tmp_path / "jobs.db")
    requests = [line for line in SHELL_LINES if line.startswith("curl ")]
    assert len(requests) == 3
    environment = {**os.environ, "ASYNCRUNNER_DASHBOARD_TOKEN": "a-token-of-the-tests"}
    process = subprocess.Popen(
        [sys.executable, "-m", "asyncrunner", "dashboard", "jobs.db", "--port", "0"], cwd=tmp_path, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    link = process.stdout.readline()
    url = link.partition("/?")[0]
    status, ready, pause = (
        subprocess.run(
            ["bash", "-c", line.replace("http://127.0.0.1:8585", url).replace("curl", "curl --silent --show-error -i", 1)],
            env=environment, capture_output=True, text=True, check=True,
        ).stdout
        for line in requests
    )  # fmt: skip
    process.terminate()
    _, err = process.communicate(timeout=30)
    assert status.startswith("HTTP/1.1 200")
    assert '"name":"shop"' in status
    assert ready.startswith("HTTP/1.1 503")
    assert pause.startswith("HTTP/1.1 303")
    assert "pause shop, by a program with the token: done" in err


def test_the_tables_name_every_argument_address_and_page() -> None:
    rows = re.findall(r"^\| (.*?) \|", TEXT, re.MULTILINE)
    assert [row.strip("`") for row in rows if row.strip("`") in inspect.signature(dashboard).parameters] == list(
        inspect.signature(dashboard).parameters
    )
    named = {name for row in rows for name in re.findall(r"`(/?[\w/]+(?:\.json)?)`", row)}
    addresses = {
        name if name.startswith("/") else f"/api/{name}" for name in named if name.startswith("/") or name.endswith(".json")
    }
    assert addresses == set(ANSWERS) - {"/raw"}
    template = (ROOT / "asyncrunner" / "dashboard" / "templates" / "base.html").read_text()
    titles = re.findall(r'nav_link\("\w+", "\w*", "(\w+)"', template)
    assert {*titles, "Batch", "Items", "Item"} <= set(rows)


def test_the_commands_of_the_page_have_only_options_that_exist() -> None:
    (command,) = (command for name, command in commands() if name == "dashboard")
    known = {option for parameter in command.params for option in parameter.opts}
    lines = [line for line in SHELL_LINES if line.startswith("asyncrunner dashboard")]
    assert len(lines) == 2
    named = {word.partition("=")[0] for word in re.findall(r"--[a-z][\w-]*", " ".join([*lines, TEXT]))}
    assert named - known == {"--timeout-graceful-shutdown", "--json"}
