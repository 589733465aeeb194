"""``Runner.around`` surrounds every attempt, in the context of its handler."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar

from asyncrunner import Attempt, Runner
from asyncrunner.runner.runner import internals_of, run_until_idle
from asyncrunner.testing import FakeClock
from tests.support.handlers import failing_once

InMemory = Callable[[Runner], Awaitable[FakeClock]]
current: ContextVar[str] = ContextVar("current", default="none")


async def test_every_attempt_is_surrounded_with_its_exception_until_the_end(run_in_memory: InMemory) -> None:
    runner = Runner()
    events: list[str] = []

    @contextmanager
    def surround(attempt: Attempt) -> Generator[None, None, None]:
        events.append(f"enter {attempt.batch} {attempt.key} {attempt.number}")
        try:
            yield
        except BaseException as error:
            events.append(f"error {error}")
            raise
        events.append("leave")

    end = runner.around(surround)
    handler = failing_once(runner)
    await run_in_memory(runner)
    await handler.submit(1, key=1)
    await run_until_idle(runner)
    assert events == ["enter b 1 1", "error once", "enter b 1 2", "leave"]
    end()
    end()
    assert internals_of(runner).around == []
    await handler.submit(2, key=2)
    await run_until_idle(runner)
    assert len(events) == 4


async def test_the_first_one_is_outermost_and_its_variables_are_those_of_the_handler(run_in_memory: InMemory) -> None:
    runner = Runner()

    def surrounding(name: str) -> Callable[[Attempt], AbstractContextManager[None]]:
        @contextmanager
        def surround(attempt: Attempt) -> Generator[None, None, None]:
            token = current.set(f"{current.get()}>{name}")
            yield
            current.reset(token)

        return surround

    runner.around(surrounding("outer"))
    runner.around(surrounding("inner"))

    @runner.handler(batch="loop")
    async def in_loop(number: int) -> str:
        return current.get()

    @runner.handler(batch="thread")
    def in_thread(number: int) -> str:
        return current.get()

    await run_in_memory(runner)
    assert await (await in_loop.submit(1)).result(20) == "none>outer>inner"
    assert await (await in_thread.submit(1)).result(20) == "none>outer>inner"
    assert current.get() == "none"
