"""A pooler that does not track prepared statements, like PgBouncer before 1.21."""

import time

import pytest

from tests.database.neon.conftest import Neon
from tests.support.api import Person
from tests.support.crowd import crowd
from tests.support.postgres import sql

SAYING = "does not track prepared statements"


@pytest.fixture
def untracked(pooled: Neon) -> Neon:
    pooled.bouncer.kill()
    pooled.bouncer.start(max_prepared_statements=0)
    return pooled


def test_reads_through_untracked_pooler_change_nothing(untracked: Neon) -> None:
    alice = untracked.serve(pool_size=3)()
    bob = Person(untracked.serve(pool_size=5)().client, alice.database_url, alice.id)
    insert = "INSERT INTO tasks (user_id, title) SELECT $1, n::text FROM generate_series(1, 50) n"
    sql(untracked.direct_url, insert, alice.id)
    before = alice.stored()

    def read(number: int) -> int:
        person = (alice, bob)[number % 2]
        return person.ask("GET", f"/{before[number % 50]['id']}").status_code

    with crowd(6) as threads:
        codes = set(threads.map(read, range(400)))

    assert alice.stored() == before
    assert codes <= {200, 500}


def test_untracked_pooler_is_logged_and_not_ready(untracked: Neon, caplog: pytest.LogCaptureFixture) -> None:
    alice = untracked.serve(pool_size=3)()
    deadline = time.monotonic() + 10
    while alice.client.get("/health/ready").status_code != 503:
        assert time.monotonic() < deadline

    assert [alice.client.get("/health/ready").status_code for _ in range(3)] == [503] * 3
    said = [record.getMessage() for record in caplog.records if SAYING in record.getMessage()]
    assert len(said) == 1
    assert "max_prepared_statements" in said[0]

    untracked.bouncer.kill()
    untracked.bouncer.start()
    assert alice.client.get("/health/ready").status_code == 200
    assert alice.create()["title"] == "Buy milk"


def test_unknown_prepared_statement_is_500(untracked: Neon, caplog: pytest.LogCaptureFixture) -> None:
    alice = untracked.serve(pool_size=1)()
    alice.create()
    assert alice.client.get("/health/ready").status_code == 200

    # PgBouncer then uses another server connection, with nothing prepared on it.
    others = "backend_type = 'client backend' AND pid <> pg_backend_pid()"
    sql(untracked.direct_url, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}")
    deadline = time.monotonic() + 5
    codes = []
    while SAYING not in caplog.text:
        codes.append(alice.ask("POST", json={"title": "x"}).status_code)
        assert time.monotonic() < deadline

    assert codes[-1] == 500
    assert len(alice.stored()) <= 1 + codes.count(201) + codes[:-1].count(500)
