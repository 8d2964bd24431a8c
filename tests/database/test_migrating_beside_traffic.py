"""Migrations while the previous version serves: its statements still work, whether blocked, prepared or new."""

import asyncio
import json
import os
import signal
from asyncio.subprocess import PIPE, Process
from collections import Counter
from pathlib import Path

import asyncpg
import pytest
from alembic import command
from starlette.testclient import TestClient

from tests.database.test_migrations import config_for
from tests.support.api import new_account
from tests.support.postgres import locked, settings_for, sql, waiting_backend
from tests.support.serving import BIN, process
from tests.support.threads import thread_pool
from todo_api.errors import MigrationError
from todo_api.main import create_app
from todo_api.migrations import migrate

pytestmark = pytest.mark.slow

# The exact statements of the service at schema version 0001.
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
LOCK = f"SELECT pg_advisory_xact_lock({0x746F646F})"
WAITS_FOR_LOCK = "SELECT 1 FROM pg_stat_activity WHERE query LIKE '%pg_try_advisory%' AND pid <> pg_backend_pid()"
NEW = "INSERT INTO tasks (user_id, title) VALUES ('alice', 'new') RETURNING id"
WAITS = "The migration waits for a transaction of process {} (role postgres, unnamed application) to end.\n"
SNAPSHOT = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT 1"


@pytest.fixture
def filled(empty_database: str) -> str:
    """The URL of a database at schema version 0001, with tasks."""
    command.upgrade(config_for(empty_database), "0001")
    new_account(empty_database, "alice")
    sql(
        empty_database,
        "INSERT INTO tasks (user_id, title) SELECT 'alice', 'task ' || n FROM generate_series(1, 1000) n",
    )
    return empty_database


