"""An open-loop load generator: it sends requests at fixed times, even if earlier ones are still unanswered.

python arrivals.py PORT PLAN, where the plan is a JSON list of streams, each for a part of the run.
"""

import asyncio
import json
import random
import resource
import sys
from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import NamedTuple, cast

import uvloop

CLIENT_TIMEOUT = 2.0  # timeout of a client, which then closes its connection
MOST_CONNECTIONS = 9000
NO_ANSWER = 0


class Stream(NamedTuple):
    """Reads of random tasks from `begin` to `end`: `rate` per second, or from `clients` that repeat when answered.

    They read any of the `tasks`, which belong to `users` users in turn, as the owner of the task or as `owner`.
    """

    name: str
    begin: float
    end: float
    rate: float
    clients: int
    users: int
    tasks: int
    owner: str | None

    def request(self) -> bytes:
        """Build a request for a random task."""
        number = random.randint(1, self.tasks)
        owner = self.owner or f"u{(number - 1) % self.users + 1}"
        return (
            f"GET /api/{owner}/tasks/{number} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {owner}\r\n\r\n"
        ).encode()


class Client(asyncio.Protocol):
    """A connection with at most one request on it."""

    def __init__(self, arrivals: "Arrivals") -> None:
        self._arrivals = arrivals
        self._transport: asyncio.Transport | None = None
        self._request: bytes | None = None
        self.answered: Callable[[int], None] | None = None
        self._answer = b""

    def ask(self, request: bytes, answered: Callable[[int], None]) -> None:
        """Send a request as soon as the connection is open."""
        self.answered = answered
        self._answer = b""
        if self._transport:
            self._transport.write(request)
        else:
            self._request = request

    def abort(self) -> None:
        """Close the connection."""
        self.answered = None
        self._request = None
        if self._transport:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's class is not a subclass
        if self._request:
            self._transport.write(self._request)
        elif not self.answered:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._answer += data
        head, end, body = self._answer.partition(b"\r\n\r\n")
        if not end:
            return
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        if len(body) >= length and self.answered:
            answered, self.answered = self.answered, None
            if b"connection: close" not in head:
                self._arrivals.idle.append(self)
            answered(int(head[9:12]))

    def connection_lost(self, _: Exception | None) -> None:
        self._arrivals.connections -= 1
        if self in self._arrivals.idle:
            self._arrivals.idle.remove(self)
        if self.answered:
            answered, self.answered = self.answered, None
            answered(NO_ANSWER)


class Arrivals:
    """Sends the requests of all streams, and records the result of each."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._loop = asyncio.get_running_loop()
        self._started = perf_counter()
        self._connecting: set[asyncio.Task[None]] = set()
        self.idle: list[Client] = []
        self.connections = 0
        # For each request: its stream, when it was due, its status, and its duration.
        self.found: list[tuple[str, float, int, float]] = []

    def ask(self, stream: Stream, due: float, then: Callable[[], None]) -> None:
        """Send a request, on an idle or a new connection."""
        if self.idle:
            client = self.idle.pop()
        elif self.connections < MOST_CONNECTIONS:
            client = Client(self)
            self.connections += 1
            connecting = self._loop.create_task(self._connect(client))
            self._connecting.add(connecting)
            connecting.add_done_callback(self._connecting.discard)
        else:
            self.found.append((stream.name, due, NO_ANSWER, CLIENT_TIMEOUT))
            return

        def answered(status: int) -> None:
            timeout.cancel()
            self.found.append((stream.name, due, status, perf_counter() - self._started - due))
            then()

        def time_out() -> None:
            client.abort()
            answered(NO_ANSWER)

        timeout = self._loop.call_later(CLIENT_TIMEOUT, time_out)
        client.ask(stream.request(), answered)

    async def _connect(self, client: Client) -> None:
        try:
            await self._loop.create_connection(lambda: client, "127.0.0.1", self._port)
        except OSError:
            client.connection_lost(None)

    async def run(self, stream: Stream) -> None:
        """Send the requests of one stream."""
        await asyncio.sleep(stream.begin)
        if stream.clients:
            for _ in range(stream.clients):
                self._ask_again(stream)
            await asyncio.sleep(stream.end - stream.begin)
            return
        due = stream.begin
        while due < stream.end:
            while due <= min(perf_counter() - self._started, stream.end):
                self.ask(stream, due, lambda: None)
                due += 1 / stream.rate
            await asyncio.sleep(0.001)

    def _ask_again(self, stream: Stream) -> None:
        now = perf_counter() - self._started
        if now < stream.end:
            self.ask(stream, now, partial(self._ask_again, stream))


async def main(port: int, streams: list[Stream]) -> None:
    """Run all streams and print the results of their requests."""
    arrivals = Arrivals(port)
    await asyncio.gather(*map(arrivals.run, streams))
    await asyncio.sleep(CLIENT_TIMEOUT + 0.1)
    print(json.dumps(arrivals.found))


if __name__ == "__main__":
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    uvloop.run(main(int(sys.argv[1]), [Stream(*fields) for fields in json.loads(sys.argv[2])]))
