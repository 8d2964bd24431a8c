"""The service as tutorials of FastAPI and SQLModel write it: sessions, entities, refresh, response models.

It has no authentication.
"""

import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Annotated, ClassVar

from fastapi import Depends, FastAPI, HTTPException
from sqlalchemy import BigInteger, DateTime, Identity
from sqlalchemy.ext.asyncio import create_async_engine
from sqlmodel import Field, SQLModel, col, select
from sqlmodel.ext.asyncio.session import AsyncSession

engine = create_async_engine(
    os.environ["DATABASE_URL"].replace("postgresql://", "postgresql+asyncpg://"), pool_pre_ping=True, pool_size=10
)
app = FastAPI()


def _now() -> datetime:
    return datetime.now(UTC)


class TaskBase(SQLModel):
    """The fields that clients write."""

    title: str = Field(min_length=1, max_length=255)
    description: str | None = Field(default=None, max_length=5000)


class Task(TaskBase, table=True):
    """A row of the table."""

    __tablename__: ClassVar[str] = "tasks"

    user_id: str = Field(primary_key=True)
    id: int | None = Field(default=None, primary_key=True, sa_type=BigInteger, sa_column_args=(Identity(always=True),))
    status: str = "incomplete"
    created_at: datetime = Field(default_factory=_now, sa_type=DateTime(timezone=True))
    updated_at: datetime = Field(default_factory=_now, sa_type=DateTime(timezone=True))


class TaskCreate(TaskBase):
    """The body of a create."""


class TaskUpdate(SQLModel):
    """The body of an update."""

    title: str | None = Field(default=None, min_length=1, max_length=255)
    description: str | None = Field(default=None, max_length=5000)


class TaskPublic(TaskBase):
    """A task in a response."""

    id: int
    user_id: str
    status: str
    created_at: datetime
    updated_at: datetime


async def _session() -> AsyncIterator[AsyncSession]:
    async with AsyncSession(engine) as session:
        yield session


Session = Annotated[AsyncSession, Depends(_session)]


async def _find(session: AsyncSession, user_id: str, task_id: int) -> Task:
    task = await session.get(Task, (user_id, task_id))
    if task is None:
        raise HTTPException(404, "Task not found")
    return task


async def _save(session: AsyncSession, task: Task) -> Task:
    session.add(task)
    await session.commit()
    await session.refresh(task)
    return task


@app.get("/api/{user_id}/tasks", response_model=list[TaskPublic])
async def list_tasks(user_id: str, session: Session) -> list[Task]:
    """List the tasks of a user."""
    found = await session.exec(select(Task).where(Task.user_id == user_id).order_by(col(Task.id).desc()))
    return list(found.all())


@app.post("/api/{user_id}/tasks", response_model=TaskPublic, status_code=201)
async def create_task(user_id: str, task: TaskCreate, session: Session) -> Task:
    """Create a task."""
    return await _save(session, Task.model_validate(task, update={"user_id": user_id}))


@app.get("/api/{user_id}/tasks/{task_id}", response_model=TaskPublic)
async def get_task(user_id: str, task_id: int, session: Session) -> Task:
    """Get a task."""
    return await _find(session, user_id, task_id)


@app.put("/api/{user_id}/tasks/{task_id}", response_model=TaskPublic)
async def update_task(user_id: str, task_id: int, changes: TaskUpdate, session: Session) -> Task:
    """Change a task."""
    task = await _find(session, user_id, task_id)
    task.sqlmodel_update(changes.model_dump(exclude_unset=True), update={"updated_at": _now()})
    return await _save(session, task)


@app.patch("/api/{user_id}/tasks/{task_id}/complete", response_model=TaskPublic)
async def complete_task(user_id: str, task_id: int, session: Session) -> Task:
    """Complete a task."""
    task = await _find(session, user_id, task_id)
    if task.status != "complete":
        task.sqlmodel_update({"status": "complete", "updated_at": _now()})
    return await _save(session, task)


@app.delete("/api/{user_id}/tasks/{task_id}", status_code=204)
async def delete_task(user_id: str, task_id: int, session: Session) -> None:
    """Delete a task."""
    await session.delete(await _find(session, user_id, task_id))
    await session.commit()
