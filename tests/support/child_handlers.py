"""Handlers that run in child processes, so each must be at the top level of a module."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import subprocess
import sys
import time
from dataclasses import dataclass

import httpx

from asyncrunner import Fail, Retry, Runner, current_attempt

decorated = Runner("unused.db")


@dataclass
class Job:
    number: int


def square(job: Job) -> Job:
    return Job(job.number**2)


def whoami(number: int) -> list[object]:
    attempt = current_attempt()
    return [os.getpid(), attempt.number, attempt.key, attempt.idempotency_key, attempt.checkpoint]


def not_a_number(number: int) -> list[float]:
    return [float("nan")]


def segfault(number: int) -> int:
    if number == 3:
        ctypes.string_at(0)
    return number


def leave(number: int) -> int:
    if number == 3:
        os._exit(0)
    return number


class OddError(Exception):
    def __init__(self, *, code: int) -> None:
        super().__init__(f"code {code}")


def raises(kind: str) -> object:
    match kind:
        case "value":
            raise ValueError("in the child")
        case "fail":
            raise Fail("permanently")
        case "retry":
            raise Retry("later", after=30, pause=True)
        case "odd":
            raise OddError(code=5)
        case "http":
            request = httpx.Request("GET", "http://localhost/")
            httpx.Response(429, headers={"Retry-After": "77"}, request=request).raise_for_status()
        case "exit":
            raise SystemExit(3)
        case "lambda":
            return lambda: 1
        case "local":

            class LocalError(Exception):
                pass

            raise LocalError("not to be found")
        case _:
            pass
    return None


def forever(number: int) -> None:
    with open(os.environ["PID_FILE"], "w") as file:  # noqa: PTH123
        file.write(str(os.getpid()))
    time.sleep(3600)


def terminates(number: int) -> list[int | None]:
    """Terminate a program and a forked process; return how they ended."""
    program = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
    program.terminate()
    forked = multiprocessing.get_context("fork").Process(target=time.sleep, args=(3600,))
    forked.start()
    forked.terminate()
    forked.join()
    return [program.wait(), forked.exitcode]


def noisy(number: int) -> str:
    subprocess.run(["echo", "to the line"], check=True)
    os.write(1, b"RETURN 5\nxxxxx")
    print("to nowhere", file=sys.__stdout__)
    return f"{sys.stdin.read()!r} {os.read(0, 10)!r}"


def slow_and_noted(number: int) -> None:
    with open("pids", "a") as file:  # noqa: PTH123
        file.write(f"{os.getpid()}\n")
    time.sleep(60)


@decorated.handler(run_in="process")
def under_a_decorator(number: int) -> int:
    return number + 1


async def in_the_loop(number: int) -> int:
    return number
