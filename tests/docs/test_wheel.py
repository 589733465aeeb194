"""The wheel has the dashboard's templates and files with their licences, and its command serves pages that load nothing else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from asyncrunner import run_batch
from tests.support.vendored_assets import FILES
from tests.support.web import Visitor

ROOT = Path(__file__).parents[2]
NETWORK = re.compile(r"\b(fetch|XMLHttpRequest|WebSocket|WebTransport|RTCPeerConnection|sendBeacon|importScripts|import)\s*\(")
"""Ways in which a script sends a request; an ``EventSource`` is looked for apart."""

IDENTIFIERS = {"http://www.w3.org/1999/xhtml", "http://www.w3.org/2000/svg"}
"""Names of XML namespaces, which look like addresses."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the installed wheel, which programs find before the checkout."""
    folder = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(folder), str(wheel)]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def test_the_wheel_has_every_template_and_file_of_the_dashboard(wheel: Path) -> None:
    dashboard = ROOT / "asyncrunner" / "dashboard"
    source = {
        path.relative_to(ROOT).as_posix(): path for part in ("templates", "static") for path in dashboard.glob(f"{part}/**/*")
    }
    files = {name: path.read_bytes() for name, path in source.items() if path.is_file()}
    assert {f"asyncrunner/dashboard/static/{file.name}" for file in FILES} <= set(files)
    assert "asyncrunner/dashboard/templates/live/overview.html" in files
    with zipfile.ZipFile(wheel) as archive:
        packed = {name: archive.read(name) for name in archive.namelist() if name in files}
        metadata = archive.read(next(name for name in archive.namelist() if name.endswith("/METADATA"))).decode()
    assert packed == files
    assert "Provides-Extra: dashboard" in metadata


@pytest.fixture
def served(installed: Path, tmp_path: Path, store: str) -> Iterator[str]:
    """The link that the installed command prints."""
    process = subprocess.Popen(
        [installed / "bin" / "asyncrunner", "dashboard", store, "--port", "0"], cwd=tmp_path, text=True,
        env={**os.environ, "PYTHONPATH": str(installed), "COVERAGE_PROCESS_CONFIG": "", "COVERAGE_PROCESS_START": ""},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    yield process.stdout.readline().strip()
    process.terminate()
    process.communicate(timeout=30)


@pytest.fixture
async def store(tmp_path: Path) -> str:
    db = tmp_path / "jobs.db"
    await run_batch(["a", "b"], str.upper, db=db, batch="https://evil.example.com/x.js")
    return str(db)


def addresses_in(text: str) -> set[str]:
    """Return what looks like an absolute address: a text in quotes or parentheses with two slashes after a scheme or its start."""
    return set(re.findall(r"""["'`(=\s]((?:[a-z]+:)?//[^\s"'`)<>]+)""", text)) - IDENTIFIERS


async def test_the_installed_command_serves_pages_that_request_nothing_from_another_origin(installed: Path, served: str) -> None:
    location = [sys.executable, "-c", "import asyncrunner; print(asyncrunner.__file__)"]
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    found = subprocess.run(location, cwd=installed, env=environment, capture_output=True, text=True, check=True)
    assert Path(found.stdout.strip()).is_relative_to(installed)
    async with httpx.AsyncClient() as client:
        start = served.partition("?")[0]
        visitor = Visitor(client, start)
        assert (await visitor.get(served)).status_code == 200
        pages = await visitor.crawl()  # every link and asset is below the first page, and answers
    kinds = {url: response.headers["content-type"].partition(";")[0] for url, response in pages.items()}
    assert {"text/html", "text/css", "text/javascript", "image/svg+xml"} <= set(kinds.values())
    for url, response in pages.items():
        text = response.text
        if kinds[url] == "text/html":
            assert "content-security-policy" in response.headers
        elif kinds[url] == "text/css":
            assert "@import" not in text
            assert "url(" not in text
        elif kinds[url] == "text/javascript":
            code = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
            assert addresses_in(code) == set(), url
            assert NETWORK.findall(code) == [], url
            assert re.findall(r"new EventSource\((.*?)\)", code) in ([], ["source.dataset.live"])
        elif kinds[url] == "image/svg+xml":
            assert addresses_in(text) == set()


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ('load("//evil.example.com/x")', {"//evil.example.com/x"}),
        ("load('https://evil.example.com')", {"https://evil.example.com"}),
        ('if (uri === "http://www.w3.org/1999/xhtml") {}', set()),
        ("const half = a / b; // a comment", set()),
    ],
)
def test_addresses_are_found_in_scripts(code: str, expected: set[str]) -> None:
    assert addresses_in(code) == expected
