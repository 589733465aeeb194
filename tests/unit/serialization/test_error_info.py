"""What is kept of an error holds no secrets, is bounded, and describing it never fails or hangs."""

from __future__ import annotations

import time

import pytest

from asyncrunner.serialization.error_info import describe


@pytest.mark.parametrize(
    "text",
    [
        "postgres://me:hunter2@host/db",
        "redis://:hun@ter2@host",
        "Authorization: ApiKey hunter2",
        "{'Authorization': 'Bearer hunter2'}",
        '{"password": "hunter2 hunter2"}',
        "x-api-key: hunter2",
        "access_token=hunter2&a=1",
        "sent Bearer hunter2hunter2",
    ],
)
def test_no_secret_is_left_of_a_message(text: str) -> None:
    message = describe(ValueError(text)).message
    assert "ter2" not in message
    assert "***" in message


@pytest.mark.parametrize("part", ["a", "://", "a://", "token=", "authorization ", "bearer ", "'"])
def test_a_huge_message_is_described_at_once(part: str) -> None:
    began = time.perf_counter()
    info = describe(ValueError(part * 2_000_000))
    assert time.perf_counter() - began < 2
    assert len(info.message) <= 2000


def test_a_secret_is_hidden_also_where_a_long_message_is_cut() -> None:
    info = describe(ValueError("token=" + "hunter2" * 100 + " " + "x" * 1800))
    assert "hunter2" not in info.message


def test_a_type_with_a_name_that_is_no_text_is_described() -> None:
    kind = type("Odd", (Exception,), {"__module__": "m\ud800\0", "__qualname__": "Q"})
    info = describe(kind("boom"))
    assert info.type.encode()
    assert "\0" not in info.type


def test_errors_that_differ_in_a_uuid_alone_have_one_fingerprint() -> None:
    one = describe(ValueError("no user 1b4e28ba-2fa1-11d2-883f-b9a761bde3fb")).fingerprint
    other = describe(ValueError("no user 9c5b94b1-35ad-49bb-b118-8e8fc24abf80")).fingerprint
    assert one == other
