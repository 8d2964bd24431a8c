"""A pooler that does not track prepared statements, like PgBouncer before 1.21."""

import asyncio
import time
from contextlib import suppress

import pytest

from tests.database.neon.conftest import Neon
from tests.support.api import new_account
from tests.support.postgres import settings_for, sql
from todo_api.database import Database
from todo_api.errors import DatabaseUnavailable, TaskNotFound
from todo_api.statements import LIST
from todo_api.tasks import TaskStore

SAYING = "does not track prepared statements"


@pytest.fixture
def untracked(pooled: Neon) -> Neon:
    pooled.bouncer.kill()
    pooled.bouncer.start(max_prepared_statements=0)
    return pooled


def terminate_others(url: str) -> None:
    """End the pooler's connections to the server; it opens another one, with nothing prepared on it."""
    others = "backend_type = 'client backend' AND pid <> pg_backend_pid()"
    sql(url, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}")


def test_statement_never_runs_as_another(untracked: Neon) -> None:
    url, owner = untracked.direct_url, new_account(untracked.direct_url)
    [task] = sql(url, "INSERT INTO tasks (user_id, title) VALUES ($1, 'x') RETURNING id", owner)

    async def run() -> None:
        reading, deleting = [Database(settings_for(untracked.url, pool_size=1)) for _ in range(2)]
        await TaskStore(reading, owner).get(task["id"])
        await asyncio.to_thread(terminate_others, url)
        with pytest.raises(TaskNotFound):
            await TaskStore(deleting, owner).delete(task["id"] + 1)
        # The pooler's connection has the other's statement, and not this one.
        with suppress(DatabaseUnavailable):
            await TaskStore(reading, owner).get(task["id"])
        await reading.close()
        await deleting.close()

    asyncio.run(run())

    assert sql(url, "SELECT id FROM tasks WHERE user_id = $1", owner) == [task]


def test_untracked_pooler_is_logged_and_not_ready(untracked: Neon, caplog: pytest.LogCaptureFixture) -> None:
    alice = untracked.serve(pool_size=3)()
    deadline = time.monotonic() + 10
    while SAYING not in caplog.text:
        assert time.monotonic() < deadline

    for _ in range(3):
        assert alice.client.get("/health/ready").status_code == 503
        terminate_others(untracked.direct_url)  # the next statement runs where no other was prepared before
    said = [record.getMessage() for record in caplog.records if SAYING in record.getMessage()]
    assert len(said) == 1
    assert "max_prepared_statements" in said[0]

    untracked.bouncer.kill()
    untracked.bouncer.start()
    assert alice.client.get("/health/ready").status_code == 200
    assert alice.create()["title"] == "Buy milk"


def test_readiness_alone_finds_untracked_pooler(untracked: Neon, caplog: pytest.LogCaptureFixture) -> None:
    async def check() -> None:
        first, second = [Database(settings_for(untracked.url, pool_size=1)) for _ in range(2)]
        await first.check(LIST)
        with pytest.raises(DatabaseUnavailable):
            await second.check(LIST)
        with pytest.raises(DatabaseUnavailable):
            await second.run(LIST, {"owner": "nobody"})
        assert caplog.text.count(SAYING) == 1
        await first.close()
        await second.close()

    asyncio.run(check())


def test_unknown_prepared_statement_is_500(untracked: Neon, caplog: pytest.LogCaptureFixture) -> None:
    alice = untracked.serve(pool_size=1)()
    alice.create()
    assert alice.client.get("/health/ready").status_code == 200

    terminate_others(untracked.direct_url)
    deadline = time.monotonic() + 5
    codes = []
    while SAYING not in caplog.text:
        codes.append(alice.ask("POST", json={"title": "x"}).status_code)
        assert time.monotonic() < deadline

    assert codes[-1] == 500
    assert len(alice.stored()) <= 1 + codes.count(201) + codes[:-1].count(500)
