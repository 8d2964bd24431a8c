"""`make bench-engines`: what each statement costs one PostgreSQL, partitions, and the Citus cluster of CITUS_URL.

The cluster's servers have to run on this machine, where the processor time of their processes can be read.
"""

import asyncio
import json
import random
import time
from collections.abc import Mapping
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
from tests.support.citus import Cluster
from tests.support.postgres import new_database, sql

from benchmarks import report
from benchmarks.__main__ import machine, say
from benchmarks.database import USERS, BenchmarkDatabase, benchmark_database
from benchmarks.processes import cpu_seconds, spent
from todo_api import statements
from todo_api.database import Query

TASKS = USERS * 100
ROUNDS = 3
STATEMENTS = 300
PARTITIONS = 16
OPERATIONS = {
    "list": statements.LIST,
    "get": statements.GET,
    "create": statements.CREATE,
    "create with a key": statements.CREATE_ONCE,
    "update": statements.UPDATE,
    "complete": statements.COMPLETE,
    "delete": statements.DELETE,
}


class Engine:
    """A database filled as the benchmark's, with all servers that take part in it."""

    def __init__(self, name: str, url: str, servers: list[str]) -> None:
        self.name = name
        self.url = url
        directories = [Path(sql(server, "SHOW data_directory")[0]["data_directory"]) for server in servers]
        self._pids = [int((directory / "postmaster.pid").read_text().split()[0]) for directory in directories]
        self._created: list[int] = []

    def _cpu_seconds(self) -> dict[int, float]:
        found: dict[int, float] = {}
        for pid in self._pids:
            found |= cpu_seconds(pid)
        return found

    def _parameters(self, operation: str) -> Mapping[str, object]:
        number = random.randint(1, TASKS)
        body = {"new_title": "Buy milk", "new_description": "Two litres, and the good bread from the market"}
        if operation == "delete":
            return {"owner": "d", "task_id": self._created.pop()}
        if operation.startswith("create"):
            key = {"key": str(uuid4()), "fingerprint": sha256().digest(), "request": uuid4()}
            return {"owner": f"c{random.randint(1, USERS)}", **body, **key}
        changes = {"new_status": None, "has_title": True, "has_description": True, "has_status": False}
        return {"owner": f"u{(number - 1) % USERS + 1}", "task_id": number, **body, **changes}

    async def measure(self, operation: str) -> dict[str, float]:
        """Run one operation for random users on one connection; return milliseconds and processor microseconds."""
        query = Query(OPERATIONS[operation])
        connection = await asyncpg.connect(self.url)
        try:
            if operation == "delete":
                create = Query(statements.CREATE)
                values = create.arguments({"owner": "d", "new_title": "x", "new_description": None})
                made = [json.loads(await connection.fetchval(create.text, *values)) for _ in range(STATEMENTS + 20)]
                self._created = [task["id"] for task in made]
            prepared = await connection.prepare(query.text)
            for _ in range(20):  # until the plan is the one that is kept
                await prepared.fetchval(*query.arguments(self._parameters(operation)))
            before, times = self._cpu_seconds(), []
            for _ in range(STATEMENTS):
                arguments = query.arguments(self._parameters(operation))
                started = time.perf_counter()
                assert await prepared.fetchval(*arguments) is not None
                times.append(time.perf_counter() - started)
            cpu = spent(before, self._cpu_seconds())
        finally:
            await connection.close()
        return {"cpu": cpu / STATEMENTS * 1e6, "p50": sorted(times)[STATEMENTS // 2] * 1e3}


def partition(url: str) -> None:
    """Cut the table into partitions by owner, which keep its name, keys and counter."""
    for statement in (
        "ALTER SEQUENCE tasks_ids OWNED BY NONE",
        "ALTER TABLE tasks RENAME TO whole",
        "CREATE TABLE tasks (LIKE whole INCLUDING ALL) PARTITION BY HASH (user_id)",
        *(
            f"CREATE TABLE tasks_{n} PARTITION OF tasks FOR VALUES WITH (MODULUS {PARTITIONS}, REMAINDER {n})"
            for n in range(PARTITIONS)
        ),
        "INSERT INTO tasks SELECT * FROM whole",
        "DROP TABLE whole",
        'ALTER TABLE tasks ADD FOREIGN KEY (user_id) REFERENCES "user" (id) ON DELETE CASCADE',
        "VACUUM (ANALYZE) tasks",
    ):
        sql(url, statement)


def main() -> None:
    """Measure all operations of all engines in turn, and write the result into the documentation."""
    result: dict[str, Any] = {"machine": machine(), "rounds": ROUNDS, "statements": STATEMENTS, "users": USERS}
    with ExitStack() as stack:
        whole = stack.enter_context(benchmark_database(TASKS))
        parts = new_database(whole.url, "parts")
        BenchmarkDatabase(parts, TASKS, USERS)
        partition(parts)
        cluster = Cluster("engines")
        BenchmarkDatabase(cluster.url, TASKS, USERS)
        cluster.distribute()
        versions = "SELECT current_setting('server_version') AS server, citus_version() AS citus"
        result["versions"] = sql(cluster.url, versions)[0]
        engines = [
            Engine("PostgreSQL", whole.url, [whole.url]),
            Engine(f"{PARTITIONS} partitions", parts, [whole.url]),
            Engine("Citus", cluster.url, [cluster.url, *cluster.workers]),
        ]
        samples: dict[str, dict[str, list[dict[str, float]]]] = {
            operation: {engine.name: [] for engine in engines} for operation in OPERATIONS
        }
        for round_ in range(1, ROUNDS + 1):
            for operation in OPERATIONS:
                for engine in engines:
                    samples[operation][engine.name].append(asyncio.run(engine.measure(operation)))
            say(f"round {round_} of {ROUNDS}")
    report.save("engines", {**result, "samples": samples}, "scaling.md")


if __name__ == "__main__":
    main()
