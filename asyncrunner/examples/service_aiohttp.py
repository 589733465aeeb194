"""Durable background jobs in aiohttp: ``python -m asyncrunner.examples.service_aiohttp``."""

from __future__ import annotations

import os

from aiohttp import web

from asyncrunner import Runner

runner = Runner(os.environ.get("JOBS_DB", "jobs.db"))


@runner.handler(batch="words")
async def count_words(text: str) -> int:
    return len(text.split())


async def submit(request: web.Request) -> web.Response:
    handle = await count_words.submit(await request.text())
    return web.json_response({"key": handle.key}, status=202)


async def result(request: web.Request) -> web.Response:
    handle = await count_words.handle(request.match_info["key"])
    return web.json_response({"words": await handle.result(timeout=10)})


def make_app() -> web.Application:
    app = web.Application()
    app.cleanup_ctx.append(runner.lifespan)
    app.add_routes([web.post("/jobs", submit), web.get("/jobs/{key}/result", result)])
    return app


if __name__ == "__main__":
    web.run_app(make_app(), host="127.0.0.1", port=int(os.environ.get("PORT", "8080")))
