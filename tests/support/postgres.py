"""Real PostgreSQL for the tests: one embedded server for a run, a database of its own for whoever asks."""

import asyncio
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import asyncpg

from todo_api.dev import embedded_postgres
from todo_api.migrations import migrate
from todo_api.settings import Settings

WAITING = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"


@contextmanager
def temporary_server() -> Iterator[str]:
    """Run a server that is gone afterwards, and yield its URL."""
    with tempfile.TemporaryDirectory(prefix="todo-") as directory, embedded_postgres(Path(directory)) as url:
        # Nothing here needs to survive a power cut.
        sql(url, "ALTER SYSTEM SET fsync = off")
        sql(url, "SELECT pg_reload_conf()")
        yield url


def sql(url: str, statement: str, *arguments: object) -> list[dict[str, Any]]:
    """Run one statement on a connection of its own and return its rows."""

    async def run() -> list[dict[str, Any]]:
        connection = await asyncpg.connect(url)
        try:
            return [dict(row) for row in await connection.fetch(statement, *arguments)]
        finally:
            await connection.close()

    return asyncio.run(run())


def new_database(server: str, name: str) -> str:
    """Make an empty database and return its URL."""
    sql(server, f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
    sql(server, f'CREATE DATABASE "{name}"')
    return server.replace("/postgres?", f"/{name}?")


def settings_for(url: str, **others: object) -> Settings:
    """Make settings for a database, whatever the environment of the tests says."""
    return Settings.read(**{"database_url_unpooled": None, "auth_backend": None, "database_url": url, **others})


def migrated_database(server: str, name: str) -> str:
    """Make a database with the schema the migrations make, and return its URL."""
    url = new_database(server, name)
    migrate(settings_for(url))
    return url


@contextmanager
def locked(url: str, by: str = "LOCK TABLE tasks") -> Iterator[None]:
    """Hold the locks that a statement takes, and commit it at the end."""
    with asyncio.Runner() as runner:
        connection = runner.run(asyncpg.connect(url))
        try:
            runner.run(connection.execute(f"BEGIN; {by}"))
            yield
            runner.run(connection.execute("COMMIT"))
        finally:
            runner.run(connection.close())


def waiting_backend(url: str) -> int:
    """Wait until a statement waits for a lock, and return the process id of its backend."""
    deadline = time.monotonic() + 10
    while not (waiting := sql(url, WAITING)):
        assert time.monotonic() < deadline
    pid: int = waiting[0]["pid"]
    return pid
