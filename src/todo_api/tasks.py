"""One owner's tasks, and all SQL about them.

Each statement is built once, from the models, and ends in one text column: the answer's JSON, written by PostgreSQL.
That is one round trip, spares the service reading and writing every task again, and fixes the type of each result, so
that no later migration can break a prepared statement.
"""

from datetime import datetime
from typing import Any

from sqlalchemy import (
    CTE,
    BigInteger,
    Boolean,
    ClauseElement,
    ColumnElement,
    Select,
    Subquery,
    Text,
    and_,
    bindparam,
    case,
    cast,
    delete,
    func,
    insert,
    literal_column,
    select,
    update,
)
from sqlalchemy.orm import Mapped
from sqlmodel import col

from todo_api.database import Database
from todo_api.errors import TaskNotFound
from todo_api.models import Status, Task, TaskCreate, TaskUpdate

# The owner's rows, and one of them: every statement below starts from these.
_OWNER: ColumnElement[str] = bindparam("owner", type_=Text)
_own_tasks = col(Task.user_id) == _OWNER
_own_task = and_(_own_tasks, col(Task.id) == bindparam("task_id", type_=BigInteger))


def _utc(moment: Mapped[datetime]) -> ColumnElement[str]:
    """Write a time the same way whatever the session's time zone."""
    pattern: ColumnElement[str] = literal_column("""'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'""")
    return func.to_char(func.timezone(literal_column("'UTC'"), moment), pattern)


_answer = (
    col(Task.id),
    col(Task.user_id),
    col(Task.title),
    col(Task.description),
    col(Task.status),
    _utc(col(Task.created_at)).label("created_at"),
    _utc(col(Task.updated_at)).label("updated_at"),
)


def _json(rows: CTE | Subquery) -> ColumnElement[Any]:
    return func.row_to_json(rows.table_valued())


def _one(rows: CTE) -> Select[Any]:
    return select(cast(_json(rows), Text))


def _list(*conditions: ColumnElement[bool]) -> Select[Any]:
    rows = select(*_answer).where(_own_tasks, *conditions).order_by(col(Task.id).desc()).subquery("task")
    return select(cast(func.coalesce(func.json_agg(_json(rows)), literal_column("'[]'")), Text))


# `updated_at` is the task's version: it grows with every change, even within one microsecond of the clock.
_later = func.greatest(func.now(), col(Task.updated_at) + literal_column("interval '1 microsecond'"))
_status = bindparam("status", type_=Text)
_title = bindparam("new_title", type_=Text)
_description = bindparam("new_description", type_=Text)

_LIST = _list()
_LIST_BY_STATUS = _list(col(Task.status) == _status)
_GET = _one(select(*_answer).where(_own_task).cte("task"))
_CREATE = _one(
    insert(Task).values(user_id=_OWNER, title=_title, description=_description).returning(*_answer).cte("task")
)
# One text for every choice of fields: title and status are never null, so null means absent for them.
_UPDATE = _one(
    update(Task)
    .where(_own_task)
    .values(
        title=func.coalesce(_title, col(Task.title)),
        description=case((bindparam("has_description", type_=Boolean), _description), else_=col(Task.description)),
        status=func.coalesce(_status, col(Task.status)),
        updated_at=_later,
    )
    .returning(*_answer)
    .cte("task")
)
# A single UPDATE whatever the status was: a condition on it with a SELECT to fall back on was seen to answer
# `incomplete` beside a concurrent complete.
_COMPLETE = _one(
    update(Task)
    .where(_own_task)
    .values(
        status="complete",
        updated_at=case((col(Task.status) == "complete", col(Task.updated_at)), else_=_later),
    )
    .returning(*_answer)
    .cte("task")
)
_DELETE = _one(delete(Task).where(_own_task).returning(col(Task.id)).cte("task"))

STATEMENTS = (_LIST, _LIST_BY_STATUS, _GET, _CREATE, _UPDATE, _COMPLETE, _DELETE)


class TaskStore:
    """The tasks of one owner, as JSON text. No other task can be seen or touched through it.

    Every method is one statement. Those about a single task raise `TaskNotFound` where the owner has no such task.
    """

    def __init__(self, database: Database, owner: str) -> None:
        self._database = database
        self._owner = owner

    async def list(self, status: Status | None) -> str:
        """List the tasks, newest first; only those in one status, if one is given."""
        if status is None:
            return await self._run(_LIST, repeatable=True)
        return await self._run(_LIST_BY_STATUS, repeatable=True, status=status)

    async def create(self, task: TaskCreate) -> str:
        """Create a task; raise `Unauthorized` if the owner has no account."""
        return await self._run(_CREATE, new_title=task.title, new_description=task.description)

    async def get(self, task_id: int) -> str:
        """Get one task."""
        return await self._run(_GET, repeatable=True, task_id=task_id)

    async def update(self, task_id: int, changes: TaskUpdate) -> str:
        """Change the fields that `changes` holds, and no others."""
        return await self._run(
            _UPDATE,
            task_id=task_id,
            new_title=changes.title,
            has_description="description" in changes.model_fields_set,
            new_description=changes.description,
            status=changes.status,
        )

    async def complete(self, task_id: int) -> str:
        """Set the status to complete; change nothing if it is."""
        return await self._run(_COMPLETE, repeatable=True, task_id=task_id)

    async def delete(self, task_id: int) -> None:
        """Delete a task."""
        await self._run(_DELETE, task_id=task_id)

    async def _run(self, statement: ClauseElement, *, repeatable: bool = False, **parameters: object) -> str:
        answer = await self._database.run(statement, {"owner": self._owner, **parameters}, repeatable=repeatable)
        if answer is None:
            raise TaskNotFound
        return answer
