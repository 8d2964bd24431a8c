"""One owner's tasks, as the JSON that the database wrote about them."""

import json
from hashlib import sha256
from uuid import uuid4

from sqlalchemy import ClauseElement

from todo_api import statements
from todo_api.database import Database
from todo_api.errors import KeyReused, TaskChanged, TaskNotFound
from todo_api.models import Status, TaskCreate, TaskUpdate

# The `updated_at` of the versions of a task that may be changed; None means any.
Versions = list[str] | None


class TaskStore:
    """The tasks of one owner, as JSON text. No other task can be seen or touched through it.

    Every method is one statement. Those about a single task raise `TaskNotFound` where the owner has no such task, and
    those that take `versions` raise `TaskChanged` where it is none of them.
    """

    def __init__(self, database: Database, owner: str) -> None:
        self._database = database
        self._owner = owner

    async def list(self, status: Status | None) -> str:
        """List the tasks, newest first; only those in one status, if one is given."""
        if status is None:
            return await self._run(statements.LIST)
        return await self._run(statements.LIST_BY_STATUS, status=status)

    async def page(self, status: Status | None, newest: int, limit: int) -> tuple[str, int | None]:
        """List at most `limit` tasks from the id `newest` down; tell the id of the last one if there are more."""
        statement = statements.PAGE
        parameters: dict[str, object] = {"newest": newest, "limit": limit}
        if status is not None:
            statement = statements.PAGE_BY_STATUS
            parameters["status"] = status
        answer = await self._run(statement, **parameters)
        last, _, tasks = answer.partition(" ")
        return tasks, int(last) if last else None

    async def create(self, task: TaskCreate) -> str:
        """Create a task; raise `Unauthorized` if the owner has no account."""
        return await self._run(statements.CREATE, new_title=task.title, new_description=task.description)

    async def create_once(self, task: TaskCreate, key: str) -> tuple[str, bool]:
        """Create a task, unless there is one that was created with this key; tell whether there was.

        Raises `KeyReused` where that was asked for by another title or description, and `Unauthorized` as `create`.
        """
        answer = await self._run(
            statements.CREATE_ONCE,
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
        return await self._run(statements.GET, task_id=task_id)

    async def update(self, task_id: int, changes: TaskUpdate, versions: Versions = None) -> str:
        """Change the fields that `changes` holds, and no others."""
        return await self._write(
            (statements.UPDATE, statements.UPDATE_IF),
            versions,
            task_id=task_id,
            new_title=changes.title,
            has_description="description" in changes.model_fields_set,
            new_description=changes.description,
            status=changes.status,
        )

    async def complete(self, task_id: int, versions: Versions = None) -> str:
        """Set the status to complete; change nothing if it is."""
        pair = (statements.COMPLETE, statements.COMPLETE_IF)
        return await self._write(pair, versions, task_id=task_id)

    async def delete(self, task_id: int, versions: Versions = None) -> None:
        """Delete a task."""
        await self._write((statements.DELETE, statements.DELETE_IF), versions, task_id=task_id)

    async def _write(
        self,
        statement: tuple[ClauseElement, ClauseElement],
        versions: Versions,
        **parameters: object,
    ) -> str:
        """Run the first statement, or the second for some versions only."""
        if versions is None:
            return await self._run(statement[0], **parameters)
        answer = await self._run(statement[1], versions=versions, **parameters)
        if not answer:
            raise TaskChanged
        return answer

    async def _run(self, statement: ClauseElement, **parameters: object) -> str:
        answer = await self._database.run(statement, {"owner": self._owner, **parameters})
        if answer is None:
            raise TaskNotFound
        return answer
