"""FastAPI with hand-written SQL on asyncpg, one round trip per operation: the ruler for FastAPI and the driver.

It has no authentication, sets no headers, and does not handle an unavailable database.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

COLUMNS = "id, user_id, title, description, status, created_at, updated_at"
LATER = "greatest(now(), updated_at + interval '1 microsecond')"
LIST = f"SELECT {COLUMNS} FROM tasks WHERE user_id = $1 ORDER BY id DESC"
GET = f"SELECT {COLUMNS} FROM tasks WHERE user_id = $1 AND id = $2"
CREATE = f"INSERT INTO tasks (user_id, title, description) VALUES ($1, $2, $3) RETURNING {COLUMNS}"
UPDATE = f"""
    UPDATE tasks
    SET title = coalesce($3, title), description = coalesce($4, description), updated_at = {LATER}
    WHERE user_id = $1 AND id = $2 RETURNING {COLUMNS}
"""
COMPLETE = f"""
    UPDATE tasks
    SET status = 'complete', updated_at = CASE status WHEN 'complete' THEN updated_at ELSE {LATER} END
    WHERE user_id = $1 AND id = $2 RETURNING {COLUMNS}
"""
DELETE = "DELETE FROM tasks WHERE user_id = $1 AND id = $2"


class NewTask(BaseModel):
    """The fields of a task to create."""

    title: str = Field(min_length=1, max_length=255)
    description: str | None = Field(default=None, max_length=5000)


class Changes(BaseModel):
    """The fields of a task to change."""

    title: str | None = Field(default=None, min_length=1, max_length=255)
    description: str | None = Field(default=None, max_length=5000)


async def _keep(_: asyncpg.Connection) -> None:
    """Replace the pool's reset of a connection, which takes a round trip."""


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with asyncpg.create_pool(os.environ["DATABASE_URL"], min_size=10, max_size=10, reset=_keep) as pool:
        app.state.pool = pool
        yield


app = FastAPI(lifespan=_lifespan)


def _task(row: asyncpg.Record) -> dict[str, Any]:
    task = dict(row)
    task["created_at"] = task["created_at"].isoformat()
    task["updated_at"] = task["updated_at"].isoformat()
    return task


def _answer(row: asyncpg.Record | None, status: int = 200) -> Response:
    if row is None:
        return JSONResponse({"error": "Task not found"}, 404)
    return JSONResponse(_task(row), status)


@app.get("/api/{user_id}/tasks")
async def list_tasks(user_id: str) -> Response:
    """List the tasks of a user."""
    return JSONResponse([_task(row) for row in await app.state.pool.fetch(LIST, user_id)])


@app.post("/api/{user_id}/tasks")
async def create_task(user_id: str, task: NewTask) -> Response:
    """Create a task."""
    return _answer(await app.state.pool.fetchrow(CREATE, user_id, task.title, task.description), 201)


@app.get("/api/{user_id}/tasks/{task_id}")
async def get_task(user_id: str, task_id: int) -> Response:
    """Get a task."""
    return _answer(await app.state.pool.fetchrow(GET, user_id, task_id))


@app.put("/api/{user_id}/tasks/{task_id}")
async def update_task(user_id: str, task_id: int, changes: Changes) -> Response:
    """Change a task."""
    return _answer(await app.state.pool.fetchrow(UPDATE, user_id, task_id, changes.title, changes.description))


@app.patch("/api/{user_id}/tasks/{task_id}/complete")
async def complete_task(user_id: str, task_id: int) -> Response:
    """Complete a task."""
    return _answer(await app.state.pool.fetchrow(COMPLETE, user_id, task_id))


@app.delete("/api/{user_id}/tasks/{task_id}")
async def delete_task(user_id: str, task_id: int) -> Response:
    """Delete a task."""
    if await app.state.pool.execute(DELETE, user_id, task_id) == "DELETE 0":
        return JSONResponse({"error": "Task not found"}, 404)
    return Response(status_code=204)
