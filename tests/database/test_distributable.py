"""Every statement can run on a table that Citus has distributed by owner, as PostgreSQL's parse trees show.

In writes, Citus refuses functions that are not IMMUTABLE if they are applied to columns or used in RETURNING, CASE,
COALESCE or ON CONFLICT. A statement without a condition on the owner would go to every shard.
"""

import asyncio
import re
from collections.abc import Iterator
from typing import Any

import asyncpg
import pytest
from sqlalchemy import ClauseElement

from tests.support.postgres import sql
from todo_api import statements
from todo_api.database import Query

STATEMENTS = {
    name: value for name, value in vars(statements).items() if any(value is each for each in statements.STATEMENTS)
}
# A node of a parse tree, with PostgreSQL's names: ["FUNCEXPR", ":funcid", "2069", …].
Node = list[Any]
TOKENS = re.compile(r"[{}()]|(?:\\.|[^\s{}()\\])+", re.DOTALL)
SELECT, INSERT = "1", "3"
CALLS = {"FUNCEXPR": ":funcid"} | dict.fromkeys(
    ("OPEXPR", "DISTINCTEXPR", "NULLIFEXPR", "SCALARARRAYOPEXPR"), ":opfuncid"
)


def parse(url: str, statement: ClauseElement) -> tuple[Node, int]:
    """Let PostgreSQL parse a statement, and return the tree and the number of the owner's parameter."""
    query = Query(statement)
    owner = query.arguments({"owner": "me"}).index("me") + 1

    async def read() -> str:
        connection = await asyncpg.connect(url)
        try:
            prepared = await connection.prepare(query.text)
            types = ", ".join(kind.name for kind in prepared.get_parameters())
            async with connection.transaction():
                await connection.execute(f"CREATE FUNCTION parsed({types}) RETURNS text BEGIN ATOMIC {query.text}; END")
                tree: str = await connection.fetchval("SELECT prosqlbody::text FROM pg_proc WHERE proname = 'parsed'")
                await connection.execute("DROP FUNCTION parsed")
        finally:
            await connection.close()
        return tree

    open_nodes: list[Node] = [[]]
    for token in TOKENS.findall(asyncio.run(read())):
        if token in "{(":
            open_nodes.append([])
        elif token in "})":
            closed = open_nodes.pop()
            open_nodes[-1].append(closed)
        else:
            open_nodes[-1].append(token)
    return open_nodes[0], owner


def field(node: Node, name: str) -> Any:
    return node[node.index(name) + 1]


def nodes(tree: Node, *kinds: str) -> Iterator[Node]:
    if tree and tree[0] in kinds:
        yield tree
    for part in tree:
        if isinstance(part, list):
            yield from nodes(part, *kinds)


def functions(tree: Node, *, of_columns_only: bool) -> Iterator[str]:
    """Yield the oids of the functions in a tree, and the names of the nodes that call a function without its oid."""
    for node in nodes(tree, *CALLS, "COERCEVIAIO", "SQLVALUEFUNCTION"):
        if not of_columns_only or any(nodes(node, "VAR")):
            yield field(node, CALLS[node[0]]) if node[0] in CALLS else node[0]


def needs_immutable(tree: Node) -> set[str]:
    """Return the functions, as `functions` yields them, that Citus requires to be IMMUTABLE."""
    names: set[str] = set()
    for query in nodes(tree, "QUERY"):
        if field(query, ":commandType") != SELECT:
            names.update(functions(query, of_columns_only=True))
            strict = [field(query, ":returningList"), field(query, ":onConflict")]
            for part in [*strict, *nodes(query, "CASEEXPR", "COALESCEEXPR")]:
                names.update(functions(list(part), of_columns_only=False))
    return names


def not_immutable(url: str, names: set[str]) -> list[str]:
    oids = [int(name) for name in names if name.isdecimal()]
    others = sql(url, "SELECT proname FROM pg_proc WHERE oid = ANY ($1::oid[]) AND provolatile <> 'i'", oids)
    return sorted([row["proname"] for row in others] + [name for name in names if not name.isdecimal()])


def is_of_owner(condition: Any, owner: int) -> bool:
    """Tell whether a condition, or one of several joined by AND, compares `user_id` with the owner."""
    if condition[0] == "BOOLEXPR":
        return field(condition, ":boolop") == "and" and any(is_of_owner(c, owner) for c in field(condition, ":args"))
    return (
        condition[0] == "OPEXPR"
        and [field(column, ":varattno") for column in nodes(condition, "VAR")] == ["1"]
        and [field(parameter, ":paramid") for parameter in nodes(condition, "PARAM")] == [str(owner)]
    )


def names_owner(query: Node, owner: int) -> bool:
    if field(query, ":commandType") == INSERT:
        first = next(entry for entry in field(query, ":targetList") if field(entry, ":resno") == "1")
        return [field(parameter, ":paramid") for parameter in nodes(first, "PARAM")] == [str(owner)]
    return is_of_owner(field(field(query, ":jointree"), ":quals"), owner)


@pytest.mark.parametrize("name", STATEMENTS)
def test_writes_apply_only_immutable_functions(database_url: str, name: str) -> None:
    tree, _ = parse(database_url, STATEMENTS[name])

    assert not_immutable(database_url, needs_immutable(tree)) == []


@pytest.mark.parametrize("name", STATEMENTS)
def test_every_access_names_the_owner(database_url: str, name: str) -> None:
    tree, owner = parse(database_url, STATEMENTS[name])
    tasks = str(sql(database_url, "SELECT 'tasks'::regclass::oid::int AS oid")[0]["oid"])

    accesses = [
        query
        for query in nodes(tree, "QUERY")
        if any(":relid" in entry and field(entry, ":relid") == tasks for entry in field(query, ":rtable"))
    ]
    assert accesses
    assert all(names_owner(query, owner) for query in accesses)
