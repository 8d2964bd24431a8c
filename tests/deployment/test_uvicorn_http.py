"""Refusals by the server's protocol, before a request is parsed: the same as the door's, and never out of order."""

import asyncio
import gc
import re
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress

import pytest
import uvicorn
import uvloop
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tests.support.api import Holding, Person
from todo_api.database.waiting import Waiter
from todo_api.main import create_app
from todo_api.settings import Settings
from todo_api.uvicorn_http import Protocol

ORIGIN = "https://app.example.com"
LIMIT = 4  # requests in flight
GET = "GET /api/flood/tasks HTTP/1.1\r\nHost: x\r\n"
HEALTH = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"
Answer = tuple[str, dict[str, str], bytes]


class Connection:
    """A connection to the server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def answer(self) -> Answer:
        """Read one response."""
        async with asyncio.timeout(10):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
            first, *lines = head[:-4].split("\r\n")
            headers = dict(line.split(": ", 1) for line in lines)
            return first, headers, await self.reader.readexactly(int(headers["content-length"]))

    async def ask(self, request: bytes) -> Answer:
        """Send a request, and read the response."""
        self.writer.write(request)
        return await self.answer()

    async def status(self, request: bytes) -> int:
        """Send a request, and return the status of the response."""
        return int((await self.ask(request))[0].split()[1])

    async def is_silent(self) -> bool:
        """Tell whether nothing is received for some time."""
        try:
            async with asyncio.timeout(0.1):
                await self.reader.read(1)
        except TimeoutError:
            return True
        return False


class Server:
    """A running server; `called` has the method and path of each request that reached the application.

    With a prefix, the application has only the paths under it; another application has the others.
    """

    def __init__(self, settings: Settings, prefix: str = "") -> None:
        self.called: list[str] = []
        self._prefix = prefix
        self._backend = Holding()
        self._app = create_app(settings, self._backend)
        self.pool = self._app.state.database._connections  # noqa: SLF001  # to hold one without a statement
        self.refused = self.pool.refusals.counts
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[Connection] = []

    async def _dispatch(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            self.called.append(f"{scope['method']} {scope['path']}")
            if not scope["path"].startswith(self._prefix):
                await PlainTextResponse("other")(scope, receive, send)
                return
            if self._prefix:
                scope = {**scope, "root_path": self._prefix}
        await self._app(scope, receive, send)

    @asynccontextmanager
    async def running(
        self, protocol: type[asyncio.Protocol], keep_alive: int, headers: list[tuple[str, str]]
    ) -> AsyncIterator[None]:
        config = uvicorn.Config(
            self._dispatch,
            interface="asgi3",
            http=protocol,
            log_config=None,
            timeout_keep_alive=keep_alive,
            headers=headers,
        )
        self._server = server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve(sockets=[self._listener]))
        try:
            first = await self.connect()  # its request waits for the database
            assert await first.status(self._request("Authorization: flood\r\n")) == 200
            self.called.clear()
            yield
        finally:
            self.release()
            self.stop()
            await serving
            for connection in self._open:
                connection.writer.close()
                with suppress(ConnectionError):
                    await connection.writer.wait_closed()

    async def connect(self) -> Connection:
        connection = Connection(*await asyncio.open_connection(*self._listener.getsockname()))
        self._open.append(connection)
        return connection

    def _request(self, headers: str) -> bytes:
        return f"GET {self._prefix}/api/flood/tasks HTTP/1.1\r\n{headers}\r\n".encode()

    async def hold(self, number: int) -> list[Connection]:
        """Send requests that stay in flight, on a connection each."""
        before = len(self.called)
        connections = [await self.connect() for _ in range(number)]
        for connection in connections:
            connection.writer.write(self._request("Hold: 1\r\nAuthorization: flood\r\n"))
        await self.reached(before + number)
        return connections

    async def reached(self, number: int) -> None:
        """Wait until as many requests have reached the application."""
        await until(lambda: len(self.called) >= number)

    @asynccontextmanager
    async def busy_pool(self) -> AsyncIterator[None]:
        """Use the pool's only connection until the block ends."""
        connection = await self.pool.acquire(Waiter("uses it"))
        try:
            yield
        finally:
            self.pool.release(connection)

    @property
    def protocols(self) -> dict[tuple[str, int], Protocol]:
        """The connections' protocols, by the address of the client."""
        connections = self._server.server_state.connections
        return {each.client: each for each in connections if isinstance(each, Protocol) and each.client}

    @property
    def requests(self) -> int:
        """The number of requests that were answered, as uvicorn's `--limit-max-requests` counts them."""
        return self._server.server_state.total_requests

    def release(self) -> None:
        """Let the requests in flight go on."""
        self._backend.released.set()

    def stop(self) -> None:
        """Begin the graceful shutdown."""
        self._server.should_exit = True


