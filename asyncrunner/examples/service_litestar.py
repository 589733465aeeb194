"""Durable background jobs in Litestar: ``uvicorn asyncrunner.examples.service_litestar:app``."""

from __future__ import annotations

import os
from dataclasses import dataclass

from litestar import Litestar, get, post

from asyncrunner import Runner

runner = Runner(os.environ.get("JOBS_DB", "jobs.db"))


@dataclass
class Text:
    text: str


@runner.handler(batch="words")
async def count_words(item: Text) -> int:
    return len(item.text.split())


@post("/jobs", status_code=202)
async def submit(data: Text) -> dict[str, str]:
    handle = await count_words.submit(data)
    return {"key": handle.key}


@get("/jobs/{key:str}/result")
async def result(key: str) -> dict[str, int]:
    handle = await count_words.handle(key)
    return {"words": await handle.result(timeout=10)}


app = Litestar([submit, result], lifespan=[runner.lifespan])
