"""One owner's tasks, as JSON text from PostgreSQL."""

import json
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from hashlib import sha256
from typing import NamedTuple
from uuid import uuid4

from sqlalchemy import ClauseElement

from todo_api import statements
from todo_api.database import Database, Interrupt
from todo_api.errors import KeyReused, TaskChanged, TaskNotFound
from todo_api.models import UPDATED, Status


class Versions(NamedTuple):
    """Versions (values of `updated_at`) of which a task must have one to be changed, or none if not `must_match`."""

    texts: list[str]
    must_match: bool


class TaskStore:
    """The tasks of one owner, as JSON text. It cannot read or change any other task.

    Every method runs one statement. Those about a single task raise `TaskNotFound` if the owner has no such task, and
    those that take `versions` raise `TaskChanged` if the task's version is not one that they allow to be changed.
    """

    def __init__(self, database: Database, owner: str, interrupt: Interrupt | None = None) -> None:
        self.owner = owner
        self._database = database
        self._interrupt = interrupt

    async def list(self, status: Status | None) -> str:
        """List the tasks, newest first; only those with `status`, if given."""
        statement = statements.LIST if status is None else statements.LIST_BY_STATUS
        return await self._run(statement, {"status": status})

    async def page(self, status: Status | None, newest: int, limit: int) -> tuple[str, int | None]:
        """List at most `limit` tasks with ids up to `newest`; also return the id of the last one if more follow."""
        statement = statements.PAGE if status is None else statements.PAGE_BY_STATUS
        answer = await self._run(statement, {"newest": newest, "limit": limit, "status": status})
        last, _, tasks = answer.partition(" ")
        return tasks, int(last) if last else None

    async def create(self, task: Mapping[str, object]) -> str:
        """Create a task from the fields of `read_new_task`; raise `Unauthorized` if the owner has no account."""
        return await self._run(statements.CREATE, _values(task))

    async def create_once(self, task: Mapping[str, object], key: str) -> tuple[str, bool]:
        """Create a task unless one was created with this key; return it, and whether it existed.

        Raises `KeyReused` if the key was used with other fields before, and `Unauthorized` like `create`.
        """
        answer = await self._run(
            statements.CREATE_ONCE,
            {"key": key, "fingerprint": fingerprint(task), "request": uuid4(), **_values(task)},
        )
        outcome, _, created = answer.partition(" ")
        if outcome == "reused":
            raise KeyReused
        return created, outcome == "replayed"

    async def get(self, task_id: int) -> str:
        """Get one task."""
        return await self._run(statements.GET, {"task_id": task_id})

    async def update(self, task_id: int, changes: Mapping[str, object], versions: Versions | None = None) -> str:
        """Change only the fields in `changes`, which `read_changes` returned."""
        parameters = {"task_id": task_id, **_values(changes), **{f"has_{name}": name in changes for name in UPDATED}}
        return await self._write((statements.UPDATE, statements.UPDATE_IF), parameters, versions)

    async def complete(self, task_id: int, versions: Versions | None = None) -> str:
        """Set the status to complete; change nothing if it already is."""
        pair = (statements.COMPLETE, statements.COMPLETE_IF)
        return await self._write(pair, {"task_id": task_id}, versions)

    async def delete(self, task_id: int, versions: Versions | None = None) -> None:
        """Delete a task."""
        await self._write((statements.DELETE, statements.DELETE_IF), {"task_id": task_id}, versions)

    async def _write(
        self,
        pair: tuple[ClauseElement, ClauseElement],
        parameters: Mapping[str, object],
        versions: Versions | None,
    ) -> str:
        """Run the first statement of the pair, or the second if only some versions may be changed."""
        if versions is None:
            return await self._run(pair[0], parameters)
        answer = await self._run(
            pair[1], {"versions": _times(versions.texts), "must_match": versions.must_match, **parameters}
        )
        if not answer:
            raise TaskChanged
        return answer

    async def _run(self, statement: ClauseElement, parameters: Mapping[str, object]) -> str:
        answer = await self._database.run(statement, {"owner": self.owner, **parameters}, self._interrupt)
        if answer is None:
            raise TaskNotFound
        return answer


def _values(fields: Mapping[str, object]) -> dict[str, object]:
    return {f"new_{name}": value for name, value in fields.items()}


def fingerprint(task: Mapping[str, object]) -> bytes:
    """Hash the fields of a keyed create, to recognize a repeated request.

    Fields other than title and description are hashed with their names, and only if they have a value, so that a new
    field does not change the fingerprints of requests without it.
    """
    positional = [task["title"], task["description"]]
    named = [
        [name, value] for name, value in task.items() if name not in ("title", "description") and value is not None
    ]
    return sha256(json.dumps(positional + named, default=str).encode()).digest()


def _times(versions: list[str]) -> list[datetime]:
    """Parse versions; drop those not in exactly the format of the SQL, because no task has them."""
    times = []
    for version in versions:
        with suppress(ValueError):
            time = datetime.fromisoformat(version)
            if version == f"{time.replace(tzinfo=None).isoformat(timespec='microseconds')}Z":
                times.append(time)
    return times