class Traffic:
    """Users of the previous version, which run statements until `over` is set."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.over = False
        self.rounds = Counter[str]()
        self._done = asyncio.Event()

    async def run_statements(self, owner: str) -> None:
        """Run every statement in a loop, each prepared once before the migration."""
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

    async def complete_rounds(self) -> None:
        """Wait until each user has completed ten more rounds."""
        enough = {owner: rounds + 10 for owner, rounds in self.rounds.items()}
        while any(self.rounds[owner] < rounds for owner, rounds in enough.items()):
            await self._done.wait()


async def start_migration(url: str, cwd: Path) -> Process:
    environment = {**os.environ, "DATABASE_URL": url}
    return await asyncio.create_subprocess_exec(BIN / "todo-api", "migrate", env=environment, cwd=cwd, stderr=PIPE)


def test_previous_version_works_during_migration(filled: str, tmp_path: Path) -> None:
    owners = [new_account(filled) for _ in range(4)]

    async def run() -> None:
        traffic = Traffic(filled)
        async with asyncio.timeout(60), asyncio.TaskGroup() as users:
            for owner in owners:
                users.create_task(traffic.run_statements(owner))
                traffic.rounds[owner] = 0
            await traffic.complete_rounds()
            reader = await asyncpg.connect(filled)  # CREATE INDEX CONCURRENTLY waits for its snapshot
            await reader.execute(f"BEGIN; {SNAPSHOT}")
            migrations = [await start_migration(filled, tmp_path) for _ in range(2)]
            observer = await asyncpg.connect(filled)
            while not await observer.fetch(BUILDING):
                pass

            await traffic.complete_rounds()
            assert [migration.returncode for migration in migrations] == [None, None]
            waits = WAITS.format(reader.get_server_pid()).encode()
            await reader.close()
            assert {(await migration.communicate())[1] for migration in migrations} <= {b"", waits}
            assert [migration.returncode for migration in migrations] == [0, 0]
            await traffic.complete_rounds()
            await observer.close()
            traffic.over = True

    asyncio.run(run())
    command.check(config_for(filled))


def readiness(url: str) -> int:
    with TestClient(create_app(settings_for(url))) as client:
        return client.get("/health/ready").status_code


@pytest.mark.parametrize("break_off", ["pg_cancel_backend", "pg_terminate_backend"])
def test_interrupted_migration_is_unready_until_repeated(filled: str, break_off: str) -> None:
    with thread_pool(1) as threads, locked(filled, SNAPSHOT):
        threads.submit(lambda: sql(filled, f"SELECT {break_off}($1)", waiting_backend(filled)))
        with pytest.raises(MigrationError, match=r"^The database \S.*$"):
            migrate(settings_for(filled))

    assert sql(filled, INDEX_IS_VALID) == [{"indisvalid": False}]
    assert readiness(filled) == 503
    migrate(settings_for(filled))
    assert sql(filled, INDEX_IS_VALID) == [{"indisvalid": True}]
    assert readiness(filled) == 200
    command.check(config_for(filled))


def test_downgrade_and_upgrade_keep_tasks(filled: str) -> None:
    migrate(settings_for(filled))
    before = sql(filled, "SELECT * FROM tasks ORDER BY id")

    command.downgrade(config_for(filled), "0001")
    kept = sql(filled, "SELECT * FROM tasks ORDER BY id")
    assert readiness(filled) == 503
    migrate(settings_for(filled))

    assert sql(filled, "SELECT * FROM tasks ORDER BY id") == before
    assert list(kept[0]) == ["user_id", "id", "title", "description", "status", "created_at", "updated_at"]
    assert sql(filled, INDEX_IS_VALID) == [{"indisvalid": True}]


def test_migration_gives_up_on_advisory_lock(filled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("todo_api.migrations.ADVISORY_LOCK_SECONDS", 0.2)

    with (
        locked(filled, LOCK),
        pytest.raises(MigrationError, match=r"^Another migration of this database is still running\.$"),
    ):
        migrate(settings_for(filled))


def test_waiting_migration_blocks_no_index_build(filled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("todo_api.migrations.ADVISORY_LOCK_SECONDS", 10)

    with thread_pool(1) as threads:
        with locked(filled, LOCK):
            migration = threads.submit(migrate, settings_for(filled))
            while not sql(filled, WAITS_FOR_LOCK):
                assert not migration.done()
            sql(filled, "CREATE INDEX CONCURRENTLY somebody_elses ON tasks (title)")
        migration.result()


def test_ids_continue_after_upgrade_and_downgrade(filled: str) -> None:
    ids = []
    for migration, revision in ((command.upgrade, "0003"), (command.downgrade, "0002"), (command.upgrade, "0003")):
        sql(filled, "DELETE FROM tasks WHERE id = (SELECT max(id) FROM tasks)")
        migration(config_for(filled), revision)
        ids += [sql(filled, NEW)[0]["id"] for _ in range(2)]

    assert ids == [1001, 1002, 1003, 1004, 1005, 1006]


def test_ids_stay_unique_during_migration(filled: str) -> None:
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


def test_roles_with_insert_can_still_create(filled: str, worker: str) -> None:
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


def test_interrupted_migrate_command_exits_nonzero(filled: str, tmp_path: Path) -> None:
    environment = {"DATABASE_URL": filled}
    with locked(filled, LOCK), process("todo-api", "migrate", environment=environment, cwd=tmp_path) as migration:
        while not sql(filled, WAITS_FOR_LOCK):
            assert not migration.has_ended()
        assert migration.stop(signal.SIGINT) == 130


def test_migration_logs_whose_snapshot_blocks_it(
    filled: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("todo_api.migrations.WATCH_SECONDS", 0.1)

    with thread_pool(1) as threads:
        with locked(f"{filled}&application_name=report", SNAPSHOT):
            migration = threads.submit(migrate, settings_for(filled))
            while not caplog.messages:
                assert not migration.done()
        migration.result()

    [said] = caplog.messages
    assert said.endswith(" (role postgres, report) to end.")
