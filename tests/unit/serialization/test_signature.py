"""Only the annotation of the item must be resolvable, and a decorator may hand in arguments."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from asyncrunner import ConfigurationError, run_batch
from asyncrunner.serialization.signature import signature_of

if TYPE_CHECKING:
    from decimal import Context


@dataclass
class Item:
    number: int


async def with_an_unknown_result(item: Item) -> Context:
    raise NotImplementedError


async def with_an_unknown_parameter(item: Item, context: Context | None = None) -> int:
    raise NotImplementedError


async def with_an_unknown_item(item: Context) -> int:
    raise NotImplementedError


def with_session(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    async def wrapper(item: Any) -> Any:
        return await function("the session", item)

    return wrapper


def with_session_and_anything(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        return await function("the session", *args, **kwargs)

    return wrapper


def logged(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        return await function(*args, **kwargs)

    return wrapper


@with_session
async def of_a_session(session: Context, item: Item) -> int:
    assert str(session) == "the session"
    return item.number


@with_session_and_anything
async def of_a_session_and_anything(session: Context, item: int) -> int:
    assert str(session) == "the session"
    return item


@logged
async def of_one_item(item: Item) -> Context:
    raise NotImplementedError


@pytest.mark.parametrize(
    ("handler", "expected"),
    [
        (with_an_unknown_result, (Item, Any)),
        (with_an_unknown_parameter, (Item, int)),
        (of_a_session, (Item, int)),
        (of_a_session_and_anything, (Any, int)),
        (of_one_item, (Item, Any)),
        (functools.partial(with_an_unknown_parameter, context=None), (Item, int)),
    ],
)
def test_only_the_item_needs_a_known_annotation(handler: Any, expected: tuple[object, object]) -> None:
    assert signature_of(handler) == expected


def test_an_item_of_an_unknown_type_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="the annotation of its item cannot be resolved"):
        signature_of(with_an_unknown_item)


def test_a_local_class_is_found_if_the_handler_uses_it_and_no_obstacle_elsewhere() -> None:
    class Local:
        pass

    async def takes(item: Local) -> Local:
        return Local()

    async def returns(item: int) -> Local:
        raise NotImplementedError

    assert signature_of(takes) == (Local, Local)
    assert signature_of(returns) == (int, Any)


async def test_a_handler_with_a_decorator_that_hands_in_a_session_runs(db: str) -> None:
    items: list[Any] = [Item(1), 3]
    report = await run_batch(items[:1], of_a_session, db=db, batch="one", max_attempts=1)
    assert [outcome.result async for outcome in report.outcomes()] == [1]
    report = await run_batch(items[1:], of_a_session_and_anything, db=db, batch="two", max_attempts=1)
    assert [outcome.result async for outcome in report.outcomes()] == [3]