@pytest.fixture(autouse=True)
def bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allow a few requests in flight, no burst and no delay."""
    for name, value in {"LEAST_IN_FLIGHT": LIMIT, "IN_FLIGHT_PER_CONNECTION": 0, "BURST_SECONDS": 0}.items():
        monkeypatch.setattr(f"todo_api.admission.{name}", value)
    monkeypatch.setattr("todo_api.door.MOST_DELAYED", 0)
    monkeypatch.setattr("todo_api.uvicorn_http.MOST_DELAYED", 0)


@pytest.fixture
def delays(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Delay one refusal at a time."""

    def set_delay(seconds: float) -> None:
        monkeypatch.setattr("todo_api.uvicorn_http.MOST_DELAYED", 1)
        for name in ("DELAY_SECONDS", "LONGEST_DELAY_SECONDS"):
            monkeypatch.setattr(f"todo_api.door.{name}", seconds)

    return set_delay


@pytest.fixture(autouse=True)
def no_cycles() -> Iterator[None]:
    """Collect what the server has left, so that a warning about it fails this test and no other."""
    yield
    gc.collect()


def run(
    settings: Settings,
    test: Callable[[Server], Awaitable[None]],
    protocol: type[asyncio.Protocol] = Protocol,
    keep_alive: int = 60,
    prefix: str = "",
    headers: Sequence[tuple[str, str]] = (),
) -> None:
    async def main() -> None:
        server = Server(settings.model_copy(update={"cors_origins": (ORIGIN,)}), prefix)
        async with server.running(protocol, keep_alive, [*headers]):
            await test(server)

    uvloop.run(main())  # as uvicorn does


FORMS = {
    # form: the request's head, its body, and whether it is plain
    "list": (GET, "", True),
    "get": ("GET /api/flood/tasks/1 HTTP/1.1\r\n", "", True),
    "query": ("GET /api/flood/tasks?status=open&limit=%31 HTTP/1.1\r\n", "", True),
    "delete": ("DELETE /api/flood/tasks/1 HTTP/1.1\r\nhost:x\r\n", "", True),
    "complete": ("PATCH /api/flood/tasks/1/complete HTTP/1.1\r\nContent-Length: 0\r\n", "", True),
    "create": ("POST /api/flood/tasks HTTP/1.1\r\ncontent-length: 2\r\nContent-Type: application/json\r\n", "{}", True),
    "update": ("PUT /api/flood/tasks/1 HTTP/1.1\r\nConnection: Keep-Alive\r\nCONTENT-LENGTH:2\r\nX: 1\r\n", "{}", True),
    "id": (f"{GET}X-Request-ID: the-id\r\n", "", True),
    "two ids": (f"{GET}X-Request-ID: one\r\nx-request-id:two\r\n", "", True),
    "origin": (f"{GET}Origin: {ORIGIN}\r\nX-Request-ID: the-id\r\n", "", True),
    "any bytes in a header": (f"{GET}X-Any: \t\u00e9 \u00ff\r\nX-Empty:\r\n", "", True),
    "encoded owner": ("GET /api/f%6Cood/tasks HTTP/1.1\r\n", "", False),
    "other path": ("GET /api/flood/other HTTP/1.1\r\n", "", False),
    "preflight": (f"OPTIONS /api/flood/tasks HTTP/1.1\r\nOrigin: {ORIGIN}\r\n", "", False),
    "old version": ("GET /api/flood/tasks HTTP/1.0\r\n", "", False),
    "closing": (f"{GET}Connection: close\r\n", "", False),
    "closing, for a proxy": (f"{GET}Proxy-Connection: close\r\n", "", False),
    "upgrade": (f"{GET}Connection: Upgrade\r\nUpgrade: h2c\r\n", "", False),
    "mention of an upgrade": (f"{GET}Upgrade: h2c\r\n", "", True),
    "long id": (f"{GET}X-Request-ID: {'x' * 129}\r\n", "", False),
    "two origins": (f"{GET}Origin: https://other.example.com\r\nHost: x\r\nOrigin: {ORIGIN}\r\n", "", False),
    "long target": (f"GET /api/flood/tasks?{'x' * 70_000} HTTP/1.1\r\n", "", False),
    "invalid id": (f"{GET}X-Request-ID: the id\r\n", "", False),
    "other origin": (f"{GET}Origin: https://other.example.com\r\n", "", False),
    "expectation": (f"{GET}Expect: 100-continue\r\n", "", False),
    "chunks": ("POST /api/flood/tasks HTTP/1.1\r\nTransfer-Encoding: chunked\r\n", "2\r\n{}\r\n0\r\n\r\n", False),
    "two lengths": ("POST /api/flood/tasks HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 2\r\n", "{}", False),
    "space in a length": ("POST /api/flood/tasks HTTP/1.1\r\nContent-Length : 2\r\n", "{}", False),
    "line feed in a header": (f"{GET}X: 1\nContent-Length: 2\r\n", "{}", False),
    "folded header": (f"{GET}X: 1\r\n 2\r\n", "", False),
    "zero byte in a header": (f"{GET}X: \0\r\n", "", False),
}


