"""Errors are recognized by the names of their types."""

from __future__ import annotations

import aiohttp
import httpx
import pytest
import requests

from asyncrunner import ConfigurationError
from asyncrunner.domain.error_names import errors_named, looks_like_a_bug

REQUEST = httpx.Request("GET", "http://x")


@pytest.mark.parametrize(
    ("name", "error", "expected"),
    [
        ("ValueError", ValueError(), True),
        ("ValueError", UnicodeError(), True),  # a subclass
        ("builtins.ValueError", ValueError(), True),
        ("UnicodeError", ValueError(), False),
        ("Error", ValueError(), False),
        ("httpx.ReadTimeout", httpx.ReadTimeout("x", request=REQUEST), True),
        ("httpx.TimeoutException", httpx.ReadTimeout("x", request=REQUEST), True),
        ("aiohttp.ReadTimeout", httpx.ReadTimeout("x", request=REQUEST), False),
        ("htt.ReadTimeout", httpx.ReadTimeout("x", request=REQUEST), False),
        ("requests.HTTPError", requests.HTTPError(), True),  # defined in requests.exceptions
        ("requests.exceptions.HTTPError", requests.HTTPError(), True),
        ("aiohttp.ClientError", aiohttp.ClientConnectionError(), True),
        ("object", ValueError(), False),
        ("KeyError, ValueError", ValueError(), True),
        ("KeyError,TypeError", ValueError(), False),
    ],
)
def test_an_error_is_named_by_its_type_or_a_base_alone_or_with_a_module(name: str, error: BaseException, expected: bool) -> None:
    assert errors_named("--permanent", [name])(error) is expected
    assert errors_named("--permanent", ["OSError.X", name])(error) is expected


@pytest.mark.parametrize("text", ["", "ValueError,", "Value Error", "httpx:ReadTimeout", "httpx.", ".ValueError", "HTTP 404"])
def test_a_text_that_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"--permanent '.*': give the name of an exception type, as in ValueError"):
        errors_named("--permanent", [text])


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ("KeyError: 'price'", True),
        ("NotImplementedError", True),
        ("ModuleNotFoundError: No module named 'x'", True),
        ("ValueError: KeyError: x", False),
        ("shop.KeyError: x", False),
        ("", False),
    ],
)
def test_which_errors_look_like_a_bug(error: str, expected: bool) -> None:
    assert looks_like_a_bug(error) is expected
