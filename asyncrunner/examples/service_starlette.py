"""Durable background jobs in Starlette: ``uvicorn asyncrunner.examples.service_starlette:app``."""

from __future__ import annotations

import os

from starlette.applications import Starlette
from starlette.requests import Request  # noqa: TC002 - as in every Starlette application
from starlette.responses import JSONResponse
from starlette.routing import Route

from asyncrunner import Runner

runner = Runner(os.environ.get("JOBS_DB", "jobs.db"))


@runner.handler(batch="words")
async def count_words(text: str) -> int:
    return len(text.split())


async def submit(request: Request) -> JSONResponse:
    handle = await count_words.submit((await request.body()).decode())
    return JSONResponse({"key": handle.key}, status_code=202)


async def result(request: Request) -> JSONResponse:
    handle = await count_words.handle(request.path_params["key"])
    return JSONResponse({"words": await handle.result(timeout=10)})


app = Starlette(routes=[Route("/jobs", submit, methods=["POST"]), Route("/jobs/{key}/result", result)], lifespan=runner.lifespan)
