"""A reachable but busy database: slow statements, few connections, and readiness."""

import asyncio
import time
from collections.abc import Iterator

import pytest

from tests.database.neon.conftest import Neon
from tests.support.api import error
from tests.support.postgres import locked, settings_for, sql, waiting_backend
from tests.support.threads import thread_pool
from todo_api.database import Database
from todo_api.statements import LIST

PIDS = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() ORDER BY pid"


def lock(task_id: int) -> str:
    return f"SELECT FROM tasks WHERE id = {task_id} FOR UPDATE"


def test_slow_statement_closes_no_other_connection(direct: Neon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("todo_api.database.connections.STATEMENT_SECONDS", 0.4)
    alice = direct.serve(pool_size=8)()
    task = alice.create()
    direct.wait_until_warm()
    before = {row["pid"] for row in sql(direct.direct_url, PIDS)}

    with thread_pool(2) as threads, locked(direct.direct_url, lock(task["id"])):
        blocked = list(threads.map(lambda _: alice.ask("PUT", f"/{task['id']}", json={"title": "y"}), range(2)))
        assert [answer.status_code for answer in blocked] == [500] * 2

    assert [each["id"] for each in alice.tasks()] == [task["id"]]
    assert len(before & {row["pid"] for row in sql(direct.direct_url, PIDS)}) == 8 - 2


@pytest.fixture
def limited(direct: Neon) -> Iterator[Neon]:
    """A server that allows the service one connection."""
    sql(direct.direct_url, "CREATE ROLE service LOGIN CONNECTION LIMIT 1")
    sql(direct.direct_url, "GRANT SELECT, INSERT, UPDATE, DELETE ON tasks TO service")
    sql(direct.direct_url, "GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO service")
    direct.url = direct.url.replace("postgres@", "service@")
    yield direct
    direct.close()
    sql(direct.direct_url, "DROP OWNED BY service")
    sql(direct.direct_url, "DROP ROLE service")


def test_refused_connections_wait_in_order(limited: Neon, caplog: pytest.LogCaptureFixture) -> None:
    order: list[int] = []

    async def ask(database: Database, name: int) -> None:
        for _ in range(20):
            await database.run(LIST, {"owner": "nobody"})
            order.append(name)

    async def compete() -> None:
        database = Database(settings_for(limited.url, pool_size=4))
        await asyncio.gather(*(ask(database, name) for name in range(8)))
        await database.close()

    asyncio.run(compete())

    assert order == list(range(8)) * 20
    assert limited.proxy.connections < 30, "one attempt at a time"
    assert caplog.text.count("no more connections can be opened than these 1") == 1


def test_busy_database_is_waited_for(direct: Neon) -> None:
    alice = direct.serve(pool_size=2, wake_seconds=0)()

    with thread_pool(12) as threads:
        codes = list(threads.map(lambda n: alice.ask("POST", json={"title": str(n)}).status_code, range(60)))

    assert codes == [201] * 60


def test_waiting_in_queue_times_out(direct: Neon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("todo_api.database.waiting.MOST_SECONDS", 0.3)
    alice = direct.serve(pool_size=1)()
    task = alice.create()

    with thread_pool(1) as threads, locked(direct.direct_url, lock(task["id"])):
        blocked = threads.submit(alice.ask, "PUT", f"/{task['id']}", json={"title": "y"})
        waiting_backend(direct.direct_url)
        answer = alice.ask("GET")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")

    assert blocked.result().status_code == 200
    assert len(alice.tasks()) == 1


def test_readiness_does_not_queue(direct: Neon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("todo_api.database.waiting.MOST_SECONDS", 60)
    alice = direct.serve(pool_size=2)()
    task = alice.create()

    with thread_pool(8) as threads, locked(direct.direct_url, lock(task["id"])):
        blocked = [threads.submit(alice.ask, "PUT", f"/{task['id']}", json={"title": "y"}) for _ in range(8)]
        waiting_backend(direct.direct_url)
        started = time.monotonic()
        assert alice.client.get("/health/ready").status_code == 200
        assert time.monotonic() - started < 2

    assert {answer.result().status_code for answer in blocked} == {200}


def test_readiness_gets_next_free_connection(limited: Neon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("todo_api.database.waiting.MOST_SECONDS", 60)
    alice = limited.serve(pool_size=1)()
    first, second = alice.create()["id"], alice.create()["id"]

    with thread_pool(3) as threads, locked(limited.direct_url, lock(second)):
        with locked(limited.direct_url, lock(first)):
            blocked = [threads.submit(alice.ask, "PUT", f"/{first}", json={"title": "y"})]
            waiting_backend(limited.direct_url)
            blocked.append(threads.submit(alice.ask, "PUT", f"/{second}", json={"title": "y"}))
            time.sleep(0.2)
            ready = threads.submit(alice.client.get, "/health/ready")
            time.sleep(0.2)
            assert not ready.done()
        assert ready.result().status_code == 200, "the second update has the connection"

    assert {answer.result().status_code for answer in blocked} == {200}


def test_readiness_is_503_if_no_connection_is_released(limited: Neon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("todo_api.database.waiting.MOST_SECONDS", 0.3)
    alice = limited.serve(pool_size=1)()
    task = alice.create()

    with thread_pool(1) as threads, locked(limited.direct_url, lock(task["id"])):
        blocked = threads.submit(alice.ask, "PUT", f"/{task['id']}", json={"title": "y"})
        waiting_backend(limited.direct_url)
        ready = alice.client.get("/health/ready")

    assert (ready.status_code, ready.json()) == (503, error("Service is not ready"))
    assert blocked.result().status_code == 200


def test_readiness_finds_dead_connections(neon: Neon) -> None:
    alice = neon.serve(pool_size=2)()
    neon.wait_until_warm()
    neon.proxy.go_half_open()

    assert alice.client.get("/health/ready").status_code == 200
    started = time.monotonic()
    assert alice.ask("POST", json={"title": "x"}).status_code == 201
    assert time.monotonic() - started < 2


@pytest.mark.parametrize("silence", ["freeze", "go_half_open"])
def test_readiness_answers_within_two_seconds(neon: Neon, silence: str) -> None:
    alice = neon.serve(pool_size=2)()
    neon.wait_until_warm()
    getattr(neon.proxy, silence)()
    expected = 503 if silence == "freeze" else 200

    for _ in range(2):
        started = time.monotonic()
        assert alice.client.get("/health/ready").status_code == expected
        assert time.monotonic() - started < 2

    neon.proxy.unfreeze()
    assert alice.client.get("/health/ready").status_code == 200
