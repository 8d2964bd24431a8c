"""Databases on the Citus cluster at CITUS_URL, distributed by the SQL in docs/scaling.md."""

import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.support.postgres import locked, settings_for, sql
from todo_api.migrations import migrate

VARIABLE = "CITUS_URL"
GUIDE = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text()
NODES, MOVE, CHECK, BACK = re.findall(r"```sql\n(.+?)```", GUIDE, re.DOTALL)


class Cluster:
    """A migrated, undistributed database on every node. `url` is the coordinator's, `workers` are the workers'."""

    def __init__(self, name: str) -> None:
        named = os.environ[VARIABLE]
        nodes = sql(named, "SELECT nodename, nodeport FROM pg_dist_node WHERE isactive ORDER BY groupid LIMIT 3")
        addresses = [(node["nodename"], node["nodeport"]) for node in nodes]
        maintenance = urlsplit(named).path.removeprefix("/")
        for address in addresses:
            sql(self._at(*address, maintenance), f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
            sql(self._at(*address, maintenance), f'CREATE DATABASE "{name}"')
            sql(self._at(*address, name), "CREATE EXTENSION citus")
        self.url, *self.workers = [self._at(*address, name) for address in addresses]
        instructions = NODES
        for address in addresses:
            host = re.search(r"'[\w-]+\.internal', 5432", instructions)
            assert host
            instructions = instructions.replace(host[0], "'{}', {}".format(*address))
        self.follow(instructions)
        migrate(settings_for(self.url))

    def _at(self, host: str, port: int, database: str) -> str:
        named = urlsplit(os.environ[VARIABLE])
        login, _, _ = named.netloc.rpartition("@")
        return named._replace(netloc=f"{login}@{host}:{port}", path=f"/{database}").geturl()

    def follow(self, instructions: str) -> list[list[tuple[Any, ...]]]:
        """Run the statements, each in its own transaction, and return the rows of each."""
        statements = [statement for statement in instructions.split(";") if statement.strip()]
        return [[tuple(row.values()) for row in sql(self.url, statement)] for statement in statements]

    def distribute(self) -> None:
        """Distribute the tasks by the guide's SQL; one at a time, because its replication slots have fixed names."""
        with locked(os.environ[VARIABLE], f"SELECT pg_advisory_xact_lock({0x746F646F})"):
            self.follow(MOVE)

    def is_distributed(self) -> bool:
        """Tell whether the table is distributed over the workers."""
        return bool(
            sql(self.url, "SELECT 1 FROM citus_tables WHERE table_name = 'tasks'::regclass AND shard_count > 1")
        )


def distributed_database(name: str) -> str:
    """Create a database, distribute it by owner, and return its URL."""
    cluster = Cluster(name)
    cluster.distribute()
    return cluster.url
