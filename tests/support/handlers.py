"""Handlers that several tests register."""

from __future__ import annotations

import logging
from typing import Any

from asyncrunner import Fail, RetryPolicy, Runner


def failing_once(runner: Runner) -> Any:
    @runner.handler(batch="b", max_attempts=2, retry=RetryPolicy(initial=0))
    async def handler(number: int) -> int:
        from asyncrunner import current_attempt

        logging.getLogger("mine").info("working")
        if current_attempt().number == 1:
            raise ValueError("once")
        if number == 13:
            raise Fail("never")
        return number

    return handler
