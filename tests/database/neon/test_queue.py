"""The queue for a connection: fairness between owners, refusals, and clients that disconnect."""

import asyncio
import gc
import re
import time
import weakref
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from functools import wraps
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.requests import ClientDisconnect
from starlette.types import Message

from tests.database.neon.conftest import Neon
from tests.database.test_database import scope_of
from tests.support.api import BearerIsIdentity, Leaving, Person, error, on_one_connection
from tests.support.postgres import locked, settings_for, waiting_backend
from tests.support.threads import thread_pool
from todo_api.database import Database
from todo_api.database.connections import LEAST_TO_SPARE
from todo_api.database.waiting import (
    BURST_SECONDS,
    FLOOD_SECONDS,
    MAX_WAITING,
    MOST_SECONDS,
    RATE_SECONDS,
    TARGET_SECONDS,
    WOKEN_SECONDS,
    Waiter,
    Waiting,
)
from todo_api.errors import Busy
from todo_api.main import create_app
from todo_api.refusals import Refusals
from todo_api.settings import Settings
from todo_api.statements import STATEMENTS

LIST = STATEMENTS[0]


def in_a_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Run a test in an event loop, because futures need one."""

    @wraps(test)
    def run() -> None:
        asyncio.run(test())

    return run


def joined(queue: Waiting, owner: str, now: float) -> Waiter:
    waiter = Waiter(owner, now)
    queue.join(waiter, now)
    return waiter


def open_queue(connections: int = 1) -> Waiting:
    """Create the queue of an available database."""
    queue = Waiting(Refusals(), connections)
    queue.resume(0)
    return queue


def pass_second(queue: Waiting) -> None:
    """Let the first second pass without serving anyone."""
    for tick in range(1, 51):
        queue.expire(tick / 50)


def is_refused(waiter: Waiter) -> bool:
    return waiter.future.done() and isinstance(waiter.future.exception(), Busy)


def joins(queue: Waiting, owner: str, now: float) -> bool:
    """Join the queue; return False if refused."""
    try:
        joined(queue, owner, now)
    except Busy:
        return False
    return True


def serve(queue: Waiting, begin: float, end: float) -> None:
    """Add and serve 100 requests per second from `begin` to `end`, so that the length stays the same."""
    for step in range(round(begin * 50), round(end * 50)):
        for _ in range(2):
            joined(queue, "flood", step / 50)
            queue.pop()
        queue.expire((step + 1) / 50)


@in_a_loop
async def test_owners_are_served_in_turn() -> None:
    queue = open_queue()
    for owner in "aaabcb":
        joined(queue, owner, 0)

    assert [queue.pop().owner for _ in range(6)] == ["a", "b", "c", "a", "b", "a"]
    assert not queue


@in_a_loop
async def test_burst_is_not_refused() -> None:
    queue = open_queue()
    for _ in range(500):
        joined(queue, "a", 0)

    queue.expire(MOST_SECONDS - 0.01)

    assert len(queue) == 500


@in_a_loop
async def test_too_long_expected_wait_is_refused() -> None:
    queue = open_queue()
    for _ in range(20):
        joined(queue, "flood", 0)
    serve(queue, 0, BURST_SECONDS - 0.1)
    for _ in range(40):
        joined(queue, "flood", BURST_SECONDS - 0.1)
    serve(queue, BURST_SECONDS - 0.1, BURST_SECONDS)

    # 60 wait, at 100 a second.
    with pytest.raises(Busy):
        joined(queue, "flood", BURST_SECONDS)
    neighbour = joined(queue, "neighbour", BURST_SECONDS)
    queue.pop()
    assert queue.pop() is neighbour


@in_a_loop
async def test_expected_wait_is_limited_by_length() -> None:
    queue = open_queue()
    joined(queue, "flood", 0)
    serve(queue, 0, BURST_SECONDS)
    for _ in range(30):
        joined(queue, "flood", BURST_SECONDS)
    joined(queue, "neighbour", BURST_SECONDS)

    # 31 turns of two owners each would be 62 requests, but only 31 are in the queue.
    assert joins(queue, "flood", BURST_SECONDS)


@in_a_loop
async def test_only_owner_has_waited_for_some_time() -> None:
    queue = open_queue()
    assert queue.only_owner(FLOOD_SECONDS) is None
    joined(queue, "flood", 0)

    assert queue.only_owner(FLOOD_SECONDS - 0.1) is None
    assert queue.only_owner(FLOOD_SECONDS) == "flood"
    neighbour = joined(queue, "neighbour", FLOOD_SECONDS)
    assert queue.only_owner(FLOOD_SECONDS) is None
    queue.leave(neighbour)
    assert queue.only_owner(FLOOD_SECONDS) == "flood"
    queue.pause()
    assert queue.only_owner(FLOOD_SECONDS) is None


@in_a_loop
async def test_too_many_owners_are_refused() -> None:
    queue = open_queue()
    joined(queue, "flood", 0)
    serve(queue, 0, BURST_SECONDS)
    for owner in range(round(TARGET_SECONDS * 100) - 2):
        joined(queue, str(owner), BURST_SECONDS)
    joined(queue, "the last one in time", BURST_SECONDS)

    assert [joins(queue, f"{owner} more", BURST_SECONDS) for owner in range(9)][-1] is False


@in_a_loop
async def test_burst_has_a_higher_limit() -> None:
    queue = open_queue()
    joined(queue, "flood", 0)
    serve(queue, 0, RATE_SECONDS + 0.1)
    for _ in range(80):
        joined(queue, "flood", RATE_SECONDS + 0.1)

    assert [joins(queue, "flood", RATE_SECONDS + 0.1) for _ in range(40)][-1] is False


@in_a_loop
async def test_empty_queue_resets_the_expected_wait() -> None:
    queue = open_queue()
    for _ in range(3):
        joined(queue, "a", 0)
    pass_second(queue)
    with pytest.raises(Busy):
        joined(queue, "a", 1)
    for _ in range(3):
        queue.pop()

    for _ in range(3):
        joined(queue, "a", 1)

    assert len(queue) == 3


@in_a_loop
async def test_pause_of_the_process_refuses_nobody() -> None:
    queue = open_queue()
    for _ in range(3):
        joined(queue, "a", 0)

    queue.expire(1)

    assert joins(queue, "a", 1)


@in_a_loop
async def test_more_connections_shorten_the_expected_wait() -> None:
    for connections, is_joined in ((1, False), (10, True)):
        queue = open_queue(connections)
        for _ in range(5):
            joined(queue, "a", 0)

        pass_second(queue)

        assert joins(queue, "a", 1) is is_joined


@in_a_loop
async def test_too_long_wait_is_refused() -> None:
    queue = open_queue()
    late, later = joined(queue, "a", 0), joined(queue, "a", 0.1)

    queue.expire(MOST_SECONDS)

    assert (is_refused(late), is_refused(later)) == (True, False)
    assert len(queue) == 1


@in_a_loop
async def test_full_queue_refuses_from_the_longest() -> None:
    queue = open_queue()
    flood = [joined(queue, "flood", 0) for _ in range(MAX_WAITING - 1)]
    neighbours = [joined(queue, "neighbour", 0) for _ in range(3)]

    assert [is_refused(waiter) for waiter in flood[-3:]] == [False, True, True]
    assert not any(map(is_refused, neighbours))
    assert len(queue) == MAX_WAITING


@in_a_loop
async def test_waiting_for_database_is_not_limited() -> None:
    queue = Waiting(Refusals(), 1)
    first = joined(queue, "a", 0)
    queue.expire(5)
    joined(queue, "a", 5)
    queue.resume(8)
    queue.expire(8 + MOST_SECONDS)
    queue.pause()
    queue.expire(100)
    joined(queue, "b", 100)

    assert len(queue) == 3
    queue.resume(100)
    queue.expire(100 + WOKEN_SECONDS + MOST_SECONDS)
    assert is_refused(first)
    assert not queue


@pytest.fixture
def alice(settings: Settings, alice: Person) -> Iterator[Person]:
    with on_one_connection(settings, alice):
        yield alice


@pytest.mark.parametrize("bounds", [{"MOST_SECONDS": 0.1}, {"RATE_SECONDS": 0, "BURST_TARGET_SECONDS": -1}])
def test_refused_request_has_no_effect(
    alice: Person, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, bounds: dict[str, float]
) -> None:
    for name, seconds in bounds.items():
        monkeypatch.setattr(f"todo_api.database.waiting.{name}", seconds)
    monkeypatch.setattr("todo_api.refusals.QUIET_SECONDS", 1)
    with thread_pool(1) as threads, locked(alice.database_url):
        holding = threads.submit(alice.ask, "POST", json={"title": "holds the connection"})
        waiting_backend(alice.database_url)
        for _ in range(3):
            refused = alice.ask("POST", json={"title": "x"}, headers={"Origin": "https://app.example.com"})
            assert (refused.status_code, refused.json()) == (503, error("Service is busy"))
            assert refused.headers["retry-after"] == "1"
            assert refused.headers["access-control-allow-origin"] == "https://app.example.com"
    assert holding.result().status_code == 201
    assert [row["title"] for row in alice.stored()] == ["holds the connection"]

    def logged() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.name == "todo_api.refusals"]

    deadline = time.monotonic() + 10
    while len(logged()) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    begins, ends = logged()
    assert begins == "overload: requests are refused, the first by the queue"
    assert re.fullmatch(r"overload ended: 3 requests were refused within \d+\.\d s: \{'queue': 3\}", ends)


def test_flood_does_not_block_other_owners(database_url: str) -> None:
    order: list[str] = []

    async def ask(database: Database, owner: str) -> None:
        await database.run(LIST, {"owner": owner})
        order.append(owner)

    async def compete() -> None:
        database = Database(settings_for(database_url, pool_size=1))
        await asyncio.gather(*(ask(database, owner) for owner in ["flood"] * 200 + ["neighbour"] * 3))
        await database.close()

    asyncio.run(compete())

    assert order[:7] == ["flood", "neighbour"] * 3 + ["flood"]
    assert Counter(order) == {"flood": 200, "neighbour": 3}


def test_neighbour_of_a_flood_does_not_wait(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("todo_api.database.waiting.FLOOD_SECONDS", 0)

    async def compete() -> None:
        database = Database(settings_for(database_url, pool_size=LEAST_TO_SPARE))
        await database.warm(STATEMENTS)
        pool = database._connections  # noqa: SLF001  # to hold its connections without statements
        used = [await pool.acquire(Waiter("flood")) for _ in range(LEAST_TO_SPARE)]
        flood = [asyncio.create_task(database.run(LIST, {"owner": "flood"}))]
        await asyncio.sleep(0)
        pool.release(used.pop())
        flood.append(asyncio.create_task(database.run(LIST, {"owner": "flood"})))

        assert await asyncio.wait_for(database.run(LIST, {"owner": "neighbour"}), 5) == "[]"

        assert pool.waiting == len(flood)
        for connection in used:
            pool.release(connection)
        assert await asyncio.gather(*flood) == ["[]", "[]"]
        await database.close()

    asyncio.run(compete())


def test_disconnected_client_in_queue_runs_nothing(settings: Settings, alice: Person) -> None:
    sent = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def ask(app: FastAPI, title: str, *, leaves: bool) -> None:
        messages: list[Message] = [{"type": "http.request", "body": b'{"title": "%s"}' % title.encode()}]

        async def receive() -> Message:
            if not messages and not leaves:
                await asyncio.Event().wait()
            return messages.pop() if messages else {"type": "http.disconnect"}

        await app(scope_of(alice, "POST", **{"Content-Type": "application/json"}), receive, send)

    async def serve() -> None:
        app = create_app(settings.model_copy(update={"pool_size": 1}), BearerIsIdentity())
        holding = asyncio.create_task(ask(app, "holds the connection", leaves=False))
        await asyncio.to_thread(waiting_backend, alice.database_url)
        await asyncio.wait_for(ask(app, "left", leaves=True), 5)
        holding.cancel()
        await asyncio.wait([holding])
        await app.state.database.close()

    with locked(alice.database_url):
        asyncio.run(serve())

    assert [message.get("status") for message in sent] == [
        400,
        None,
    ]  # the response after the disconnect, which the client does not get
    assert alice.stored() == []


def test_clients_of_a_short_queue_are_watched_at_once(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("todo_api.database.waiting.WATCH_SECONDS", 1000)
    monkeypatch.setattr("todo_api.database.waiting.FEW", 2)

    async def compete() -> None:
        database = Database(settings_for(database_url, pool_size=1))
        await database.warm(STATEMENTS)
        pool = database._connections  # noqa: SLF001  # to hold its connection without a statement
        held = await pool.acquire(Waiter("holds"))
        clients = [Leaving() for _ in range(3)]
        waiting = [asyncio.create_task(database.run(LIST, {"owner": "a"}, client)) for client in clients]
        await asyncio.sleep(0.1)
        assert not any(client.is_awaited for client in clients)
        waiting.pop().cancel()
        for each in waiting:
            with pytest.raises(ClientDisconnect):
                await asyncio.wait_for(each, 5)
        pool.release(held)
        await database.close()

    asyncio.run(compete())


def test_client_that_has_left_gets_no_connection(database_url: str) -> None:
    async def compete() -> None:
        database = Database(settings_for(database_url, pool_size=1))
        await database.warm(STATEMENTS)
        pool = database._connections  # noqa: SLF001  # to see its connection
        with pytest.raises(ClientDisconnect):
            await database.run(LIST, {"owner": "a"}, Leaving(check=1))
        pool.probe_idle_before_use()
        with pytest.raises(ClientDisconnect):  # while the connection was probed
            await database.run(LIST, {"owner": "a"}, Leaving(check=2))
        assert (pool.used, pool.idle) == (0, 1)
        await database.close()

    asyncio.run(compete())


@pytest.mark.parametrize("how", ["refused", "left", "watched"])
def test_failed_wait_leaves_no_reference_cycle(database_url: str, how: str) -> None:
    async def compete() -> None:
        database = Database(settings_for(database_url, pool_size=1))
        await database.warm(STATEMENTS)
        pool = database._connections  # noqa: SLF001  # to hold its connection without a statement
        held = await pool.acquire(Waiter("holds"))
        waiter = Waiter("a", interrupt=Leaving(check=1) if how == "left" else Leaving() if how == "watched" else None)
        alive = weakref.ref(waiter)
        waiting = asyncio.create_task(pool.acquire(waiter))
        await asyncio.sleep(0)
        if how == "refused":
            pool._waiting.refuse(waiter)  # noqa: SLF001  # as under overload
        elif how == "left":
            pool.release(held)
        del waiter
        with pytest.raises((Busy, ClientDisconnect)):
            await asyncio.wait_for(waiting, 5)
        del waiting
        await asyncio.sleep(0)
        assert alive() is None
        await database.close()

    gc.disable()
    try:
        asyncio.run(compete())
    finally:
        gc.enable()


def test_clients_that_have_left_take_no_turn(database_url: str) -> None:
    served = []

    async def ask(database: Database, owner: str, client: Leaving | None) -> None:
        with suppress(ClientDisconnect):
            await database.run(LIST, {"owner": owner}, client)
            served.append(owner)

    async def compete() -> None:
        database = Database(settings_for(database_url, pool_size=1))
        await database.warm(STATEMENTS)
        pool = database._connections  # noqa: SLF001  # to hold its connection without a statement
        held = await pool.acquire(Waiter("holds"))
        clients: dict[str, list[Leaving | None]] = {"a": [Leaving(check=2), Leaving(check=2), None], "b": [None]}
        waiting = [
            asyncio.create_task(ask(database, owner, each)) for owner, all_of in clients.items() for each in all_of
        ]
        await asyncio.sleep(0)
        assert pool.waiting == 4
        pool.release(held)
        await asyncio.wait_for(asyncio.gather(*waiting), 5)
        await database.close()

    asyncio.run(compete())

    assert served == ["a", "b"]


def test_request_cancelled_in_queue_takes_no_connection(database_url: str) -> None:
    async def compete() -> None:
        database = Database(settings_for(database_url, pool_size=1))
        asking = [asyncio.create_task(database.run(LIST, {"owner": str(n)})) for n in range(40)]
        await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
        for task in asking[1::2]:
            task.cancel()
        await asyncio.wait(asking)
        assert sum(task.cancelled() for task in asking) >= 19
        assert await database.run(LIST, {"owner": "nobody"}) == "[]"
        await database.close()

    asyncio.run(compete())


def test_waiting_requests_are_limited_without_database(direct: Neon) -> None:
    refused: Counter[str] = Counter()

    async def ask(database: Database, owner: str) -> None:
        try:
            assert await database.run(LIST, {"owner": owner}) == "[]"
        except Busy:
            refused[owner] += 1

    async def wait_for_it() -> None:
        database = Database(settings_for(direct.url, pool_size=4, wake_seconds=30))
        owners = ["flood"] * (MAX_WAITING + 300) + ["neighbour"] * 500
        asking = [asyncio.create_task(ask(database, owner)) for owner in owners]
        seen = direct.proxy.connections
        while direct.proxy.connections < seen + 2:  # noqa: ASYNC110  # counted in another thread
            await asyncio.sleep(0.01)
        await asyncio.to_thread(direct.resume)
        await asyncio.gather(*asking)
        await database.close()

    direct.suspend()
    direct.proxy.wake = None
    asyncio.run(wait_for_it())

    assert refused == {"flood": 300 + 500}, "all above MAX_WAITING"
