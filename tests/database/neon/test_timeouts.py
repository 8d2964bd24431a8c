"""Timeouts: if a connection stops responding, every request still ends in bounded time."""

import asyncio
import signal
import time
from contextlib import suppress

import pytest

from tests.database.neon.conftest import Neon
from tests.support.api import error
from tests.support.postgres import settings_for, sql
from tests.support.threads import thread_pool
from todo_api.database import Database
from todo_api.statements import LIST

ACTIVE = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND state <> 'idle' AND pid <> pg_backend_pid()
"""
SLOW = "ALTER TABLE tasks ADD CONSTRAINT slow CHECK (title <> 'slow' OR pg_sleep(5) IS NULL) NOT VALID"


@pytest.fixture(autouse=True)
def short_timeouts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the timeouts of statements and connections, so that the tests take less time."""
    monkeypatch.setattr("todo_api.database.connections.STATEMENT_SECONDS", 0.5)
    monkeypatch.setattr("todo_api.database.connecting.CONNECT_SECONDS", 0.5)
    monkeypatch.setattr("todo_api.database.connections.CONNECT_SECONDS", 0.5)


@pytest.mark.parametrize(("method", "path"), [("POST", ""), ("GET", "")])
def test_unresponsive_database_is_500_in_bounded_time(neon: Neon, method: str, path: str) -> None:
    alice = neon.serve(wake_seconds=1)()
    task = alice.create("before")
    neon.proxy.freeze()

    started = time.monotonic()
    with thread_pool(12) as threads:
        answers = list(threads.map(lambda _: alice.ask(method, path, json={"title": "x"}), range(12)))
    took = time.monotonic() - started

    assert {(answer.status_code, answer.text) for answer in answers} == {(500, '{"error":"Internal server error"}')}
    # `wake_seconds`, the timeout of the statement, two seconds to close the connection, and one to spare.
    assert took < 1 + 0.5 + 2 + 1
    neon.proxy.unfreeze()
    assert task in alice.tasks()
    assert alice.create("after")["title"] == "after"


def test_request_ends_while_connecting_hangs(direct: Neon, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("connecting", "connections"):
        monkeypatch.setattr(f"todo_api.database.{module}.CONNECT_SECONDS", 2)
    direct.proxy.freeze()
    alice = direct.serve(wake_seconds=2.5)()

    started = time.monotonic()
    assert alice.ask("GET").status_code == 500
    assert time.monotonic() - started < 3.5, "the end of the second attempt was waited for"
    direct.proxy.unfreeze()


def test_unanswered_write_is_not_retried(neon: Neon) -> None:
    alice = neon.serve(pool_size=1)()
    alice.create("old")
    neon.proxy.close_after_dropping = False
    neon.proxy.drop_next_response = True

    answer = alice.ask("POST", json={"title": "new"})

    assert (answer.status_code, answer.json()) == (500, error("Internal server error"))
    assert [row["title"] for row in alice.stored()] == ["new", "old"]


def test_unanswered_read_is_retried(neon: Neon) -> None:
    alice = neon.serve(pool_size=1)()
    task = alice.create()
    neon.proxy.freeze()

    with thread_pool(1) as threads:
        answer = threads.submit(alice.ask, "GET")
        time.sleep(1)
        neon.proxy.unfreeze()

        assert answer.result().json() == [task]


def test_timeout_drops_all_idle_connections(neon: Neon) -> None:
    alice = neon.serve(pool_size=8)()
    neon.wait_until_warm()
    neon.proxy.go_half_open()

    started = time.monotonic()
    assert alice.tasks() == []
    assert alice.create()["title"] == "Buy milk"
    # One statement timed out, and one probe of another connection; the others were dropped without being tried.
    assert time.monotonic() - started < 0.5 + 0.5 + 2


def test_broken_connection_lets_others_be_probed(neon: Neon) -> None:
    alice = neon.serve(pool_size=2)()
    neon.wait_until_warm()
    neon.proxy.drop_next_response = True
    assert alice.ask("POST", json={"title": "x"}).status_code == 500
    trips = neon.proxy.round_trips

    assert len(alice.tasks()) == 1
    assert neon.proxy.round_trips == trips + 2


def test_connection_of_cancelled_request_is_not_reused(neon: Neon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("todo_api.database.connections.STATEMENT_SECONDS", 5)
    monkeypatch.setattr("todo_api.database.running.READY_SECONDS", 0.2)
    alice = neon.serve(pool_size=1)()
    neon.wait_until_warm()
    neon.proxy.go_half_open()

    assert alice.client.get("/health/ready").status_code == 503
    assert alice.ask("POST", json={"title": "x"}).status_code == 201


def test_frozen_pooler_is_500_in_bounded_time(pooled: Neon) -> None:
    alice = pooled.serve(wake_seconds=0.5)()
    alice.create()
    pooled.bouncer.signal(signal.SIGSTOP)
    try:
        started = time.monotonic()
        answer = alice.ask("POST", json={"title": "x"})
        took = time.monotonic() - started
    finally:
        pooled.bouncer.signal(signal.SIGCONT)

    assert (answer.status_code, answer.json()) == (500, error("Internal server error"))
    assert took < 0.5 + 0.5 + 2 + 1
    assert alice.create("after")["title"] == "after"


def test_timed_out_statement_is_cancelled(neon: Neon) -> None:
    alice = neon.serve()()
    alice.create()
    sql(neon.direct_url, SLOW)
    try:
        started = time.monotonic()
        answer = alice.ask("POST", json={"title": "slow"})
        assert (answer.status_code, answer.json()) == (500, error("Internal server error"))
        while sql(neon.direct_url, ACTIVE) != [{"count": 0}]:
            assert time.monotonic() - started < 3, "the statement runs on"
    finally:
        sql(neon.direct_url, "ALTER TABLE tasks DROP CONSTRAINT slow")

    assert [row["title"] for row in alice.stored()] == ["Buy milk"]
    assert alice.create("after")["title"] == "after"


def test_unresponsive_database_does_not_delay_shutdown(neon: Neon) -> None:
    alice = neon.serve()()
    alice.create()
    neon.proxy.freeze()

    started = time.monotonic()
    neon.close()

    assert time.monotonic() - started < 2 + 1


@pytest.mark.parametrize("silence", ["freeze", "go_half_open"])
@pytest.mark.parametrize("idle_seconds", [0, 60])  # probed before its use, or not
def test_cancelled_request_leaves_no_connection_behind(
    direct: Neon, monkeypatch: pytest.MonkeyPatch, idle_seconds: float, silence: str
) -> None:
    monkeypatch.setattr("todo_api.database.connections.STATEMENT_SECONDS", 5)
    monkeypatch.setattr("todo_api.database.connections.IDLE_SECONDS", idle_seconds)

    async def leave() -> None:
        database = Database(settings_for(direct.url, pool_size=1))
        assert await database.run(LIST, {"owner": "nobody"}) == "[]"
        getattr(direct.proxy, silence)()
        waiting = asyncio.create_task(database.run(LIST, {"owner": "nobody"}))
        await asyncio.sleep(0.1)
        waiting.cancel()
        with suppress(asyncio.CancelledError):
            await waiting
        direct.proxy.unfreeze()
        async with asyncio.timeout(4):
            assert await database.run(LIST, {"owner": "nobody"}) == "[]"
        await database.close()

    asyncio.run(leave())
    assert direct.proxy.connections > 1
