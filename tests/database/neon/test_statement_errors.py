"""Errors of single statements: their effect on the request, the connection and other users."""

import asyncio
import logging
import secrets
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from starlette.requests import ClientDisconnect

from tests.database.neon.conftest import Neon
from tests.support.api import Leaving, Person, error, new_account
from tests.support.patience import deadline
from tests.support.postgres import locked, settings_for, sql
from tests.support.threads import thread_pool
from todo_api.database import Database
from todo_api.models import read_new_task
from todo_api.statements import STATEMENTS
from todo_api.tasks import TaskStore

FAIL = """
    CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION 'the cause' USING ERRCODE = NEW.title, DETAIL = 's3cret row';
    END $$
"""
FAILING = """
    CREATE TRIGGER fail BEFORE INSERT ON tasks FOR EACH ROW WHEN (NEW.title ~ '^[0-9A-Z]{5}$') EXECUTE FUNCTION fail()
"""


@pytest.fixture
def failing(direct: Neon) -> Iterator[Neon]:
    """A database where creating a task whose title is an SQLSTATE fails with that SQLSTATE."""
    sql(direct.direct_url, FAIL)
    sql(direct.direct_url, FAILING)
    yield direct
    sql(direct.direct_url, "DROP FUNCTION fail CASCADE")


@pytest.mark.parametrize("sqlstate", ["53100", "53200", "53400", "54000", "55P03", "57014", "58030", "XX000"])
def test_statement_error_is_answered_at_once(failing: Neon, caplog: pytest.LogCaptureFixture, sqlstate: str) -> None:
    alice = failing.serve(pool_size=1)()
    failing.wait_until_warm()
    opened, started = failing.proxy.connections, time.monotonic()

    answer = alice.ask("POST", json={"title": sqlstate})

    assert (answer.status_code, answer.json()) == (500, error("Internal server error"))
    assert "retry-after" not in answer.headers
    assert time.monotonic() - started < 2
    assert alice.client.get("/health/ready").status_code == 200
    assert alice.tasks() == []
    assert failing.proxy.connections == opened
    logged = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(logged) == 1
    assert logged[0].exc_info
    assert "the cause" in caplog.text
    assert "s3cret" not in caplog.text


@pytest.fixture
def small_disk(direct: Neon, directory: Path) -> Iterator[Callable[[str], None]]:
    """Keep the tasks in a file system of 3 MB; yield a function that changes its size."""
    place = directory / "small"
    place.mkdir()
    owner = direct.postgres.directory.stat()

    def mount(options: str) -> None:
        options = f"{options},mode=0700,uid={owner.st_uid},gid={owner.st_gid}"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], check=True)

    try:
        mount("size=3m")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this user cannot mount a file system")
    sql(direct.direct_url, f"CREATE TABLESPACE small LOCATION '{place}'")
    sql(direct.direct_url, "ALTER TABLE tasks SET TABLESPACE small")
    yield lambda size: mount(f"remount,size={size}")
    sql(direct.direct_url, "ALTER TABLE tasks SET TABLESPACE pg_default")
    sql(direct.direct_url, "DROP TABLESPACE small")
    subprocess.run(["umount", place], check=True)


def fill(url: str, owner: str) -> None:
    """Insert tasks until the disk is full."""
    for rows in (1000, 10, 1):
        with suppress(asyncpg.DiskFullError):
            while True:
                sql(url, f"INSERT INTO tasks (user_id, title) SELECT $1, 'x' FROM generate_series(1, {rows})", owner)


