"""Options that no file or clock could hold are refused at construction."""

from __future__ import annotations

from typing import Any

import pytest

from asyncrunner import ConfigurationError
from asyncrunner.domain.options import Settings


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("db", None, "give the path"), ("db", b"x", "give the path"), ("batch", "a\0", "without NUL"), ("batch", "\ud800", "surrogates"),
        ("max_attempts", 2**63, "at most"), ("concurrency", 10**5000, "at most"), ("retry_failed", "false", "True or False"),
        ("timeout", float("nan"), "seconds"),
    ],
    ids=lambda value: str(value)[:10] if not isinstance(value, int) else "number",
)  # fmt: skip
def test_what_cannot_be_stored_or_waited_for_is_refused(option: str, value: Any, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        Settings(**{option: value})
