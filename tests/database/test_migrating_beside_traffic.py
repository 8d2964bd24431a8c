"""A migration beside the version before: its statements go on, whether they wait, are prepared, or start meanwhile."""

import asyncio
import json
import os
from asyncio.subprocess import PIPE, Process
from collections import Counter
from pathlib import Path

import asyncpg
import pytest
from alembic import command
from starlette.testclient import TestClient

from tests.database.test_migrations import config_for
from tests.support.api import new_account
from tests.support.crowd import crowd
from tests.support.postgres import locked, settings_for, sql, waiting_backend
from tests.support.serving import BIN
from todo_api.errors import MigrationError
from todo_api.main import create_app
from todo_api.migrations import migrate

# What version 0001 runs, to the letter.
_TIME = """to_char(timezone('UTC', tasks.{0}), 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS {0}"""
_ANSWER = "tasks.id, tasks.user_id, tasks.title, tasks.description, tasks.status, " + ", ".join(
    _TIME.format(name) for name in ("created_at", "updated_at")
)
_ONE = "WITH task AS ({}) SELECT CAST(row_to_json(task) AS TEXT) AS row_to_json_1 FROM task"
_MINE = "tasks.user_id = $1::VARCHAR AND tasks.id = $2::BIGINT"
_LATER = "greatest(now(), tasks.updated_at + interval '1 microsecond')"
CREATE = _ONE.format(
    "INSERT INTO tasks (user_id, title, description) VALUES ($1::VARCHAR, $2::VARCHAR, $3::VARCHAR) "
    f"RETURNING {_ANSWER}"
)
GET = _ONE.format(f"SELECT {_ANSWER} FROM tasks WHERE {_MINE}")
UPDATE = _ONE.format(
    f"UPDATE tasks SET title=coalesce($3::VARCHAR, tasks.title), updated_at={_LATER} WHERE {_MINE} RETURNING {_ANSWER}"
)
DELETE = _ONE.format(f"DELETE FROM tasks WHERE {_MINE} RETURNING tasks.id")
LIST = (
    "SELECT CAST(coalesce(json_agg(row_to_json(task)), '[]') AS TEXT) AS coalesce_1 "
    f"FROM (SELECT {_ANSWER} FROM tasks WHERE tasks.user_id = $1::VARCHAR ORDER BY tasks.id DESC) AS task"
)
BUILDING = "SELECT 1 FROM pg_stat_progress_create_index WHERE datname = current_database() AND phase LIKE 'waiting%'"
INDEX_IS_VALID = "SELECT indisvalid FROM pg_index WHERE indexrelid = 'tasks_idempotency_key'::regclass"
TURN = f"SELECT pg_advisory_xact_lock({0x746F646F})"
WAITS_FOR_ITS_TURN = "SELECT 1 FROM pg_stat_activity WHERE query LIKE '%pg_try_advisory%' AND pid <> pg_backend_pid()"
NEW = "INSERT INTO tasks (user_id, title) VALUES ('alice', 'new') RETURNING id"
SNAPSHOT = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT 1"


@pytest.fixture
def filled(empty_database: str) -> str:
    """The URL of a database at the version before, with tasks in it."""
    command.upgrade(config_for(empty_database), "0001")
    new_account(empty_database, "alice")
    sql(
        empty_database,
        "INSERT INTO tasks (user_id, title) SELECT 'alice', 'task ' || n FROM generate_series(1, 1000) n",
    )
    return empty_database


