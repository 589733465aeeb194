"""The default name of a batch is the name of its handler."""

from __future__ import annotations

from functools import partial

import pytest

from asyncrunner import ConfigurationError
from asyncrunner.submission.naming import default_batch, handler_name


async def handler(number: int) -> None: ...


class Called:
    def __call__(self, item: int) -> None: ...


def test_a_handler_names_its_batch() -> None:
    assert handler_name(handler) == "tests.unit.submission.test_naming:handler"
    assert handler_name(partial(partial(handler))) == "tests.unit.submission.test_naming:handler"
    assert handler_name(Called()) == "tests.unit.submission.test_naming:Called"
    with pytest.raises(ConfigurationError, match="lambda"):
        default_batch(lambda item: item)
