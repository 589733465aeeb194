"""The stored description of an error has no secrets and a limited size, and making it never fails or hangs."""

from __future__ import annotations

import time
import traceback
from typing import Any

import pytest

from asyncrunner.serialization import error_info
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


@pytest.mark.parametrize(
    "part",
    [
        "a",
        "://",
        "a://",
        "token=",
        "authorization ",
        "bearer ",
        "'",
        "?sig=",
        "cookie:",
        "set-cookie",
        "secret_access_key",
        "eyJabcdef.",
        "eyJ",
        "--token ",
        r"-----BEGIN PRIVATE KEY-----\n",
        "--",
    ],
)
def test_a_huge_message_is_described_without_delay(part: str) -> None:
    began = time.thread_time()
    info = describe(ValueError(part * 2_000_000))
    assert time.thread_time() - began < 2
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


def raised(error: BaseException) -> BaseException:
    try:
        secret_local = "hunter2"
        raise error
    except BaseException as caught:
        assert secret_local
        return caught


def test_an_error_is_described_by_type_message_and_frames_without_locals() -> None:
    info = describe(raised(ValueError("bad number 7")))
    assert (info.type, info.message) == ("ValueError", "bad number 7")
    assert "in raised" in info.traceback
    assert "hunter2" not in info.traceback.replace('secret_local = "hunter2"', "")


def test_errors_of_one_cause_have_one_fingerprint_and_others_have_another() -> None:
    def mark(message: str, kind: type[Exception] = ValueError) -> str:
        return describe(raised(kind(message))).fingerprint

    assert mark("item 1 at 0x7f01 of 'a'") == mark("item 22 at 0x8802 of 'b'")
    assert len({mark("one thing"), mark("another thing"), mark("one thing", KeyError)}) == 3


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    "error",
    [
        Mute(),
        ValueError("\ud800\0" * 5000),
        ExceptionGroup("g", [ValueError(str(n)) for n in range(100)]),
        RecursionError("deep"),
        ValueError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_describing_never_fails_and_is_bounded_and_storable(error: Exception) -> None:
    info = describe(raised(error))
    assert len(info.message) <= 2000
    assert len(info.traceback) <= 16_384
    assert "\0" not in info.message + info.traceback
    assert (info.message + info.traceback).encode()


def test_secrets_in_messages_are_not_kept() -> None:
    error = ValueError("GET https://me:hunter2@host/x?token=hunter3&a=1 Authorization: Bearer hunter4 password='hunter5'")
    info = describe(raised(error))
    assert "hunter" not in info.message
    assert "hunter2@" not in info.traceback
    assert "https://" in info.message
    assert "a=1" in info.message


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        ("GET https://a.blob.core.windows.net/c/x?sv=2024&sig=hunter2%2Fa%3D&se=1", "sv=2024&sig=***&se=1"),
        ("403 for https://b.s3.amazonaws.com/k?X-Amz-Date=2026&X-Amz-Signature=hunter2", "X-Amz-Date=2026&X-Amz-Signature=***"),
        ("https://storage.googleapis.com/b?X-Goog-Signature=hunter2&a=1", "?X-Goog-Signature=***&a=1"),
        ("fatal: cannot read https://ghp_hunter2hunter2hunter2@github.com/me/repo", "https://***@github.com/me/repo"),
        ("proxy http://hunter2@proxy:3128 refused", "proxy http://***@proxy:3128"),
        ("headers: Cookie: session=hunter2; csrf=hunter3\nHost: h", "Cookie: ***\nHost: h"),
        ("{'Cookie': 'session=hunter2; csrf=hunter3', 'Host': 'h'}", "{'Cookie': ***, 'Host': 'h'}"),
        ("Set-Cookie: id=hunter2; Path=/", "Set-Cookie: ***"),
        ("AWS_SECRET_ACCESS_KEY=hunter2 AWS_REGION=eu", "AWS_SECRET_ACCESS_KEY=*** AWS_REGION=eu"),
        ("{'aws_secret_access_key': 'hunter2', 'region': 'eu'}", "'aws_secret_access_key': ***, 'region': 'eu'"),
        ("SecretAccessKey=hunter2", "SecretAccessKey=***"),
        ("client_secret=hunter2", "client_secret=***"),
        ("530 for ftp://me:hunter2@host/file", "ftp://me:***@host/file"),
        (
            "bad key: -----BEGIN RSA PRIVATE KEY-----\nhunter2hunter2hunter2\nhunter/+=\n-----END RSA PRIVATE KEY----- ok",
            "----- ok",
        ),
        (r"'-----BEGIN PRIVATE KEY-----\nhunter2hunter2hunter2\nhunter\n-----END PRIVATE KEY-----\n'", "KEY-----***-----END"),
        (
            "-----BEGIN EC PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES,0A\n\nhunter2hunter2hunter2\n-----END",
            "KEY-----***-----END",
        ),
        ("401 for eyJhbGciOi.eyJzdWIiOiJ.hunter2-hunter_2 at /x", "401 for *** at /x"),
        ("run mysql --password hunter2 --host db", "--password *** --host db"),
        ("Command '['mysql', '--password', 'hunter2', 'db']' failed", "'--password', ***, 'db'"),
        ("gh --access-token 'hunter2 hunter2' --verbose", "--access-token *** --verbose"),
        ("AccountName=a;AccountKey=hunter2/+==;EndpointSuffix=core", "AccountKey=***;EndpointSuffix=core"),
        ("Endpoint=sb://x/;SharedAccessKey=hunter2=", "SharedAccessKey=***"),
        ("db:\n  user: me\n  password: hunter2\n  port: 5", "password: ***\n  port: 5"),
        ('{"password": "hunter2", "port": 5}', '"password": ***, "port": 5'),
    ],
)
def test_signatures_cookies_and_keys_of_clouds_are_not_kept(text: str, stored: str) -> None:
    info = describe(raised(ValueError(text)))
    assert "hunter" not in info.message
    assert stored in info.message


