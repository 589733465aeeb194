"""A server that fails at times, to test crawlers: ``python -m asyncrunner.examples.flaky_server --log requests.log``.

The answer depends on the page number, the seed and the number of requests for the page, so that a run can be repeated.
It is mostly 200, and at times 429 with a Retry-After (in seconds or as a date), 503, a slow answer, no answer, or a
dropped connection. From the fourth request for a page, the answer is 200; one page in a thousand always answers 404.
The log has one line per request: time, page, number of requests for the page, answer.
"""

from __future__ import annotations

import argparse
import asyncio
import email.utils
import os
import random
import time
from collections import Counter

from aiohttp import web

__all__ = ["FlakyServer", "url_of"]
_TROUBLE = ("429 in seconds", "429 as a date", "503", "slow", "silent", "dropped")
_WEIGHTS = (3, 1, 3, 3, 0.5, 1)
_SILENCE_SECONDS = 600.0


def url_of(base: str, page: int) -> str:
    """Return the address of a page."""
    return f"{base}/page/{page}"


class FlakyServer:
    """A web server that fails; *trouble* is the share of failures among the first three requests for a page.

    *pause*: the Retry-After in whole seconds. *slow*: the seconds before a slow answer.
    """

    def __init__(self, log: str, *, seed: int = 1, trouble: float = 0.2, pause: int = 1, slow: float = 0.5) -> None:
        self._log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._seed = seed
        self._trouble = trouble
        self._pause = pause
        self._slow = slow
        self._requests: Counter[int] = Counter()

    def app(self) -> web.Application:
        """Return the web application."""
        app = web.Application()
        app.add_routes([web.get(r"/page/{page:\d+}", self.answer)])
        return app

    async def answer(self, request: web.Request) -> web.Response:
        """Answer a request for a page, correctly or with a failure."""
        page = int(request.match_info["page"])
        self._requests[page] += 1
        answer = self._choose_answer(page)
        if answer in ("slow", "200"):
            if answer == "slow":
                await asyncio.sleep(self._slow)
            response = web.Response(text=f"<title>Page {page}</title>\n{page * 'x':.1000}", content_type="text/html")
            answer = "200"
        elif answer.startswith("429"):
            at = email.utils.formatdate(time.time() + self._pause + 1, usegmt=True)  # a date has whole seconds
            response = web.Response(status=429, headers={"Retry-After": at if "date" in answer else str(self._pause)})
        elif answer == "silent":
            self._log_request(page, answer)
            await asyncio.sleep(_SILENCE_SECONDS)
            raise web.HTTPGatewayTimeout
        elif answer == "dropped":
            self._log_request(page, answer)
            if request.transport is not None:
                request.transport.close()
            return web.Response()
        else:
            response = web.Response(status=int(answer))
        self._log_request(page, answer)
        return response

    def _choose_answer(self, page: int) -> str:
        if page % 1000 == 7:
            return "404"
        rng = random.Random(f"{self._seed} {page} {self._requests[page]}")  # noqa: S311 - it chooses failures, not secrets
        if self._requests[page] >= 4 or rng.random() >= self._trouble:
            return "200"
        return rng.choices(_TROUBLE, _WEIGHTS)[0]

    def _log_request(self, page: int, answer: str) -> None:
        os.write(self._log, f"{time.monotonic():.6f} {page} {self._requests[page]} {answer}\n".encode())


async def _serve(server: FlakyServer, port: int) -> None:
    runner = web.AppRunner(server.app(), access_log=None, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port, backlog=1024)
    await site.start()
    host, bound_port = runner.addresses[0][:2]
    print(f"http://{host}:{bound_port}", flush=True)  # noqa: T201
    await asyncio.Event().wait()


def main() -> None:
    """Serve until the process is killed; the first line of stdout is the address."""
    parser = argparse.ArgumentParser(description="A server that fails at times, to test crawlers.")
    parser.add_argument("--port", type=int, default=0, help="0: any free port")
    parser.add_argument("--log", default="requests.log")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--trouble", type=float, default=0.2, help="share of failures among the first three requests for a page")
    parser.add_argument("--pause", type=int, default=1, help="seconds of Retry-After")
    options = parser.parse_args()
    server = FlakyServer(options.log, seed=options.seed, trouble=options.trouble, pause=options.pause)
    try:
        asyncio.run(_serve(server, options.port))
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
