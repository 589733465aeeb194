"""The example services as real processes: jobs over HTTP, signals, kills and restarts."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.processes import Folder
from tests.support.state import execute


class Service(Folder):
    """A service on one file, which the test may start several times."""

    def __init__(self, path: Path, name: str) -> None:
        super().__init__(path, "jobs.db")
        self.name = name
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=30, trust_env=False)

    def start(self, shutdown_timeout: float = 0.5) -> subprocess.Popen[str]:
        module = f"asyncrunner.examples.service_{self.name}"
        command = ["-m", module] if self.name == "aiohttp" else ["-m", "uvicorn", f"{module}:app", "--port", str(self.port)]
        environment = {**os.environ, "PORT": str(self.port), "JOBS_SHUTDOWN_TIMEOUT": str(shutdown_timeout)}
        process = subprocess.Popen(
            [sys.executable, *command], cwd=self.path, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, env=environment,
        )  # fmt: skip
        self.processes.append(process)
        self.until(lambda: process.poll() is not None or self._answers())
        assert process.poll() is None, process.communicate()[0]
        return process

    def _answers(self) -> bool:
        try:
            self.http.get("/nothing")
        except httpx.TransportError:
            return False
        return True

    def send(self, process: subprocess.Popen[str], number: signal.Signals) -> str:
        """Send the signal and return what the process printed until its end."""
        process.send_signal(number)
        return process.communicate(timeout=30)[0]

    def submit(self, text: str, seconds: float = 0.0) -> str:
        answer = self.http.post("/jobs", json={"text": text, "seconds": seconds})
        assert answer.status_code == 202, answer.text
        return str(answer.json()["key"])


@pytest.fixture
def service(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Service]:
    made = Service(tmp_path, getattr(request, "param", "fastapi"))
    yield made
    made.http.close()
    made.end()


def digest_of(number: int) -> str:
    return hashlib.sha256(f"text {number}".encode()).hexdigest()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_accepted_items_survive_a_deploy_and_a_kill(number: signal.Signals, service: Service) -> None:
    process = service.start()
    keys = [service.submit(f"text {index}") for index in range(50)]
    first = service.http.get(f"/jobs/{keys[0]}/result", params={"timeout": 20})
    assert (first.status_code, first.json()) == (200, {"sha256": digest_of(0), "words": 2, "attempt": 1})
    # These do not end before the signal, however slow this machine is; the next process gets them with another duration.
    keys += [service.submit(f"text {index}", seconds=600) for index in range(50, 100)]
    service.until(lambda: service.query("SELECT count(*) FROM items WHERE status = 'processing'")[0][0] > 5)
    printed = service.send(process, number)
    assert "Traceback" not in printed
    completed = service.query("SELECT count(*) FROM items WHERE status = 'completed'")[0][0]
    assert 0 < completed <= 50
    if number == signal.SIGTERM:
        assert service.query("SELECT count(*) FROM items WHERE status = 'processing' OR attempts > 1") == [(0,)]
    execute(service.db, "UPDATE items SET payload = json_set(payload, '$.seconds', 0) WHERE status <> 'completed'")
    service.start()
    for index, key in enumerate(keys):
        answer = service.http.get(f"/jobs/{key}/result", params={"timeout": 20})
        assert (answer.status_code, answer.json()["sha256"]) == (200, digest_of(index))
    assert service.query("SELECT status, count(*), max(attempts) <= 2 FROM items GROUP BY status") == [("completed", 100, 1)]


def test_a_second_ctrl_c_closes_the_loop_of_the_runner_and_the_process_ends_without_losing_an_item(service: Service) -> None:
    process = service.start(shutdown_timeout=60)
    key = service.submit("slow", seconds=50)
    service.until(lambda: service.query("SELECT count(*) FROM items WHERE status = 'processing'") == [(1,)])
    with socket.create_connection(("127.0.0.1", service.port)) as asking:  # an open request prevents the server from ending
        asking.sendall(f"GET /jobs/{key}/result?timeout=4 HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert service.http.get("/jobs/missing").status_code == 404  # so the server has read the first request
        process.send_signal(signal.SIGINT)
        assert process.stdout is not None
        while "Waiting for connections to close" not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)  # from Python 3.12 on uvicorn still waits for the request, though not for the runner
        process.communicate(timeout=20)
    assert service.query("SELECT status, attempts, crashes FROM items") in ([("pending", 0, 0)], [("processing", 1, 0)])
    service.start()
    service.until(lambda: service.query("SELECT count(*) FROM items WHERE status = 'processing'") == [(1,)])


def test_a_job_that_takes_longer_than_the_shutdown_timeout_is_released(service: Service) -> None:
    process = service.start(shutdown_timeout=0.1)
    service.submit("slow", seconds=50)
    service.until(lambda: service.query("SELECT count(*) FROM items WHERE status = 'processing'") == [(1,)])
    assert "Traceback" not in service.send(process, signal.SIGTERM)
    assert service.query("SELECT status, attempts, crashes FROM items") == [("pending", 0, 0)]


def test_failed_cancelled_unknown_and_unfinished_jobs_have_different_answers(service: Service) -> None:
    service.start()
    slow = service.submit("slow", seconds=40)
    assert service.http.get(f"/jobs/{slow}/result").status_code == 202
    assert service.http.delete(f"/jobs/{slow}").json() == {"cancelled": True}
    assert service.http.get(f"/jobs/{slow}/result").status_code == 410
    assert service.http.get(f"/jobs/{slow}").json()["status"] == "cancelled"
    assert service.http.get("/jobs/missing").status_code == 404
    assert service.http.post("/jobs", json={"text": "x"}, params={"key": "k"}).json() == {"key": "k"}
    assert service.http.get("/jobs/k/result", params={"timeout": 20}).json()["words"] == 1


@pytest.mark.parametrize("service", ["starlette", "litestar", "aiohttp"], indirect=True)
def test_the_other_frameworks_submit_and_answer_over_a_restart(service: Service) -> None:
    body: dict[str, Any] = (
        {"json": {"text": "three short words"}} if service.name == "litestar" else {"content": "three short words"}
    )
    process = service.start()
    answer = service.http.post("/jobs", **body)
    assert answer.status_code == 202, answer.text
    key = answer.json()["key"]
    assert service.http.get(f"/jobs/{key}/result").json() == {"words": 3}
    printed = service.send(process, signal.SIGTERM)
    assert "Traceback" not in printed
    service.start()
    assert service.http.get(f"/jobs/{key}/result").json() == {"words": 3}
    assert service.query("SELECT attempts FROM items") == [(1,)]