@pytest.mark.parametrize(
    "text",
    [
        "ssh://git@github.com/me/repo: not found", "postgresql://app@db/main refused", "design=7&a=1", "the cookie jar is empty",
        "no such mail: me@example.org", "https://example.org/@someone/posts",
    ],
)  # fmt: skip
def test_what_only_looks_like_a_secret_is_kept(text: str) -> None:
    assert describe(raised(ValueError(text))).message == text


def chained(number: int) -> None:
    try:
        (
            raised_again(number)
            + 1
        )  # fmt: skip
    except KeyError as error:
        raise ExceptionGroup(f"group {number}", [ValueError(f"order {number}"), error]) from error


def raised_again(number: int) -> int:
    raise KeyError(f"item {number}")


def test_frames_that_are_remembered_have_the_text_of_a_traceback_and_are_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[str] = []
    real = traceback.StackSummary.format_frame_summary

    def counted(self: traceback.StackSummary, frame: traceback.FrameSummary, **options: Any) -> str:
        parsed.append(frame.name)
        return real(self, frame, **options)

    error_info._texts_of_frames.clear()
    for number in range(3):
        with pytest.raises(ExceptionGroup) as caught:
            chained(number)
        expected = "".join(traceback.format_exception(caught.value, limit=-50))
        with monkeypatch.context() as patch:
            patch.setattr(traceback.StackSummary, "format_frame_summary", counted)
            assert describe(caught.value).traceback == expected
        if number == 0:
            first = len(parsed)
    assert first > 2
    assert len(parsed) == first, "later errors at the same places need no parse"


def test_few_texts_of_frames_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(error_info, "_MAX_TEXTS_OF_FRAMES", 3)
    error_info._texts_of_frames.clear()
    for number in range(20):
        namespace: dict[str, Any] = {}
        exec(compile(f"def f{number}():\n    raise ValueError({number})", f"<{number}>", "exec"), namespace)
        with pytest.raises(ValueError, match=str(number)) as caught:
            namespace[f"f{number}"]()
        assert f"in f{number}" in describe(caught.value).traceback
        assert len(error_info._texts_of_frames) <= 3


@pytest.mark.parametrize(
    "text",
    [
        "ftp://ftp.example.org/pub/file: no such file",
        "expected -----BEGIN PRIVATE KEY----- in key.pem, which is a certificate: convert it",
        "-----BEGIN CERTIFICATE-----\nMIIBszCCAVmgAwIBAgIUabcdef\n-----END CERTIFICATE-----",
        "eyJ is how a JSON web token begins: eyJhbGciOi.e30",
        "the option --token requires an argument",
        "give --password or --token, not both; --token is missing",
        "the AccountKey of the account was not found",
        "the password was wrong",
    ],
)
def test_ordinary_text_beside_the_patterns_of_secrets_is_kept(text: str) -> None:
    assert describe(ValueError(text)).message == text


@pytest.mark.parametrize(
    ("error", "stored"),
    [
        (
            ExceptionGroup("unhandled errors in a TaskGroup", [ValueError("bad row")]),
            "ValueError: bad row (in an ExceptionGroup)",
        ),
        (
            ExceptionGroup("g", [ExceptionGroup("h", [KeyError("a"), OSError()])]),
            "KeyError: 'a' (in an ExceptionGroup with 1 more)",
        ),
        (BaseExceptionGroup("g", [SystemExit()]), "SystemExit: (in an BaseExceptionGroup)"),
    ],
)
def test_a_group_is_stored_under_the_name_of_its_first_error(error: BaseException, stored: str) -> None:
    assert str(describe(error)) == stored.replace("an Base", "a Base")
