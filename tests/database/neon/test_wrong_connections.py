"""Open connections that must be replaced: to a server that is no longer primary, dropped by the network, or old."""

import asyncio
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.database.neon.conftest import Neon
from tests.support.api import Person, error
from tests.support.postgres import migrated_database, sql
from tests.support.proxy import FaultProxy
from tests.support.servers import Postgres
from tests.support.threads import thread_pool
from todo_api.database.connecting import Connector
from todo_api.database.connections import Connections
from todo_api.database.waiting import Waiter

PIDS = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"


@pytest.fixture
def failed_over(direct: Neon) -> Iterator[Person]:
    """A service whose connections are all to a read-only server."""
    # New sessions are read-only, and stay so even if the setting is changed later.
    sql(direct.direct_url, "ALTER ROLE postgres IN DATABASE todo SET default_transaction_read_only = on")
    client = direct.serve(pool_size=4, wake_seconds=2)
    direct.wait_until_warm()
    direct.direct_url += "&default_transaction_read_only=off"
    yield client()
    sql(direct.direct_url, "ALTER ROLE postgres IN DATABASE todo RESET default_transaction_read_only")


def test_writes_succeed_after_failover(direct: Neon, failed_over: Person) -> None:
    sql(direct.direct_url, "ALTER ROLE postgres IN DATABASE todo RESET default_transaction_read_only")

    started = time.monotonic()
    assert [failed_over.ask("POST", json={"title": "x"}).status_code for _ in range(8)] == [201] * 8
    assert time.monotonic() - started < 3


def test_read_only_database_is_500_in_time(direct: Neon, failed_over: Person) -> None:
    opened, started = direct.proxy.connections, time.monotonic()

    answer = failed_over.ask("POST", json={"title": "x"})

    assert (answer.status_code, answer.json()) == (500, error("Internal server error"))
    assert int(answer.headers["retry-after"]) > 0
    assert time.monotonic() - started < 3
    assert direct.proxy.connections - opened <= 3
    assert failed_over.tasks() == []


def test_failover_replaces_every_connection(direct: Neon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("todo_api.database.connections.MIN_AGE_SECONDS", 0.1)

    async def fail_over() -> None:
        connections = Connections(Connector(direct.url), limit=2, wake_seconds=0)
        assert connections.take() is None
        opened = [await connections.acquire(Waiter(owner)) for owner in "ab"]
        await asyncio.sleep(0.2)
        connections.retire_all()
        for connection in opened:
            connections.release(connection)
        assert connections.idle == 0
        await connections.close()

    asyncio.run(fail_over())


@pytest.fixture
def own_postgres(directory: Path) -> Iterator[Postgres]:
    """A PostgreSQL of this test alone."""
    postgres = Postgres(directory / "own")
    migrated_database(postgres.url, "todo")
    yield postgres
    postgres.stop_standby()


def test_writes_follow_name_after_switchover(own_postgres: Postgres, directory: Path) -> None:
    with FaultProxy(str(own_postgres.directory / ".s.PGSQL.5432")) as proxy:
        neon = Neon(own_postgres, None, proxy)
        alice = neon.serve(pool_size=4, wake_seconds=2)()
        before = alice.create()
        own_postgres.copy(directory / "promoted")
        promoted = own_postgres.switch_over(directory / "promoted")
        try:
            # The name of the host still leads to the old server, which accepts no writes.
            with thread_pool(4) as threads:
                assert [*threads.map(lambda _: alice.tasks(), range(16))] == [[before]] * 16
            assert alice.ask("POST", json={"title": "x"}).status_code == 500
            proxy.upstream = str(promoted.directory / ".s.PGSQL.5432")

            started = time.monotonic()
            assert [alice.ask("POST", json={"title": "x"}).status_code for _ in range(8)] == [201] * 8
            assert time.monotonic() - started < 3
            time.sleep(1)  # after which no connection to the old server is used
            with thread_pool(4) as threads:
                assert {len(tasks) for tasks in threads.map(lambda _: alice.tasks(), range(16))} == {9}
        finally:
            neon.close()
            promoted.stop()


def test_idle_connection_dropped_by_network_is_replaced(neon: Neon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("todo_api.database.connections.IDLE_SECONDS", 0.2)
    alice = neon.serve(pool_size=4)()
    neon.wait_until_warm()
    time.sleep(1)
    neon.proxy.go_half_open()

    started = time.monotonic()
    assert [alice.ask("POST", json={"title": "x"}).status_code for _ in range(4)] == [201] * 4
    assert time.monotonic() - started < 5


def test_live_idle_connection_is_reused(direct: Neon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("todo_api.database.connections.IDLE_SECONDS", 0)
    alice = direct.serve(pool_size=1)()
    direct.wait_until_warm()

    assert [alice.ask("POST", json={"title": "x"}).status_code for _ in range(4)] == [201] * 4
    assert direct.proxy.connections == 1


def test_connection_is_replaced_at_maximum_age(direct: Neon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("todo_api.database.connections.MAX_AGE_SECONDS", 0.2)
    alice = direct.serve(pool_size=1)()
    direct.wait_until_warm()
    before = sql(direct.direct_url, PIDS)

    deadline = time.monotonic() + 5
    with thread_pool(3) as threads:
        while sql(direct.direct_url, PIDS) == before:
            answers = threads.map(lambda _: alice.ask("POST", json={"title": "x"}), range(6))
            assert {answer.status_code for answer in answers} == {201}
            assert time.monotonic() < deadline


def test_idle_connection_of_maximum_age_is_not_used(direct: Neon) -> None:
    async def grow_old() -> None:
        connections = Connections(Connector(direct.url), limit=1, wake_seconds=0)
        assert connections.take() is None
        old = await connections.acquire(Waiter("a"))
        connections.release(old)
        old.retire_at = old.fresh_until = 0
        assert connections.take() is None
        assert await connections.acquire(Waiter("a")) is not old
        await connections.close()

    asyncio.run(grow_old())


def test_connections_have_different_maximum_ages(direct: Neon) -> None:
    async def ages() -> list[float]:
        connections = Connections(Connector(direct.url), limit=3, wake_seconds=0)
        assert connections.take() is None
        opened = [await connections.acquire(Waiter(owner)) for owner in "abc"]
        await connections.close()
        return [connection.retire_at - connection.opened_at for connection in opened]

    found = asyncio.run(ages())
    assert len({*found}) == 3
    assert 480 <= min(found) < max(found) <= 720


def test_connections_use_tcp_keepalive(direct: Neon) -> None:
    async def options() -> list[int]:
        connection = await Connector(direct.url).connect()
        opened = connection._transport.get_extra_info("socket")  # noqa: SLF001  # the driver has no public access to it
        found = [
            opened.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
            opened.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
        ]
        await connection.close()
        return found

    assert asyncio.run(options()) == [1, 45]
