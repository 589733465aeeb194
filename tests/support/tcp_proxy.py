"""A TCP proxy between the clients and a PostgreSQL server, which is a network with faults that a test chooses.

It reads the messages of PostgreSQL's protocol, so that a test can choose the statement at which a connection breaks. It cannot
read TLS. The kernel of this machine answers keepalives on both sides of the proxy: a test about keepalives needs
``tests/support/network.py``.
"""

from __future__ import annotations

import asyncio
import struct
import threading
from collections.abc import Callable, Coroutine, Iterator
from enum import Enum
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit, urlunsplit

from tests.support.postgres_server import free_ports

T = TypeVar("T")

_ENCRYPTION_REQUESTS: Final = {80877103, 80877104}  # SSLRequest, GSSENCRequest: the answer is one byte
_CALL_SECONDS: Final = 20.0


class Fault(Enum):
    """What happens to a connection at a statement."""

    CUT_BEFORE = "the connection is cut; the server never receives the statement"
    CUT_AFTER = "the server runs the statement to its end, then the connection is cut; the client never receives the answer"
    NO_ANSWER = "the server runs the statement to its end; the client never receives the answer, and the connection stays open"


class Occurrence(threading.Event):
    """An event that is set when the fault has happened: for those after a statement, when the server has answered."""

    def __init__(self, text: str, fault: Fault) -> None:
        super().__init__()
        self.text = text.encode()
        self.fault = fault

    async def happened(self, seconds: float = 20.0) -> None:
        """Wait without blocking the event loop. Raises TimeoutError."""
        if not await asyncio.to_thread(self.wait, seconds):
            raise TimeoutError(f"the proxy did not see the statement {self.text!r}")


