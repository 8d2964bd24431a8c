"""An ASGI callable on asyncpg's prepared statements, without a framework: the ruler for uvicorn and the driver.

It splits the path itself, validates nothing, and lets PostgreSQL produce the JSON.
"""

import asyncio
import json
import os
from typing import Any

import asyncpg
from asyncpg.prepared_stmt import PreparedStatement
from starlette.types import Receive, Scope, Send

from benchmarks.ceiling import COMPLETE, CREATE, DELETE, GET, LIST, UPDATE

STATEMENTS = {
    "list": f"SELECT coalesce(json_agg(task), '[]')::text FROM ({LIST}) AS task",
    **{
        name: f"WITH task AS ({statement}) SELECT row_to_json(task)::text FROM task"
        for name, statement in {
            "get": GET,
            "create": CREATE,
            "update": UPDATE,
            "complete": COMPLETE,
            "delete": f"{DELETE} RETURNING id",
        }.items()
    },
}
idle: asyncio.LifoQueue[dict[str, PreparedStatement]] = asyncio.LifoQueue()
STATUS = {"create": 201, "delete": 204}


async def _connect() -> None:
    for _ in range(10):
        connection = await asyncpg.connect(os.environ["DATABASE_URL"])
        idle.put_nowait({name: await connection.prepare(text) for name, text in STATEMENTS.items()})


async def _run(operation: str, *arguments: object) -> str | None:
    prepared = await idle.get()
    try:
        answer: str | None = await prepared[operation].fetchval(*arguments)
        return answer
    finally:
        idle.put_nowait(prepared)


def _operation(method: str, rest: list[str]) -> str:
    if not rest:
        return "list" if method == "GET" else "create"
    return {"GET": "get", "PUT": "update", "PATCH": "complete", "DELETE": "delete"}[method]


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Serve one ASGI connection."""
    if scope["type"] == "lifespan":
        await receive()
        await _connect()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    _, _, user_id, _, *rest = scope["path"].split("/")
    operation = _operation(scope["method"], rest)
    arguments: list[Any] = [user_id, *map(int, rest[:1])]
    if operation in ("create", "update"):
        body = json.loads((await receive())["body"])
        arguments += [body.get("title"), body.get("description")]
    answer = await _run(operation, *arguments)
    status = 404 if answer is None else STATUS.get(operation, 200)
    content = b"" if answer is None or status == 204 else answer.encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(content))]
    await send({"type": "http.response.start", "status": status, "headers": headers if status != 204 else []})
    await send({"type": "http.response.body", "body": content})
