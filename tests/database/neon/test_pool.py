"""The pool: bounded size, first come first served, and disconnected clients release their connections."""

import asyncio
import socket
import time
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import httpx2
import pytest

from tests.database.neon.conftest import Neon
from tests.support.api import new_account
from tests.support.patience import deadline
from tests.support.postgres import locked, settings_for, sql
from tests.support.serving import uvicorn
from tests.support.threads import thread_pool
from todo_api.database import Database
from todo_api.database.connecting import Connector
from todo_api.database.connections import LEAST_TO_SPARE, Connections
from todo_api.database.query import as_query
from todo_api.database.waiting import Waiter
from todo_api.statements import STATEMENTS

CONNECTED = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"


def test_pool_never_exceeds_its_size(direct: Neon) -> None:
    alice = direct.serve(pool_size=3)()

    with thread_pool(12) as threads:
        answers = list(threads.map(lambda _: alice.ask("GET").status_code, range(300)))

    assert answers == [200] * 300
    assert direct.proxy.connections == 3


def test_connection_being_closed_counts(direct: Neon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("todo_api.database.connections.CANCEL_SECONDS", 0.5)

    async def close() -> None:
        pool = Connections(Connector(direct.url), limit=1, wake_seconds=0)
        assert pool.take() is None
        silent = await pool.acquire(Waiter("a"))
        direct.proxy.go_half_open()
        running = asyncio.create_task(silent.driver.execute("SELECT pg_sleep(60)"))
        await asyncio.sleep(0.1)
        running.cancel()
        pool.cancel_and_close(silent)
        acquiring = asyncio.create_task(pool.acquire(Waiter("b")))
        await asyncio.sleep(0.2)
        assert direct.proxy.connections == 2, "more than the silent one and the one that cancels its statement"
        assert await acquiring is not silent
        await pool.close()

    asyncio.run(close())


def test_request_does_not_wait_for_other_statements(direct: Neon) -> None:
    async def prepared() -> set[str]:
        pool = Connections(Connector(direct.url), limit=1, wake_seconds=0)
        assert pool.take() is None
        pool.queries = tuple(map(as_query, STATEMENTS))
        connection = await pool.acquire(Waiter("a"))
        await pool.close()
        return {*connection.prepared}

    assert asyncio.run(prepared()) == set()


def test_old_connection_is_replaced_without_request(direct: Neon) -> None:
    async def replace() -> None:
        pool = Connections(Connector(direct.url), limit=1, wake_seconds=0)
        assert pool.take() is None
        old = await pool.acquire(Waiter("a"))
        old.retire_at = 0
        pool.release(old)
        end = deadline()
        while not pool.idle:
            assert time.monotonic() < end
            await asyncio.sleep(0.01)
        await pool.close()

    asyncio.run(replace())


def test_closed_connection_is_not_taken(direct: Neon) -> None:
    async def take() -> None:
        pool = Connections(Connector(direct.url), limit=1, wake_seconds=0)
        assert pool.take() is None
        connection = await pool.acquire(Waiter("a"))
        pool.release(connection)
        assert pool.take() is connection
        pool.release(connection)
        connection.driver.terminate()
        assert pool.take() is None
        await pool.close()

    asyncio.run(take())


def test_one_connection_is_kept_for_other_owners(direct: Neon, monkeypatch: pytest.MonkeyPatch) -> None:
    async def compete() -> None:
        pool = Connections(Connector(direct.url), limit=LEAST_TO_SPARE, wake_seconds=5)
        assert pool.take("flood") is None
        used = [await pool.acquire(Waiter("flood")) for _ in range(pool.limit)]
        flood = [asyncio.create_task(pool.acquire(Waiter("flood"))) for _ in range(4)]
        await asyncio.sleep(0)

        pool.release(used.pop())
        used.append(await flood.pop(0))
        assert pool.idle == 0, "a burst uses every connection"

        monkeypatch.setattr("todo_api.database.waiting.FLOOD_SECONDS", 0)
        pool.release(used.pop())
        assert pool.take("flood") is None
        flood.append(asyncio.create_task(pool.acquire(Waiter("flood"))))
        await asyncio.sleep(0)
        assert (pool.idle, pool.waiting) == (1, 4)
        kept = pool.take("neighbour")
        assert kept
        pool.release(used.pop())
        used.append(await flood.pop(0))
        assert pool.idle == 0, "not a second one"
        pool.release(kept)
        assert await pool.acquire(Waiter("neighbour")) is kept
        pool.release(kept)

        pool.release(used.pop())
        used.append(await flood.pop(0))
        assert (pool.idle, pool.waiting) == (1, 2)

        pool.limit = 1
        for connection in used:
            pool.drop(connection)
        assert await flood.pop(0) is kept, "no other connection can be opened"
        for waiting in flood:
            waiting.cancel()
        await asyncio.wait(flood)
        await pool.close()

    asyncio.run(compete())


@pytest.mark.parametrize(("waiting", "users"), [("b", "aaaaaaaaaa"), (None, "aaaaaaaaaa"), ("b", "abbbbbbbbb")])
def test_no_connection_is_kept_from_who_does_not_use_the_rest(
    direct: Neon, monkeypatch: pytest.MonkeyPatch, waiting: str | None, users: str
) -> None:
    async def compete() -> None:
        pool = Connections(Connector(direct.url), limit=LEAST_TO_SPARE, wake_seconds=5)
        assert pool.take() is None
        used = [await pool.acquire(Waiter(user)) for user in users]
        monkeypatch.setattr("todo_api.database.waiting.FLOOD_SECONDS", 0)
        acquiring = asyncio.create_task(pool.acquire(Waiter(waiting)))
        await asyncio.sleep(0)

        pool.release(used.pop())
        assert await acquiring
        await pool.close()

    asyncio.run(compete())


def test_kept_connection_that_is_too_old_is_replaced(direct: Neon, monkeypatch: pytest.MonkeyPatch) -> None:
    async def compete() -> None:
        pool = Connections(Connector(direct.url), limit=LEAST_TO_SPARE, wake_seconds=5)
        assert pool.take() is None
        used = [await pool.acquire(Waiter("flood")) for _ in range(pool.limit)]
        monkeypatch.setattr("todo_api.database.waiting.FLOOD_SECONDS", 0)
        flood = asyncio.create_task(pool.acquire(Waiter("flood")))
        await asyncio.sleep(0)
        kept = used.pop()
        pool.release(kept)
        assert pool.idle == 1
        pool.probe_idle_before_use()

        pool.limit = 1
        for connection in used:
            pool.drop(connection)

        assert await flood is not kept
        assert kept.driver.is_closed()
        await pool.close()

    asyncio.run(compete())


def test_only_one_attempt_to_connect_is_repeated(direct: Neon) -> None:
    async def wait() -> None:
        direct.proxy.refusals.extend([("57P03", "the database system is starting up")] * 6)
        pool = Connections(Connector(direct.url), limit=4, wake_seconds=5)
        assert pool.take() is None
        waiters = [asyncio.create_task(pool.acquire(Waiter(owner))) for owner in "abcd"]
        while direct.proxy.refusals:
            assert pool._opening <= 4  # noqa: SLF001  # how many attempts go on is not visible otherwise
            await asyncio.sleep(0.01)
            if len(direct.proxy.refusals) <= 2:
                assert pool._opening == 1  # noqa: SLF001  # the same
        await asyncio.gather(*waiters)
        await pool.close()

    asyncio.run(wait())


def test_warming_gives_up_at_a_lasting_error(direct: Neon) -> None:
    async def warm() -> None:
        direct.proxy.refusals.extend([("28P01", "password authentication failed")] * 100)
        pool = Connections(Connector(direct.url), limit=4, wake_seconds=5)
        with pytest.raises(asyncpg.InvalidPasswordError):
            await pool.fill(map(as_query, STATEMENTS))
        await pool.close()

    asyncio.run(warm())
    assert direct.proxy.connections == 1, "a server may lock out who repeats a wrong password"


def test_full_pooler_is_waited_for(pooled: Neon) -> None:
    pooled.bouncer.kill()
    pooled.bouncer.start(pool_size=1, query_wait_timeout=1)
    alice = pooled.serve(pool_size=2)()
    alice.create()

    with thread_pool(1) as threads, locked(pooled.url):
        answer = threads.submit(alice.ask, "POST", json={"title": "waited"})
        time.sleep(1.5)  # longer than query_wait_timeout, so that one attempt has failed
        assert not answer.done()

    assert answer.result().status_code == 201
    assert [task["title"] for task in alice.tasks()] == ["waited", "Buy milk"]


def test_pooler_with_all_its_clients_is_waited_for(pooled: Neon) -> None:
    pooled.bouncer.kill()
    pooled.bouncer.start(max_client_conn=1)

    with thread_pool(1) as threads:
        with locked(f"postgresql://postgres@127.0.0.1:{pooled.bouncer.port}/todo", "SELECT 1"):
            alice = pooled.serve(pool_size=1)()
            answer = threads.submit(alice.ask, "POST", json={"title": "x"})
            seen = pooled.proxy.connections
            while pooled.proxy.connections < seen + 2:
                assert not answer.done()

        assert answer.result().status_code == 201


def test_full_server_behind_pooler_is_waited_for(pooled: Neon) -> None:
    sql(pooled.direct_url, "CREATE ROLE service LOGIN CONNECTION LIMIT 1")
    sql(pooled.direct_url, "GRANT SELECT, INSERT, UPDATE, DELETE ON tasks TO service")
    pooled.bouncer.kill()
    pooled.bouncer.start(user="service")
    alice = pooled.serve(pool_size=1)()
    alice.create("before")
    pooled.wait_until_warm()
    logged = len(pooled.bouncer.output())

    with thread_pool(1) as threads:
        sql(pooled.direct_url, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'service'")
        end = deadline()
        while "server conn crashed" not in pooled.bouncer.output()[logged:]:
            assert time.monotonic() < end
        with locked(pooled.direct_url.replace("postgres:@", "service:@"), "SELECT 1"):
            answer = threads.submit(alice.ask, "POST", json={"title": "waited"})
            seen = pooled.proxy.connections
            while pooled.proxy.connections < seen + 2:
                assert not answer.done()

        assert answer.result().status_code == 201
    assert [task["title"] for task in alice.tasks()] == ["waited", "before"]
    pooled.bouncer.kill()
    sql(pooled.direct_url, "DROP OWNED BY service")
    sql(pooled.direct_url, "DROP ROLE service")


def test_requests_are_served_in_order(direct: Neon) -> None:
    order: list[int] = []

    async def ask(database: Database, name: int) -> None:
        for _ in range(20):
            await database.run(STATEMENTS[0], {"owner": "nobody"})
            order.append(name)

    async def compete() -> None:
        database = Database(settings_for(direct.url, pool_size=1))
        await asyncio.gather(*(ask(database, name) for name in range(8)))
        await database.close()

    asyncio.run(compete())

    # After each statement its caller goes to the end of the queue.
    assert order == list(range(8)) * 20


def test_disconnected_clients_release_their_connections(direct: Neon, tmp_path: Path) -> None:
    owner = new_account(direct.direct_url)
    environment = {"DATABASE_URL": direct.url, "AUTH_BACKEND": "tests.support.api:BearerIsIdentity", "POOL_SIZE": "2"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[3])
    with uvicorn(environment, tmp_path) as url, httpx2.Client(headers={"Authorization": f"Bearer {owner}"}) as client:
        tasks = f"{url}/api/{owner}/tasks"
        assert client.get(tasks).json() == []
        with locked(direct.direct_url):
            for _ in range(20):
                with socket.create_connection(("127.0.0.1", urlsplit(url).port or 0)) as leaving:
                    head = f"GET /api/{owner}/tasks HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {owner}\r\n\r\n"
                    leaving.sendall(head.encode())
                    time.sleep(0.01)

        assert [client.post(tasks, json={"title": "x"}).status_code for _ in range(8)] == [201] * 8
        assert sql(direct.direct_url, CONNECTED)[0]["count"] <= 2