def test_full_disk_fails_only_creates(
    direct: Neon, small_disk: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    alice = direct.serve(pool_size=1)()
    task = alice.create()
    fill(direct.direct_url, new_account(direct.direct_url))
    opened, started = direct.proxy.connections, time.monotonic()
    create = {"title": "x", "description": secrets.token_hex(2500)}

    answer = alice.ask("POST", json=create)

    assert (answer.status_code, answer.json()) == (500, error("Internal server error"))
    assert "retry-after" not in answer.headers
    assert "No space left on device" in caplog.text
    assert alice.client.get("/health/ready").status_code == 200
    assert alice.tasks() == [task]
    assert alice.ask("DELETE", f"/{task['id']}").status_code == 204
    assert time.monotonic() - started < 2
    assert direct.proxy.connections == opened
    small_disk("30m")
    assert alice.ask("POST", json=create).status_code == 201


@pytest.mark.parametrize(("sqlstate", "name"), [("40001", "SerializationError"), ("40P01", "DeadlockDetectedError")])
def test_rolled_back_statement_is_retried(
    failing: Neon, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, sqlstate: str, name: str
) -> None:
    monkeypatch.setattr("todo_api.database.running.TRIES", 2)
    alice = failing.serve(pool_size=1)()
    failing.wait_until_warm()
    before = failing.proxy.statements

    assert alice.ask("POST", json={"title": sqlstate}).status_code == 500
    assert failing.proxy.statements == before + 3
    assert name in caplog.text


def test_statement_is_not_retried_for_a_client_that_has_left(failing: Neon) -> None:
    owner = new_account(failing.direct_url)

    async def create() -> None:
        database = Database(settings_for(failing.url, pool_size=1))
        await database.warm(STATEMENTS)
        before = failing.proxy.statements
        with pytest.raises(ClientDisconnect):
            await TaskStore(database, owner, Leaving(check=2)).create(read_new_task({"title": "40001"}))
        assert failing.proxy.statements == before + 1
        await database.close()

    asyncio.run(create())


@pytest.mark.parametrize("sqlstate", ["53300", "57P03"])
def test_refused_statement_is_retried(failing: Neon, sqlstate: str) -> None:
    alice = failing.serve(pool_size=1)()
    failing.wait_until_warm()
    before = failing.proxy.statements

    with thread_pool(1) as threads:
        answer = threads.submit(alice.ask, "POST", json={"title": sqlstate})
        while failing.proxy.statements < before + 2:
            assert not answer.done()
        sql(failing.direct_url, "DROP TRIGGER fail ON tasks")

        assert answer.result().status_code == 201


def test_write_lost_by_router_is_not_retried(failing: Neon) -> None:
    alice = failing.serve(pool_size=1)()
    failing.wait_until_warm()
    before, opened = failing.proxy.statements, failing.proxy.connections

    answer = alice.ask("POST", json={"title": "08006"})

    assert answer.status_code == 500
    assert int(answer.headers["retry-after"]) > 0
    assert (failing.proxy.statements, failing.proxy.connections) == (before + 1, opened)


def test_error_that_ends_the_connection_is_unknown(direct: Neon) -> None:
    alice = direct.serve(pool_size=1)()
    direct.wait_until_warm()
    failure = ("XX000", "something that no table has")
    direct.proxy.statement_refusals.append(failure)

    answer = alice.ask("POST", json={"title": "x"})
    assert (answer.status_code, answer.json()) == (500, error("Internal server error"))
    assert int(answer.headers["retry-after"]) > 0

    direct.proxy.statement_refusals.append(failure)
    assert alice.tasks() == [], "a read is repeated on a new connection"
    assert not direct.proxy.statement_refusals


@pytest.fixture
def service_role(direct: Neon) -> Iterator[Neon]:
    """A service whose role gets an error for one owner's rows, as if they were on a dead node."""
    dead = "BEGIN IF $1 = 'dead' THEN RAISE 'node is down' USING ERRCODE = '08006'; END IF; RETURN true; END"
    for statement in (
        "CREATE ROLE service LOGIN",
        "GRANT SELECT, INSERT, UPDATE, DELETE ON tasks TO service",
        "GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO service",
        f"CREATE FUNCTION reachable(text) RETURNS boolean LANGUAGE plpgsql AS $$ {dead} $$",
        "ALTER TABLE tasks ENABLE ROW LEVEL SECURITY",
        "CREATE POLICY nodes ON tasks USING (reachable(user_id))",
    ):
        sql(direct.direct_url, statement)
    direct.url = direct.url.replace("postgres@", "service@")
    yield direct
    for statement in (
        "DROP POLICY nodes ON tasks",
        "ALTER TABLE tasks DISABLE ROW LEVEL SECURITY",
        "DROP FUNCTION reachable",
        "DROP OWNED BY service",
        "DROP ROLE service",
    ):
        sql(direct.direct_url, statement)


def test_dead_node_does_not_slow_other_users(service_role: Neon) -> None:
    client = service_role.serve(pool_size=2, wake_seconds=1)
    alice = client()
    alice.create()
    new_account(alice.database_url, "dead")
    sql(alice.database_url, "INSERT INTO tasks (user_id, title) VALUES ('dead', 'x')")
    dead = Person(alice.client, alice.database_url, "dead")
    slowest = 0.0

    with thread_pool(8) as threads:
        answers = [threads.submit(dead.ask, "GET") for _ in range(8)]
        while not all(answer.done() for answer in answers):
            started = time.monotonic()
            assert len(alice.tasks()) == 1
            slowest = max(slowest, time.monotonic() - started)

    assert {answer.result().status_code for answer in answers} == {500}
    assert slowest < 0.7
    sql(alice.database_url, 'DELETE FROM "user" WHERE id = $1', "dead")


def test_only_missing_account_is_unauthorized(direct: Neon, caplog: pytest.LogCaptureFixture) -> None:
    alice = direct.serve()()
    task = alice.create()
    sql(
        direct.direct_url, "CREATE TABLE comments (owner text, task bigint, FOREIGN KEY (owner, task) REFERENCES tasks)"
    )
    sql(direct.direct_url, "INSERT INTO comments VALUES ($1, $2)", alice.id, task["id"])
    try:
        assert alice.ask("DELETE", f"/{task['id']}").status_code == 500
        assert "comments_owner_task_fkey" in caplog.text
    finally:
        sql(direct.direct_url, "DROP TABLE comments")

    sql(direct.direct_url, 'DELETE FROM "user" WHERE id = $1', alice.id)
    assert alice.ask("POST", json={"title": "x"}).status_code == 401


# Inserts by the application "late" wait here for the test, after they have looked for a task with their key and before
# they enter it into the index of keys, which the REINDEX puts last.
PAUSE = """
    CREATE FUNCTION pause(text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$
    BEGIN
        IF current_setting('application_name') = 'late' THEN PERFORM pg_advisory_xact_lock(1); END IF;
        RETURN $1;
    END $$
"""
REINDEX = "REINDEX INDEX CONCURRENTLY tasks_idempotency_key"
NEW_INDEX_IS_WRITTEN = (
    "SELECT FROM pg_index WHERE indexrelid = to_regclass('tasks_idempotency_key_ccnew') AND indisready"
)
OLD_INDEX_IS_REPLACED = "SELECT FROM pg_class WHERE relname = 'tasks_idempotency_key_ccold'"
IS_PAUSED = "SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"


@pytest.fixture
def pausing(direct: Neon) -> Iterator[Neon]:
    for statement in (PAUSE, "CREATE INDEX pausing ON tasks (pause(title))", REINDEX):
        sql(direct.direct_url, statement)
    yield direct
    sql(direct.direct_url, "DROP FUNCTION pause CASCADE")


def wait_for(url: str, condition: str) -> None:
    end = deadline()
    while not sql(url, condition):
        assert time.monotonic() < end


@pytest.mark.parametrize("is_replaced", [False, True])
def test_keyed_create_succeeds_beside_reindex(pausing: Neon, *, is_replaced: bool) -> None:
    url, early = pausing.direct_url, pausing.serve()()
    pausing.url += "?application_name=late"
    late = Person(pausing.serve()().client, early.database_url, early.id)
    create: dict[str, Any] = {"json": {"title": "x"}, "headers": {"Idempotency-Key": "k"}}

    with thread_pool(2) as threads, ExitStack() as pause, ExitStack() as snapshot:
        pause.enter_context(locked(url, "SELECT pg_advisory_xact_lock(1)"))
        # REINDEX waits for this snapshot before it replaces the index.
        snapshot.enter_context(locked(url, "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT 1"))
        threads.submit(sql, url, REINDEX)
        wait_for(url, NEW_INDEX_IS_WRITTEN)
        answer = threads.submit(late.ask, "POST", **create)
        wait_for(url, IS_PAUSED)
        if is_replaced:
            snapshot.close()
            wait_for(url, OLD_INDEX_IS_REPLACED)
        first = early.ask("POST", **create)
        pause.close()
        second = answer.result()

    assert (first.status_code, second.status_code) == (201, 201)
    assert second.json() == first.json()
    assert second.headers["idempotency-replayed"] == "true"
    assert len(early.stored()) == 1


NOT_RUN = [
    ("53300", "sorry, too many clients already"),
    ("57P05", "terminating connection due to idle-session timeout"),
    ("XX000", "sorry, too many clients already"),
    ("08P01", "client connections exceeded"),
    ("08P01", "no more connections allowed (max_client_conn)"),
]


@pytest.mark.parametrize(("sqlstate", "text"), NOT_RUN)
def test_write_that_was_not_run_is_retried(direct: Neon, sqlstate: str, text: str) -> None:
    alice = direct.serve(pool_size=1)()
    direct.wait_until_warm()
    direct.proxy.statement_refusals.extend([(sqlstate, text)] * 2)

    assert alice.ask("POST", json={"title": "x"}).status_code == 201
    assert not direct.proxy.statement_refusals
    assert [row["title"] for row in alice.stored()] == ["x"]