class TcpProxy:
    """A proxy in a thread with an event loop of its own; every method may be called from any thread.

    Use it as a context manager. *target*: the host and port of the server; it may be changed, and new connections go there.
    """

    def __init__(self, target: tuple[str, int]) -> None:
        self.target = target
        self.to_server_seconds = 0.0
        """The delay of what a client sends."""
        self.to_client_seconds = 0.0
        """The delay of what the server sends."""
        (self.port,) = free_ports(1)
        self._occurrences: list[Occurrence] = []
        self._links: set[_Link] = set()
        self._flowing = asyncio.Event()
        self._listener: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="tcp-proxy", daemon=True)

    def __enter__(self) -> TcpProxy:
        self._thread.start()
        self.heal()
        self.accept()
        return self

    def __exit__(self, *_: object) -> None:
        self.refuse()
        self._call(self._end_links())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def url(self, direct: str) -> str:
        """Return the URL of a server or a store with the proxy in place of the server's address."""
        parts = urlsplit(direct)
        user, at, _ = parts.netloc.rpartition("@")
        return urlunsplit(parts._replace(netloc=f"{user}{at}127.0.0.1:{self.port}"))

    @property
    def connections(self) -> int:
        """The number of connections that are open."""
        return len(self._links)

    def accept(self) -> None:
        """Accept new connections; the proxy does so from its start."""
        self._call(self._accept())

    def refuse(self) -> None:
        """Refuse new connections, as a machine on which no server listens; open connections stay."""
        self._call(self._refuse())

    def cut(self) -> int:
        """Reset every open connection on both sides, and return their number."""
        return self._call(self._cut())

    def delay(self, *, to_server: float = 0.0, to_client: float = 0.0) -> None:
        """Delay the bytes in each direction by so many seconds, from the next bytes on."""
        self.to_server_seconds, self.to_client_seconds = to_server, to_client

    def black_hole(self) -> None:
        """Keep the connections and forward nothing, not even an end, until ``heal``; new connections are accepted and get no answer."""
        self._on_loop(self._flowing.clear)

    def heal(self, *, deliver: bool = True) -> None:
        """End the black hole. The kept bytes are delivered, as TCP does; with *deliver* False, the connections are reset."""
        if not deliver:
            self.cut()
        self._on_loop(self._flowing.set)

    def at(self, text: str, fault: Fault) -> Occurrence:
        """Let the fault happen once, at the next statement whose text contains *text*.

        The statement counts when it runs, also when it was prepared earlier: a prepared statement is known by the text it had.
        """
        occurrence = Occurrence(text, fault)
        self._on_loop(lambda: self._occurrences.append(occurrence))
        return occurrence

    def _on_loop(self, function: Callable[[], object]) -> None:
        async def called() -> None:
            function()

        self._call(called())

    def _call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(_CALL_SECONDS)

    async def _accept(self) -> None:
        if self._listener is None:
            self._listener = await asyncio.start_server(self._connected, "127.0.0.1", self.port)

    async def _refuse(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()

    async def _cut(self) -> int:
        links = list(self._links)
        for link in links:
            link.reset()
        return len(links)

    async def _end_links(self) -> None:
        self._flowing.set()
        tasks = [task for link in self._links for task in link.tasks]
        await self._cut()
        await asyncio.gather(*tasks, return_exceptions=True)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._flowing.wait()
        try:
            server_reader, server_writer = await asyncio.open_connection(*self.target)
        except OSError:
            writer.transport.abort()
            return
        link = _Link(self, writer, server_writer)
        self._links.add(link)
        try:
            await link.run(reader, server_reader)
        finally:
            self._links.discard(link)

    def next_occurrence(self, text: bytes) -> Occurrence | None:
        """Take the first fault that waits for a statement with this text."""
        for occurrence in self._occurrences:
            if occurrence.text in text:
                self._occurrences.remove(occurrence)
                return occurrence
        return None

    async def flowing(self) -> None:
        """Wait until the proxy is no black hole."""
        await self._flowing.wait()


class _Link:
    """A client's connection and the proxy's connection to the server for it."""

    def __init__(self, proxy: TcpProxy, to_client: asyncio.StreamWriter, to_server: asyncio.StreamWriter) -> None:
        self._proxy = proxy
        self._to_client = to_client
        self._to_server = to_server
        self._statements: dict[bytes, bytes] = {}
        self._from_client = _Messages(untyped_start=True)
        self._from_server = _Messages(untyped_start=False)
        self._occurrence: Occurrence | None = None
        self.tasks: list[asyncio.Task[None]] = []

    def reset(self) -> None:
        """Reset both connections."""
        for writer in (self._to_client, self._to_server):
            writer.transport.abort()
        for task in self.tasks:
            task.cancel()

    async def run(self, client: asyncio.StreamReader, server: asyncio.StreamReader) -> None:
        """Forward until one side has ended."""
        self.tasks = [
            asyncio.ensure_future(self._forward(client, self._to_server, self._sent, lambda: self._proxy.to_server_seconds)),
            asyncio.ensure_future(self._forward(server, self._to_client, self._answered, lambda: self._proxy.to_client_seconds)),
        ]
        await asyncio.wait(self.tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for writer in (self._to_client, self._to_server):
            writer.close()

    async def _forward(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        look: Callable[[bytes], bytes],
        delay: Callable[[], float],
    ) -> None:
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def read() -> None:
            data = b" "
            while data:
                try:
                    data = await reader.read(65_536)
                except OSError:
                    data = b""
                await queue.put((loop.time() + delay(), data))

        reading = asyncio.ensure_future(read())
        try:
            while True:
                due, data = await queue.get()
                if (wait := due - loop.time()) > 0:
                    await asyncio.sleep(wait)
                await self._proxy.flowing()
                if not data:
                    return
                if forwarded := look(data):
                    writer.write(forwarded)
                    await writer.drain()
        except OSError:
            return
        finally:
            reading.cancel()

    def _sent(self, data: bytes) -> bytes:
        """Look at what the client sends, and return what the server gets of it."""
        for kind, body in self._from_client.feed(data):
            if kind == b"":  # a message of the start: an encryption request is answered by one byte
                self._from_server.skip += struct.unpack("!I", body[:4])[0] in _ENCRYPTION_REQUESTS
            elif kind == b"P":
                name, text, _ = body.split(b"\0", 2)
                self._statements[name] = text
            elif kind == b"Q" or kind == b"B":
                text = body if kind == b"Q" else self._statements.get(body.split(b"\0", 2)[1], b"")
                occurrence = self._proxy.next_occurrence(text) if self._occurrence is None else None
                if occurrence is not None and occurrence.fault is Fault.CUT_BEFORE:
                    self.reset()
                    occurrence.set()
                    return b""
                self._occurrence = self._occurrence or occurrence
        return data

    def _answered(self, data: bytes) -> bytes:
        """Look at what the server sends, and return what the client gets of it."""
        messages = list(self._from_server.feed(data))
        if self._occurrence is None:
            return data
        # Ready for a query: the transaction of a single statement is committed.
        if any(kind == b"Z" for kind, _ in messages) and not self._occurrence.is_set():
            if self._occurrence.fault is Fault.CUT_AFTER:
                self.reset()
            self._occurrence.set()
        return b""


class _Messages:
    """Splits a stream of bytes into the messages of PostgreSQL's protocol.

    *untyped_start*: the first messages have no type, up to the one that begins the session.
    """

    def __init__(self, *, untyped_start: bool) -> None:
        self._untyped = untyped_start
        self._buffer = bytearray()
        self.skip = 0
        """The number of next bytes that are no message."""

    def feed(self, data: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield the type and the body of each message that is complete now; the type is empty for an untyped one."""
        self._buffer += data
        while self._buffer:
            if self.skip:
                skipped = min(self.skip, len(self._buffer))
                del self._buffer[:skipped]
                self.skip -= skipped
                continue
            head = 0 if self._untyped else 1
            if len(self._buffer) < head + 4:
                return
            (length,) = struct.unpack_from("!I", self._buffer, head)
            if len(self._buffer) < head + length:
                return
            kind, body = bytes(self._buffer[:head]), bytes(self._buffer[head + 4 : head + length])
            del self._buffer[: head + length]
            if self._untyped and struct.unpack("!I", body[:4])[0] not in _ENCRYPTION_REQUESTS:
                self._untyped = False
            yield kind, body
