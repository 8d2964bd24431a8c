"""An open-loop load generator: it sends requests at fixed times, even if earlier ones are still unanswered.

python arrivals.py PORT PLAN, where the plan is a JSON list of streams, each for a part of the run.
"""

import asyncio
import gc
import json
import random
import resource
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
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


@dataclass(eq=False, slots=True)
class Asked:
    """A request that was due at `due`, in seconds of the run; `then` is called when it has ended."""

    stream: str
    due: float
    then: Callable[[], None] | None = None


class Client(asyncio.Protocol):
    """A connection with at most one request on it."""

    def __init__(self, arrivals: "Arrivals") -> None:
        self._arrivals = arrivals
        self._transport: asyncio.Transport | None = None
        self._request = b""  # to send once the connection is open
        self._answer = b""
        self.asked: Asked | None = None

    def ask(self, request: bytes, asked: Asked) -> None:
        """Send a request as soon as the connection is open."""
        self.asked = asked
        if self._transport:
            self._transport.write(request)
        else:
            self._request = request

    def time_out(self) -> None:
        """Close the connection, without an answer to its request."""
        if self._transport:
            self._transport.abort()
        self._end(NO_ANSWER)

    def _end(self, status: int) -> None:
        asked, self.asked = self.asked, None
        if asked:
            self._arrivals.record(asked, status)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's class is not a subclass
        if self.asked:
            self._transport.write(self._request)
        else:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._answer += data
        head, end, body = self._answer.partition(b"\r\n\r\n")
        if not end or len(body) < int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]):
            return
        self._answer = b""
        if self.asked:
            if b"connection: close" not in head:
                self._arrivals.idle[self] = None
            self._end(int(head[9:12]))

    def connection_lost(self, _: Exception | None) -> None:
        self._arrivals.connections -= 1
        self._arrivals.idle.pop(self, None)
        self._end(NO_ANSWER)


class Arrivals:
    """Sends the requests of all streams, and records the result of each."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._loop = asyncio.get_running_loop()
        self._started = perf_counter()
        self._connecting: set[asyncio.Task[None]] = set()
        self._sent: deque[tuple[float, Client, Asked]] = deque()  # with the time when it times out
        self.idle: dict[Client, None] = {}
        self.connections = 0
        # For each request: its stream, when it was due, its status, and its duration.
        self.found: list[tuple[str, float, int, float]] = []

    def _now(self) -> float:
        return perf_counter() - self._started

    def record(self, asked: Asked, status: int) -> None:
        """Record the result of a request."""
        self.found.append((asked.stream, asked.due, status, self._now() - asked.due))
        if asked.then:
            asked.then()

    def _ask(self, request: bytes, asked: Asked) -> None:
        """Send a request, on the connection that became idle last or on a new one."""
        if self.idle:
            client, _ = self.idle.popitem()
        elif self.connections < MOST_CONNECTIONS:
            client = Client(self)
            self.connections += 1
            connecting = self._loop.create_task(self._connect(client))
            self._connecting.add(connecting)
            connecting.add_done_callback(self._connecting.discard)
        else:
            self.found.append((asked.stream, asked.due, NO_ANSWER, CLIENT_TIMEOUT))
            return
        self._sent.append((self._now() + CLIENT_TIMEOUT, client, asked))
        client.ask(request, asked)

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
            while due <= min(self._now(), stream.end):
                self._ask(stream.request(), Asked(stream.name, due))
                due += 1 / stream.rate
            await asyncio.sleep(0.001)

    def _ask_again(self, stream: Stream) -> None:
        now = self._now()
        if now < stream.end:
            self._ask(stream.request(), Asked(stream.name, now, partial(self._ask_again, stream)))

    async def time_out(self) -> None:
        """Time out the requests that are not answered, while running."""
        while True:
            await asyncio.sleep(0.001)
            while self._sent and self._sent[0][0] < self._now():
                _, client, asked = self._sent.popleft()
                if client.asked is asked:
                    client.time_out()


async def main(port: int, streams: list[Stream]) -> None:
    """Run all streams and print the results of their requests."""
    arrivals = Arrivals(port)
    timing_out = asyncio.create_task(arrivals.time_out())
    await asyncio.gather(*map(arrivals.run, streams))
    await asyncio.sleep(CLIENT_TIMEOUT + 0.1)
    timing_out.cancel()
    print(json.dumps(arrivals.found))


if __name__ == "__main__":
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    gc.disable()  # all results are kept, so the collector would only search them again and again
    uvloop.run(main(int(sys.argv[1]), [Stream(*fields) for fields in json.loads(sys.argv[2])]))