def create(person: Person, title: str) -> bytes:
    body = b'{"title": "%s"}' % title.encode()
    head = f"POST {person.path} HTTP/1.1\r\nAuthorization: {person.id}\r\nContent-Type: application/json\r\n"
    return b"%bContent-Length: %d\r\n\r\n%b" % (head.encode(), len(body), body)


async def until(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  # there is no event for it
            await asyncio.sleep(0.001)


def comparable(answer: Answer) -> Answer:
    first, headers, body = answer
    if re.fullmatch("[0-9a-f]{32}", headers.get("x-request-id", "")):
        headers["x-request-id"] = "new"
    return first, {**headers, "date": "now"}, body


@pytest.mark.parametrize("form", FORMS)
def test_response_is_the_doors(settings: Settings, form: str) -> None:
    head, body, is_plain = FORMS[form]
    request = f"{head}\r\n{body}".encode("latin-1")
    answers = []
    reached = []

    async def test(server: Server) -> None:
        await server.hold(LIMIT)
        before = len(server.called)
        answers.append(comparable(await (await server.connect()).ask(request)))
        reached.append(len(server.called) - before)

    run(settings, test, HttpToolsProtocol)
    run(settings, test)

    assert answers[0] == answers[1]
    assert answers[0][0] in ("HTTP/1.1 503 Service Unavailable", "HTTP/1.1 400 Bad Request")
    if is_plain:
        assert reached == [1, 0]
    else:
        assert reached[0] == reached[1]


def test_refused_connections_are_kept(settings: Settings) -> None:
    async def test(server: Server) -> None:
        held = await server.hold(LIMIT)
        connection = await server.connect()
        plain = f"{GET}Authorization: flood\r\n\r\n".encode()
        before = server.requests
        assert [await connection.status(plain) for _ in range(3)] == [503] * 3
        assert server.requests == before + 3
        assert await connection.status(HEALTH) == 200
        before = len(server.called)
        assert await connection.status(plain) == 503
        assert len(server.called) == before
        assert server.refused["door"] == 4
        server.release()
        for each in held:
            await each.answer()
        assert await connection.status(plain) == 200

    run(settings, test)


def test_refused_connections_are_closed_when_idle(settings: Settings) -> None:
    async def test(server: Server) -> None:
        await server.hold(LIMIT)
        connection = await server.connect()
        for _ in range(4):
            assert await connection.status(f"{GET}\r\n".encode()) == 503
            await asyncio.sleep(0.6)  # together longer than the timeout
        async with asyncio.timeout(5):
            assert await connection.reader.read() == b""

    run(settings, test, keep_alive=1)


async def arrive_apart(connection: Connection, *parts: bytes) -> None:
    """Send parts so that the server receives each one alone."""
    for part in parts:
        connection.writer.write(part)
        await asyncio.sleep(0.05)


def test_what_looks_like_a_request_inside_of_another_is_not_answered(settings: Settings) -> None:
    plain = f"{GET}\r\n".encode()

    async def test(server: Server) -> None:
        await server.hold(LIMIT)
        for parts, status in {
            (b"POST /api/flood/tasks HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(plain), plain): 503,
            (b"POST /health HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(plain), plain): 405,
            (
                b"POST /api/flood/tasks HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
                b"%x\r\n" % len(plain),
                plain,
            ): 503,
            (b"GET /health/live HTTP/1.1\r\nX-A: ", plain): 200,
            (b"GET /health/live HTTP/1.1\r\n", plain): 400,
        }.items():
            connection = await server.connect()
            await arrive_apart(connection, *parts)
            connection.writer.write_eof()
            answers = (await connection.reader.read()).split(b"HTTP/1.1 ")
            assert [answer[:3] for answer in answers[1:]] == [b"%d" % status]

    run(settings, test)


def test_pipelined_requests_are_answered_in_order(settings: Settings) -> None:
    async def test(server: Server) -> None:
        connection, *_ = await server.hold(LIMIT)
        await arrive_apart(connection, f"{GET}\r\n".encode())
        server.release()
        assert (await connection.answer())[0] == "HTTP/1.1 200 OK"
        assert (await connection.answer())[0] in ("HTTP/1.1 401 Unauthorized", "HTTP/1.1 503 Service Unavailable")
        await server.connect()

    run(settings, test)


def test_requests_in_one_packet_are_all_answered(settings: Settings) -> None:
    async def test(server: Server) -> None:
        await server.hold(LIMIT)
        connection = await server.connect()
        connection.writer.write(f"{GET}\r\n".encode() * 3)
        assert {(await connection.answer())[0] for _ in range(3)} == {"HTTP/1.1 503 Service Unavailable"}

    run(settings, test)


def test_requests_that_arrive_at_once_are_counted(settings: Settings) -> None:
    async def test(server: Server) -> None:
        await server.hold(LIMIT // 2)
        connections = [await server.connect() for _ in range(50)]
        await asyncio.sleep(0.1)
        before = len(server.called)
        for connection in connections:
            connection.writer.write(f"{GET}Authorization: flood\r\n\r\n".encode())
        statuses = [(await connection.answer())[0] for connection in connections]
        assert statuses.count("HTTP/1.1 503 Service Unavailable") >= 50 - LIMIT
        assert len(server.called) - before < LIMIT
        assert await connections[0].status(f"{GET}Authorization: flood\r\n\r\n".encode()) == 200, "they are done"

    run(settings, test)


def test_client_that_does_not_read_is_left_to_the_door(settings: Settings) -> None:
    async def test(server: Server) -> None:
        await server.hold(LIMIT)
        connection = await server.connect()
        plain = f"{GET}\r\n".encode()
        assert await connection.status(plain) == 503
        protocol = server.protocols[connection.writer.get_extra_info("sockname")]
        protocol.pause_writing()  # as its transport does when its buffer is full
        connection.writer.write(plain)
        await server.reached(LIMIT + 1)
        protocol.resume_writing()
        assert (await connection.answer())[0] == "HTTP/1.1 503 Service Unavailable"

    run(settings, test)


def test_request_of_a_client_that_has_left_runs_nothing(
    settings: Settings, alice: Person, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr("todo_api.database.waiting.WATCH_SECONDS", 1000)
    monkeypatch.setattr("todo_api.database.waiting.FEW", 0)

    async def test(server: Server) -> None:
        leaving, staying = [await server.connect() for _ in range(2)]
        async with server.busy_pool():
            leaving.writer.write(create(alice, "left"))
            staying.writer.write(create(alice, "stayed"))
            connections = len(server.protocols)
            await until(lambda: server.pool.waiting == 2)
            leaving.writer.close()
            await until(lambda: len(server.protocols) < connections)
            assert server.pool.waiting == 2
        assert (await staying.answer())[0] == "HTTP/1.1 201 Created"
        assert [task["title"] for task in await asyncio.to_thread(alice.stored)] == ["stayed"]

    run(settings.model_copy(update={"pool_size": 1}), test)

    assert "POST /api/{user_id}/tasks 0 " in caplog.text
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


def test_client_that_leaves_is_found_behind_a_pipelined_request(
    settings: Settings, alice: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("todo_api.database.waiting.MOST_SECONDS", 1000)

    async def test(server: Server) -> None:
        leaving = await server.connect()
        async with server.busy_pool():
            leaving.writer.write(create(alice, "left"))
            await until(lambda: server.pool.waiting == 1)
            leaving.writer.write(HEALTH)
            await asyncio.sleep(0.05)
            leaving.writer.close()
            await until(lambda: server.pool.waiting == 0)
        assert await asyncio.to_thread(alice.stored) == []

    run(settings.model_copy(update={"pool_size": 1}), test)


def test_connection_that_was_reset_leaves_no_timer(settings: Settings) -> None:
    async def test(server: Server) -> None:
        await server.hold(LIMIT)
        connection = await server.connect()
        assert await connection.status(f"{GET}\r\n".encode()) == 503
        protocol = server.protocols[connection.writer.get_extra_info("sockname")]
        no_linger = struct.pack("ii", 1, 0)
        connection.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, no_linger)
        connection.writer.transport.abort()
        await until(lambda: protocol not in server.protocols.values())
        assert protocol.timeout_keep_alive_task is None

    run(settings, test)


def test_header_that_closes_connections_closes_them(settings: Settings) -> None:
    async def test(server: Server) -> None:
        await server.hold(LIMIT)
        connection = await server.connect()
        assert await connection.status(f"{GET}\r\n".encode()) == 503
        async with asyncio.timeout(10):
            assert await connection.reader.read() == b""

    run(settings, test, headers=[("Connection", "close")])


def test_refusals_of_a_flood_are_delayed(settings: Settings, delays: Callable[[float], None]) -> None:
    async def test(server: Server) -> None:
        await server.hold(LIMIT)
        delays(60)
        delayed, other = await server.connect(), await server.connect()
        delayed.writer.write(f"{GET}\r\n".encode())
        await asyncio.sleep(0.1)
        assert await other.status(f"{GET}\r\n".encode()) == 503, "only one at a time"
        assert await delayed.is_silent()
        server.stop()
        assert (await delayed.answer())[0] == "HTTP/1.1 503 Service Unavailable"
        assert len(server.called) == LIMIT

    run(settings, test)


def test_delay_is_not_the_idle_time_of_the_connection(settings: Settings, delays: Callable[[float], None]) -> None:
    async def test(server: Server) -> None:
        await server.hold(LIMIT)
        delays(2)
        connection = await server.connect()
        assert await connection.status(HEALTH) == 200
        assert await connection.status(f"{GET}\r\n".encode()) == 503

    run(settings, test, keep_alive=1)


def test_data_during_a_delay_ends_it(settings: Settings, delays: Callable[[float], None]) -> None:
    async def test(server: Server) -> None:
        await server.hold(LIMIT)
        connection = await server.connect()
        assert await connection.status(HEALTH) == 200
        delays(60)
        connection.writer.write(f"{GET}\r\n".encode())
        await asyncio.sleep(0.1)
        connection.writer.write(HEALTH)
        assert await connection.is_silent()
        protocol = server.protocols[connection.writer.get_extra_info("sockname")]
        protocol.data_received(HEALTH)  # as TLS does with what it had read before reading was paused
        answers = [(await connection.answer())[0] for _ in range(3)]
        assert answers == ["HTTP/1.1 503 Service Unavailable", "HTTP/1.1 200 OK", "HTTP/1.1 200 OK"]

    run(settings, test)


def test_client_that_leaves_during_a_delay_is_forgotten(settings: Settings, delays: Callable[[float], None]) -> None:
    async def test(server: Server) -> None:
        await server.hold(LIMIT)
        delays(0.2)
        leaving, staying = await server.connect(), await server.connect()
        leaving.writer.write(f"{GET}\r\n".encode())
        await asyncio.sleep(0.05)
        leaving.writer.transport.abort()
        delays(60)
        await asyncio.sleep(0.4)
        staying.writer.write(f"{GET}\r\n".encode())
        assert await staying.is_silent()

    run(settings, test)


def test_connection_lost_during_a_delay_is_not_written_to(
    settings: Settings, delays: Callable[[float], None], caplog: pytest.LogCaptureFixture
) -> None:
    async def test(server: Server) -> None:
        await server.hold(LIMIT)
        delays(0.2)
        connection = await server.connect()
        connection.writer.write(f"{GET}\r\n".encode())
        await asyncio.sleep(0.05)
        server.protocols[connection.writer.get_extra_info("sockname")].transport.abort()
        await asyncio.sleep(0.4)

    run(settings, test)

    assert [record.message for record in caplog.records if record.name == "asyncio"] == []


def test_another_applications_paths_are_not_refused(settings: Settings) -> None:
    async def test(server: Server) -> None:
        await server.hold(LIMIT)
        connection = await server.connect()
        assert (await connection.ask(f"{GET}\r\n".encode()))[2] == b"other"
        assert await connection.status(b"GET /todo/api/flood/tasks HTTP/1.1\r\n\r\n") == 503

    run(settings, test, prefix="/todo")


def test_other_applications_are_served_as_by_uvicorn() -> None:
    async def test() -> None:
        config = uvicorn.Config(PlainTextResponse("other"), http=Protocol, log_config=None)
        server = uvicorn.Server(config)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            serving = asyncio.create_task(server.serve(sockets=[listener]))
            connection = Connection(*await asyncio.open_connection(*listener.getsockname()))
            assert (await connection.ask(f"{GET}\r\n".encode()))[2] == b"other"
            server.should_exit = True
            await serving
            connection.writer.close()

    asyncio.run(test())