class Traffic:
    """Users of the version before, at work until it is over."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.over = False
        self.rounds = Counter[str]()
        self._done = asyncio.Event()

    async def live(self, owner: str) -> None:
        """Use every kind of statement over and over, each prepared once, before the migration."""
        connection = await asyncpg.connect(self._url)
        create, get, update, delete, tasks = [
            await connection.prepare(text) for text in (CREATE, GET, UPDATE, DELETE, LIST)
        ]
        while not self.over:
            task = json.loads(await create.fetchval(owner, "new", None))
            changed = json.loads(await update.fetchval(owner, task["id"], "changed"))
            assert changed == {**task, "title": "changed", "updated_at": changed["updated_at"]}
            assert json.loads(await get.fetchval(owner, task["id"])) == changed
            assert json.loads(await tasks.fetchval(owner)) == [changed]
            assert json.loads(await delete.fetchval(owner, task["id"])) == {"id": task["id"]}
            self.rounds[owner] += 1
            self._done.set()
            self._done.clear()
        await connection.close()

    async def go_on(self) -> None:
        """Wait until each has done ten more rounds."""
        enough = {owner: rounds + 10 for owner, rounds in self.rounds.items()}
        while any(self.rounds[owner] < rounds for owner, rounds in enough.items()):
            await self._done.wait()


async def start_migration(url: str, cwd: Path) -> Process:
    environment = {**os.environ, "DATABASE_URL": url}
    return await asyncio.create_subprocess_exec(BIN / "todo-api", "migrate", env=environment, cwd=cwd, stderr=PIPE)


def test_the_statements_of_the_version_before_go_on_while_two_replicas_migrate(filled: str, tmp_path: Path) -> None:
    owners = [new_account(filled) for _ in range(4)]

    async def run() -> None:
        traffic = Traffic(filled)
        async with asyncio.timeout(60), asyncio.TaskGroup() as users:
            for owner in owners:
                users.create_task(traffic.live(owner))
                traffic.rounds[owner] = 0
            await traffic.go_on()
            reader = await asyncpg.connect(filled)  # and the index is not finished before its transaction is
            await reader.execute(f"BEGIN; {SNAPSHOT}")
            migrations = [await start_migration(filled, tmp_path) for _ in range(2)]
            observer = await asyncpg.connect(filled)
            while not await observer.fetch(BUILDING):
                pass

            await traffic.go_on()
            assert [migration.returncode for migration in migrations] == [None, None]
            await reader.close()
            assert [(await migration.communicate())[1] for migration in migrations] == [b"", b""]
            assert [migration.returncode for migration in migrations] == [0, 0]
            await traffic.go_on()
            await observer.close()
            traffic.over = True

    asyncio.run(run())
    command.check(config_for(filled))


def readiness(url: str) -> int:
    with TestClient(create_app(settings_for(url))) as client:
        return client.get("/health/ready").status_code


@pytest.mark.parametrize("break_off", ["pg_cancel_backend", "pg_terminate_backend"])
def test_a_migration_that_broke_off_leaves_the_service_unready_and_is_mended_by_the_next(
    filled: str, break_off: str
) -> None:
    with crowd(1) as threads, locked(filled, SNAPSHOT):
        threads.submit(lambda: sql(filled, f"SELECT {break_off}($1)", waiting_backend(filled)))
        with pytest.raises(MigrationError, match=r"^The database \S.*$"):
            migrate(settings_for(filled))

    assert sql(filled, INDEX_IS_VALID) == [{"indisvalid": False}]
    assert readiness(filled) == 503
    migrate(settings_for(filled))
    assert sql(filled, INDEX_IS_VALID) == [{"indisvalid": True}]
    assert readiness(filled) == 200
    command.check(config_for(filled))


def test_down_and_up_again_keeps_the_tasks(filled: str) -> None:
    migrate(settings_for(filled))
    before = sql(filled, "SELECT * FROM tasks ORDER BY id")

    command.downgrade(config_for(filled), "0001")
    kept = sql(filled, "SELECT * FROM tasks ORDER BY id")
    assert readiness(filled) == 503
    migrate(settings_for(filled))

    assert sql(filled, "SELECT * FROM tasks ORDER BY id") == before
    assert list(kept[0]) == ["user_id", "id", "title", "description", "status", "created_at", "updated_at"]
    assert sql(filled, INDEX_IS_VALID) == [{"indisvalid": True}]


def test_a_migration_waits_its_turn_but_not_for_ever(filled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("todo_api.migrations.TURN_SECONDS", 0.2)

    with (
        locked(filled, TURN),
        pytest.raises(MigrationError, match=r"^Another migration of this database is still running\.$"),
    ):
        migrate(settings_for(filled))


def test_who_waits_for_a_turn_keeps_no_index_from_being_built(filled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("todo_api.migrations.TURN_SECONDS", 10)

    with crowd(1) as threads:
        with locked(filled, TURN):
            migration = threads.submit(migrate, settings_for(filled))
            while not sql(filled, WAITS_FOR_ITS_TURN):
                assert not migration.done()
            sql(filled, "CREATE INDEX CONCURRENTLY somebody_elses ON tasks (title)")
        migration.result()


def test_ids_go_on_counting_up_and_down(filled: str) -> None:
    ids = []
    for migration, revision in ((command.upgrade, "0003"), (command.downgrade, "0002"), (command.upgrade, "0003")):
        sql(filled, "DELETE FROM tasks WHERE id = (SELECT max(id) FROM tasks)")
        migration(config_for(filled), revision)
        ids += [sql(filled, NEW)[0]["id"] for _ in range(2)]

    assert ids == [1001, 1002, 1003, 1004, 1005, 1006]


def test_ids_are_unique_and_grow_while_migrating(filled: str) -> None:
    command.upgrade(config_for(filled), "0002")
    made = [list[int]() for _ in range(4)]
    over = False

    async def create(ids: list[int]) -> None:
        connection = await asyncpg.connect(filled)
        new = await connection.prepare(NEW)
        while not over:
            ids.append(await new.fetchval())
        await connection.close()

    async def run() -> None:
        nonlocal over
        async with asyncio.timeout(60), asyncio.TaskGroup() as users:
            for ids in made:
                users.create_task(create(ids))
            for _ in range(3):
                await asyncio.to_thread(command.upgrade, config_for(filled), "0003")
                await asyncio.to_thread(command.downgrade, config_for(filled), "0002")
            over = True

    asyncio.run(run())
    assert all(ids == sorted(ids) for ids in made)
    every = [number for ids in made for number in ids]
    assert len(set(every)) == len(every) == max(every) - 1000


def test_roles_that_could_create_tasks_still_can(filled: str, worker: str) -> None:
    role = f"inserts_{worker}"
    sql(filled, f"DROP ROLE IF EXISTS {role}")
    sql(filled, f"CREATE ROLE {role} LOGIN")
    sql(filled, f"GRANT SELECT, INSERT ON tasks TO {role}")
    migrate(settings_for(filled))
    try:
        assert sql(filled.replace("postgres:@", f"{role}:@"), NEW) == [{"id": 1001}]
    finally:
        sql(filled, f"DROP OWNED BY {role}")
        sql(filled, f"DROP ROLE {role}")
