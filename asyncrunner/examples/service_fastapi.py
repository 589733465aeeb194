"""A FastAPI service with durable background jobs.

Start it with ``uvicorn asyncrunner.examples.service_fastapi:app --timeout-graceful-shutdown 10``, so that a deploy
waits at most 10 s for open requests. Submit a text with POST /jobs, and get its result with GET /jobs/{key}/result.
Accepted jobs survive a deploy and a kill -9. Worker processes can run on the same file: ``asyncrunner work
asyncrunner.examples.service_fastapi:runner``. ``JOBS_DB`` names the file.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from dataclasses import dataclass

from fastapi import FastAPI, HTTPException, Response

from asyncrunner import ItemCancelled, ItemFailed, ItemNotFound, Runner, current_attempt

runner = Runner(
    os.environ.get("JOBS_DB", "jobs.db"), concurrency=20, shutdown_timeout=float(os.environ.get("JOBS_SHUTDOWN_TIMEOUT", "5"))
)

MAX_WAIT_SECONDS = 30.0  # a request may wait this long for a result; then the client sends a new request


@dataclass
class Text:
    """A text to digest; ``seconds`` is the duration to simulate."""

    text: str
    seconds: float = 0.0


@dataclass
class Digest:
    sha256: str
    words: int
    attempt: int


@runner.handler(batch="digests", max_attempts=3, timeout=60)
async def digest(item: Text) -> Digest:
    await asyncio.sleep(item.seconds)
    if not item.text:
        raise ValueError("the text is empty")
    words = len(item.text.split())
    return Digest(hashlib.sha256(item.text.encode()).hexdigest(), words, current_attempt().number)


app = FastAPI(title="Digests", lifespan=runner.lifespan)


@app.exception_handler(ItemNotFound)
async def not_found(_request: object, error: Exception) -> Response:
    return Response(str(error), status_code=404)


@app.post("/jobs", status_code=202)
async def submit(item: Text, key: str | None = None) -> dict[str, str]:
    """Submit a job and return its key. The job is on disk before the response is sent.

    A request with the key and text of an earlier job returns that job.
    """
    handle = await digest.submit(item, key=key)
    return {"key": handle.key}


@app.get("/jobs/{key}")
async def status(key: str) -> dict[str, str]:
    handle = await digest.handle(key)
    return {"key": key, "status": await handle.status()}


@app.get("/jobs/{key}/result")
async def result(key: str, response: Response, timeout: float = 0.0) -> Digest | None:  # noqa: ASYNC109 - the client sets it
    """Return the result; 202 without a body after *timeout* seconds, 410 for a job that failed or was cancelled."""
    handle = await digest.handle(key)
    try:
        return await handle.result(timeout=min(timeout, MAX_WAIT_SECONDS))
    except TimeoutError:
        response.status_code = 202
        return None
    except (ItemFailed, ItemCancelled) as error:
        raise HTTPException(410, str(error)) from error


@app.delete("/jobs/{key}")
async def cancel(key: str) -> dict[str, bool]:
    handle = await digest.handle(key)
    return {"cancelled": await handle.cancel()}
