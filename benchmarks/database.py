"""The benchmark's database: an embedded server with the tasks of many users."""

import asyncio
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg
from tests.support.postgres import settings_for, sql
from tests.support.servers import Postgres

from benchmarks.processes import cpu_seconds
from todo_api.migrations import migrate

USERS = 2000
# Title and description of a task, together 60 to 70 characters.
TEXTS = "'Buy milk ' || n, 'Two litres, and the good bread from the market'"


class BenchmarkDatabase:
    """A migrated and filled database on an embedded PostgreSQL.

    Task 1 belongs to user u1, task 2 to u2, and so on, starting again at u1 after the last user. Users c1, c2 … own the
    tasks that the load creates, user d those that it deletes.
    """

    def __init__(self, url: str, tasks: int, users: int) -> None:
        self.url = url
        self.tasks = tasks
        self.users = users
        migrate(settings_for(url))
        self._add_users(f"'u' || n FROM generate_series(1, {users}) n")
        self._add_users(f"'c' || n FROM generate_series(1, {users}) n")
        self._add_users("'d'")
        self._add_tasks(f"'u' || (n - 1) % {users} + 1", tasks)

    def _add_users(self, ids: str) -> None:
        new = (
            f'INSERT INTO "user" (id, name, email, "emailVerified") SELECT id, id, id, true FROM (SELECT {ids}) u (id)'
        )
        sql(self.url, new)

    def _add_tasks(self, owner: str, tasks: int) -> None:
        async def add() -> None:
            connection = await asyncpg.connect(self.url)
            # Skips the foreign key's check of each row, which would take minutes; the owners exist.
            await connection.execute("SET session_replication_role = replica")
            await connection.execute(
                f"INSERT INTO tasks (user_id, title, description) "
                f"SELECT {owner}, {TEXTS} FROM generate_series(1, {tasks}) n"
            )
            await connection.execute("VACUUM (ANALYZE) tasks")
            await connection.execute("CHECKPOINT")
            await connection.close()

        asyncio.run(add())

    def own(self, user: str, tasks: int) -> None:
        """Add a user with this many tasks."""
        self._add_users(f"'{user}'")
        self._add_tasks(f"'{user}'", tasks)

    def add_tasks_to_delete(self, tasks: int) -> int:
        """Replace the tasks of user d, which the load deletes, by this many new ones, and return the first id."""
        sql(self.url, "DELETE FROM tasks WHERE user_id = 'd'")
        statement = (
            "WITH made AS ("
            "INSERT INTO tasks (user_id, title) SELECT 'd', 'x' FROM generate_series(1, $1) RETURNING id"
            ") SELECT min(id) AS first FROM made"
        )
        first: int = sql(self.url, statement, tasks)[0]["first"]
        return first

    @property
    def socket(self) -> str:
        """The path of the server's Unix socket."""
        return str(self._directory / ".s.PGSQL.5432")

    def url_through(self, port: int) -> str:
        """Return the URL of the same database through a proxy on this port."""
        return f"postgresql://postgres@127.0.0.1:{port}/postgres"

    def cpu_seconds(self) -> dict[int, float]:
        """Return the processor seconds of each of the server's processes."""
        return cpu_seconds(int((self._directory / "postmaster.pid").read_text().split()[0]))

    @property
    def _directory(self) -> Path:
        return Path(sql(self.url, "SHOW data_directory")[0]["data_directory"])


@contextmanager
def benchmark_database(tasks: int, users: int = USERS) -> Iterator[BenchmarkDatabase]:
    """Run a server with this many tasks, distributed evenly over the users.

    `shared_buffers` is a quarter of the machine's memory, as PostgreSQL's manual advises. `fsync` is off, because the
    data need not survive a power failure.
    """
    megabytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    with tempfile.TemporaryDirectory(prefix="todo-") as directory:
        Path(directory).chmod(0o755)
        server = Postgres(Path(directory) / "postgres")
        try:
            sql(server.url, "ALTER SYSTEM SET fsync = off")
            sql(server.url, f"ALTER SYSTEM SET shared_buffers = '{megabytes // 4}MB'")
            server.stop()
            server.start()
            yield BenchmarkDatabase(server.url, tasks, users)
        finally:
            server.stop()
