"""Bounds: whatever falls silent, a request ends, and the service goes on."""

import signal
import time

import pytest

from tests.database.neon.conftest import Neon
from tests.support.api import error
from tests.support.crowd import crowd
from tests.support.postgres import sql

ACTIVE = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND state <> 'idle' AND pid <> pg_backend_pid()
"""
SLOW = "ALTER TABLE tasks ADD CONSTRAINT slow CHECK (title <> 'slow' OR pg_sleep(5) IS NULL) NOT VALID"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up statements and connections sooner than the service does, for the tests' sake."""
    monkeypatch.setattr("todo_api.database.STATEMENT_SECONDS", 0.5)
    monkeypatch.setattr("todo_api.database.CONNECT_SECONDS", 0.5)


@pytest.mark.parametrize(("method", "path"), [("POST", ""), ("GET", "")])
def test_a_link_that_goes_silent_is_an_error_in_bounded_time(neon: Neon, method: str, path: str) -> None:
    alice = neon.serve(wake_seconds=1)()
    task = alice.create("before")
    neon.front.fall_silent()

    started = time.monotonic()
    with crowd(12) as threads:
        answers = list(threads.map(lambda _: alice.ask(method, path, json={"title": "x"}), range(12)))
    took = time.monotonic() - started

    assert {(answer.status_code, answer.text) for answer in answers} == {(500, '{"error":"Internal server error"}')}
    # Waiting for a connection, the statement, and two seconds to hang up politely.
    assert took < 1 + 0.5 + 2 + 1
    neon.front.speak()
    assert task in alice.tasks()
    assert alice.create("after")["title"] == "after"


def test_a_write_whose_answer_never_comes_is_not_repeated(neon: Neon) -> None:
    alice = neon.serve(pool_size=1)()
    alice.create("old")
    neon.front.close_when_lost = False
    neon.front.lose_next_answer = True

    answer = alice.ask("POST", json={"title": "new"})

    assert (answer.status_code, answer.json()) == (500, error("Internal server error"))
    assert [row["title"] for row in alice.stored()] == ["new", "old"]


def test_a_read_on_a_link_that_went_silent_is_repeated_on_another(neon: Neon) -> None:
    alice = neon.serve(pool_size=1)()
    task = alice.create()
    neon.front.fall_silent()

    with crowd(1) as threads:
        answer = threads.submit(alice.ask, "GET")
        time.sleep(1)
        neon.front.speak()

        assert answer.result().json() == [task]


def test_one_silent_link_tells_of_the_others(neon: Neon) -> None:
    alice = neon.serve(pool_size=4)()
    with crowd(8) as threads:
        list(threads.map(lambda _: alice.tasks(), range(32)))
    neon.front.go_half_open()

    started = time.monotonic()
    assert alice.tasks() == []
    for _ in range(8):
        assert alice.create()["title"] == "Buy milk"
    # One statement was given up, and one link hung up politely. The others were as dead, and nobody had to find out.
    assert time.monotonic() - started < 0.5 + 2 + 0.7


def test_a_link_that_fell_silent_under_a_request_given_up_is_not_used_again(
    neon: Neon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("todo_api.database.STATEMENT_SECONDS", 5)
    monkeypatch.setattr("todo_api.health.READY_SECONDS", 0.2)
    alice = neon.serve(pool_size=1)()
    neon.wait_until_warm()
    neon.front.go_half_open()

    assert alice.client.get("/health/ready").status_code == 503
    assert alice.ask("POST", json={"title": "x"}).status_code == 201


def test_a_frozen_pooler_is_an_error_in_bounded_time(pooled: Neon) -> None:
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


def test_a_statement_that_is_given_up_is_cancelled_in_the_database(neon: Neon) -> None:
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


def test_a_database_that_is_silent_does_not_hold_up_the_end(neon: Neon) -> None:
    alice = neon.serve()()
    alice.create()
    neon.front.fall_silent()

    started = time.monotonic()
    neon.close()

    assert time.monotonic() - started < 2 + 1
