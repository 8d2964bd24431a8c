"""A proxy between the service and its database, like Neon's, which can simulate faults of servers and networks."""

import asyncio
import ssl
import struct
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Self

from tests.support.threads import untraced

SSL_REQUEST = struct.pack("!ii", 8, 80877103)
NO_SNI = "Endpoint ID is not specified. Either please upgrade the postgres client library (libpq) for SNI support"
# The client's messages after which it waits for a response, each one a round trip: Sync, Flush, Query.
ROUND_TRIPS = (b"S", b"H", b"Q")
# The messages that are sent on with the Sync or Flush after them, as clients send them: Parse, Bind, Describe, Execute,
# Close. If a pooler closed the connection between them, the system would discard its last message.
PARTS = (b"P", b"B", b"D", b"E", b"C")
# The messages that run a statement: Execute, Query.
EXECUTIONS = (b"E", b"Q")


class FaultProxy:
    """A proxy on loopback that relays to a port or a Unix socket, `upstream`.

    With a certificate it terminates TLS, as Neon's proxy does; without one it accepts plain connections.
    """

    def __init__(self, upstream: int | str, tls: ssl.SSLContext | None = None) -> None:
        self.upstream = upstream
        self._tls = tls
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._tasks: set[asyncio.Task[None]] = set()
        self._waking = threading.Lock()
        self.port = 0
        self.round_trips = 0
        self.statements = 0
        self.connections = 0
        self.server_names: list[str] = []
        # Faults, set by the tests while it runs.
        self.refusals: deque[tuple[str, str]] = deque()  # SQLSTATE and text; one for each new connection
        self.statement_refusals: deque[tuple[str, str]] = deque()  # the same; one instead of running a statement
        self.wake: Callable[[], None] | None = None  # called while new connections are held back
        self.drop_next_response = False
        self.close_after_dropping = True
        self._clients: set[asyncio.StreamWriter] = set()
        self._relaying = asyncio.Event()
        self._relaying.set()
        if tls:
            tls.sni_callback = lambda _socket, name, _context: self.server_names.append(name)

    def __enter__(self) -> Self:
        with untraced():
            self._thread.start()
        self._server = self._run(asyncio.start_server(self._accept, "127.0.0.1", 0))
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def freeze(self) -> None:
        """Stop relaying, without closing any connection, until `unfreeze`."""
        self._loop.call_soon_threadsafe(self._relaying.clear)

    def go_half_open(self) -> None:
        """Stop relaying on the existing connections, without closing them; new ones work."""

        def go() -> None:
            self._relaying.clear()
            self._relaying = asyncio.Event()
            self._relaying.set()

        self._loop.call_soon_threadsafe(go)

    def unfreeze(self) -> None:
        """Relay again, beginning with what was held back."""
        self._loop.call_soon_threadsafe(self._relaying.set)

    def send_termination_notice(self) -> None:
        """Send every client the server's notice of termination, but leave the connection open."""

        async def say() -> None:
            for client in self._clients:
                await _refuse(client, "57P01", "terminating connection due to administrator command")

        self._run(say())

    def abort_connections(self) -> None:
        """Abort every connection."""

        async def close() -> None:
            for client in self._clients:
                client.transport.abort()

        self._run(close())

    def __exit__(self, *_: object) -> None:
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _close(self) -> None:
        self._server.close()
        await asyncio.sleep(0.05)  # so that every accepted connection has its task, which closes it
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._tasks.add(task)
        self.connections += 1
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                await self._serve(reader, writer)
        finally:
            writer.close()
            self._tasks.remove(task)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        startup = await _untyped(reader)
        if startup == SSL_REQUEST:
            writer.write(b"S" if self._tls else b"N")
            if self._tls:
                names = len(self.server_names)
                await writer.start_tls(self._tls)
                if self.server_names[names:] == [None]:
                    await _refuse(writer, "XX000", NO_SNI)
                    return
            startup = await _untyped(reader)
        if self.refusals:
            await _refuse(writer, *self.refusals.popleft())
            return
        if self.wake:
            await asyncio.to_thread(self._wake_once)
        try:
            upstream = await self._connect()
        except OSError:
            await _refuse(writer, "XX000", "Couldn't connect to compute node")
            return
        upstream[1].write(startup)
        self._clients.add(writer)
        try:
            await self._relay((reader, writer), upstream)
        finally:
            self._clients.remove(writer)
            upstream[1].close()

    def _wake_once(self) -> None:
        with self._waking:
            if self.wake:
                self.wake()
                self.wake = None

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self.upstream, int):
            return await asyncio.open_connection("127.0.0.1", self.upstream)
        return await asyncio.open_unix_connection(self.upstream)

    async def _relay(
        self,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        server: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        dropping, relaying = asyncio.Event(), self._relaying
        directions = [
            asyncio.ensure_future(self._forward(client, server[1], dropping, relaying)),
            asyncio.ensure_future(self._answer(server[0], client[1], dropping, relaying)),
        ]
        try:
            await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for direction in directions:
                direction.cancel()
            await asyncio.gather(*directions, return_exceptions=True)

    async def _forward(
        self,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        server: asyncio.StreamWriter,
        dropping: asyncio.Event,
        relaying: asyncio.Event,
    ) -> None:
        held = b""
        while True:
            kind = await client[0].readexactly(1)
            held += kind + await _untyped(client[0])
            await relaying.wait()
            if kind == b"B" and self.statement_refusals:
                await _refuse(client[1], *self.statement_refusals.popleft())
                return
            self.statements += kind in EXECUTIONS
            if kind in ROUND_TRIPS:
                self.round_trips += 1
                if self.drop_next_response and kind == b"S":
                    self.drop_next_response = False
                    dropping.set()
            if kind not in PARTS:
                server.write(held)
                held = b""

    async def _answer(
        self,
        server: asyncio.StreamReader,
        client: asyncio.StreamWriter,
        dropping: asyncio.Event,
        relaying: asyncio.Event,
    ) -> None:
        while data := await server.read(65536):
            await relaying.wait()
            if dropping.is_set():
                if not self.close_after_dropping:
                    await asyncio.Event().wait()
                return
            client.write(data)


async def _untyped(reader: asyncio.StreamReader) -> bytes:
    """Read a message without a type byte, or the rest of one after it: the length and the payload."""
    length = await reader.readexactly(4)
    return length + await reader.readexactly(struct.unpack("!i", length)[0] - 4)


async def _refuse(writer: asyncio.StreamWriter, sqlstate: str, text: str) -> None:
    fields = f"SFATAL\0VFATAL\0C{sqlstate}\0M{text}\0\0".encode()
    writer.write(b"E" + struct.pack("!i", len(fields) + 4) + fields)
    await writer.drain()
