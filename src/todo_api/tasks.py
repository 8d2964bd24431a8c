"""One owner's tasks, as the JSON that the database wrote about them."""

import json
from hashlib import sha256
from uuid import uuid4

from sqlalchemy import ClauseElement

from todo_api import statements
from todo_api.database import Database
from todo_api.errors import KeyReused, TaskNotFound
from todo_api.models import Status, TaskCreate, TaskUpdate


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
            return await self._run(statements.LIST, repeatable=True)
        return await self._run(statements.LIST_BY_STATUS, repeatable=True, status=status)

    async def create(self, task: TaskCreate) -> str:
        """Create a task; raise `Unauthorized` if the owner has no account."""
        return await self._run(statements.CREATE, new_title=task.title, new_description=task.description)

    async def create_once(self, task: TaskCreate, key: str) -> tuple[str, bool]:
        """Create a task, unless there is one that was created with this key; tell whether there was.

        Raises `KeyReused` where that was asked for by another title or description, and `Unauthorized` as `create`.
        """
        answer = await self._run(
            statements.CREATE_ONCE,
            repeatable=True,
            new_title=task.title,
            new_description=task.description,
            key=key,
            fingerprint=sha256(json.dumps([task.title, task.description]).encode()).digest(),
            request=uuid4(),
        )
        outcome, _, created = answer.partition(" ")
        if outcome == "reused":
            raise KeyReused
        return created, outcome == "replayed"

    async def get(self, task_id: int) -> str:
        """Get one task."""
        return await self._run(statements.GET, repeatable=True, task_id=task_id)

    async def update(self, task_id: int, changes: TaskUpdate) -> str:
        """Change the fields that `changes` holds, and no others."""
        return await self._run(
            statements.UPDATE,
            task_id=task_id,
            new_title=changes.title,
            has_description="description" in changes.model_fields_set,
            new_description=changes.description,
            status=changes.status,
        )

    async def complete(self, task_id: int) -> str:
        """Set the status to complete; change nothing if it is."""
        return await self._run(statements.COMPLETE, repeatable=True, task_id=task_id)

    async def delete(self, task_id: int) -> None:
        """Delete a task."""
        await self._run(statements.DELETE, task_id=task_id)

    async def _run(self, statement: ClauseElement, *, repeatable: bool = False, **parameters: object) -> str:
        answer = await self._database.run(statement, {"owner": self._owner, **parameters}, repeatable=repeatable)
        if answer is None:
            raise TaskNotFound
        return answer
