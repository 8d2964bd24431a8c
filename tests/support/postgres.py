"""PostgreSQL for the tests: one embedded server for the whole run, and databases on it."""

import asyncio
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import asyncpg

from tests.support.patience import deadline
from todo_api.dev import embedded_postgres
from todo_api.migrations import migrate
from todo_api.settings import Settings

WAITING = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
# On Citus a statement waits on a worker; the last ten digits of its number are the coordinator's process id.
WAITING_ON_CITUS = "SELECT waiting_gpid % 10000000000 AS pid FROM citus_lock_waits"


@contextmanager
def temporary_server() -> Iterator[str]:
    """Run a server in a temporary directory, and yield its URL."""
    with tempfile.TemporaryDirectory(prefix="todo-") as directory, embedded_postgres(Path(directory)) as url:
        # The data need not survive a power failure.
        sql(url, "ALTER SYSTEM SET fsync = off")
        sql(url, "SELECT pg_reload_conf()")
        yield url


def sql(url: str, statement: str, *arguments: object) -> list[dict[str, Any]]:
    """Run one statement on a new connection and return its rows."""

    async def run() -> list[dict[str, Any]]:
        connection = await asyncpg.connect(url)
        try:
            return [dict(row) for row in await connection.fetch(statement, *arguments)]
        finally:
            await connection.close()

    return asyncio.run(run())


def new_database(server: str, name: str) -> str:
    """Create an empty database and return its URL."""
    sql(server, f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
    sql(server, f'CREATE DATABASE "{name}"')
    return server.replace("/postgres?", f"/{name}?")


def settings_for(url: str, **others: object) -> Settings:
    """Build settings for a database, independent of the environment variables."""
    return Settings.read(**{"database_url_unpooled": None, "auth_backend": None, "database_url": url, **others})


def migrated_database(server: str, name: str) -> str:
    """Create a database, migrate it, and return its URL."""
    url = new_database(server, name)
    migrate(settings_for(url))
    return url


@contextmanager
def locked(url: str, by: str = "LOCK TABLE tasks") -> Iterator[None]:
    """Run a statement in a transaction that is open, with its locks, until the block ends; then commit."""
    with asyncio.Runner() as runner:
        connection = runner.run(asyncpg.connect(url))
        try:
            runner.run(connection.execute(f"BEGIN; {by}"))
            yield
            runner.run(connection.execute("COMMIT"))
        finally:
            runner.run(connection.close())


def waiting_backend(url: str) -> int:
    """Wait until some statement is blocked by a lock, and return the process id of its backend."""
    end = deadline()
    statement = WAITING_ON_CITUS if sql(url, "SELECT FROM pg_views WHERE viewname = 'citus_lock_waits'") else WAITING
    while not (waiting := sql(url, statement)):
        assert time.monotonic() < end
    pid: int = waiting[0]["pid"]
    return pid
