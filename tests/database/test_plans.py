"""PostgreSQL's plans for the statements in a database with many users, and that no operation builds ORM entities."""

import asyncio
import json
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import asyncpg
import pytest
from sqlalchemy import ClauseElement, event

from tests.support.api import Person
from tests.support.postgres import migrated_database, sql
from todo_api.database import Query
from todo_api.models import Task
from todo_api.statements import STATEMENTS

BY_KEY = {"Index Scan", "Index Only Scan"}


@pytest.fixture(scope="module")
def crowded(server: str, worker: str) -> str:
    """The URL of a database with 200 users of 100 tasks each, inserted in turn."""
    url = migrated_database(server, f"crowded_{worker}")
    users = 'INSERT INTO "user" (id, name, email, "emailVerified") SELECT n, n, n, true FROM generate_series(1, 200) n'
    sql(url, users)
    sql(url, "INSERT INTO tasks (user_id, title) SELECT n % 200 + 1, 'Buy milk' FROM generate_series(1, 20000) n")
    sql(url, "VACUUM (ANALYZE) tasks")
    return url


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for part in plan.get("Plans", []):
        yield from nodes(part)


def plan_of(url: str, statement: ClauseElement) -> list[dict[str, Any]]:
    """Ask PostgreSQL for the generic plan of a prepared statement."""
    query = Query(statement)
    nulls = ", ".join(["NULL"] * len(query.arguments(defaultdict(str))))

    async def explain() -> str:
        connection = await asyncpg.connect(url)
        try:
            await connection.execute("SET plan_cache_mode = force_generic_plan")
            # The default costs are for rotating disks: with them the planner sorts a list whose rows are scattered,
            # although it could read them in order.
            await connection.execute("SET enable_sort = off")
            await connection.execute(f"PREPARE planned AS {query.text}")
            plan: str = await connection.fetchval(f"EXPLAIN (FORMAT JSON) EXECUTE planned ({nulls})")
            return plan
        finally:
            await connection.close()

    return list(nodes(json.loads(asyncio.run(explain()))[0]["Plan"]))


@pytest.mark.parametrize("statement", STATEMENTS, ids=range(len(STATEMENTS)))
def test_statements_scan_the_primary_key(crowded: str, statement: ClauseElement) -> None:
    plan = plan_of(crowded, statement)

    reading = [node for node in plan if node.get("Relation Name") == "tasks" and node["Node Type"] != "ModifyTable"]
    assert all(node["Node Type"] in BY_KEY and "user_id = " in node["Index Cond"] for node in reading)
    assert not any("Sort" in node["Node Type"] or "Seq" in node["Node Type"] for node in plan)


def test_no_operation_builds_an_entity(alice: Person) -> None:
    built: list[object] = []

    def note(task: object, *_: object) -> None:
        built.append(task)

    for kind in ("load", "init"):
        event.listen(Task, kind, note)
    try:
        task = alice.create()
        Task.model_validate(task)
        assert len(built) == 1, "that one is noticed"
        path = f"/{task['id']}"
        assert alice.tasks() == [task]
        assert alice.ask("GET", path).json() == task
        assert alice.ask("PUT", path, json={"title": "y"}).status_code == 200
        assert alice.ask("PATCH", f"{path}/complete").status_code == 200
        assert alice.ask("DELETE", path).status_code == 204
    finally:
        for kind in ("load", "init"):
            event.remove(Task, kind, note)

    assert len(built) == 1
