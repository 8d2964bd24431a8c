"""The tables, and the checks of request bodies."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Index,
    LargeBinary,
    PrimaryKeyConstraint,
    Text,
    Uuid,
    func,
    inspect,
    text,
)
from sqlmodel import Field, SQLModel

from todo_api import fields
from todo_api.errors import BadRequest
from todo_api.fields import TaskField

MAX_ID = 2**63 - 1
MAX_USER_ID = 255
MAX_TITLE = 255
MAX_DESCRIPTION = 5000
MAX_KEY = 255
KEYED = text("idempotency_key IS NOT NULL")
STATUSES = ("incomplete", "complete")
Status = Literal["incomplete", "complete"]
INVALID_STATUS = "Invalid status value. Must be 'incomplete' or 'complete'"

# No NUL, and at least one character that Python's str.isspace() does not count as blank. ECMAScript's \s includes
# U+FEFF too, and lacks U+001C to U+001F and U+0085. The pattern contains no line separators, because code generators
# copy it into source code.
_NOT_BLANK = "^[^\\x00]*(?:[^\\s\\x00\\x1c-\\x1f\\x85]|\ufeff)[^\\x00]*$"
ID_SCHEMA: dict[str, Any] = {"type": "integer", "format": "int64", "minimum": 1, "maximum": MAX_ID}
USER_ID_SCHEMA: dict[str, Any] = {"type": "string", "minLength": 1, "maxLength": MAX_USER_ID}
_TIME = TaskField(
    schema={
        "type": "string",
        "format": "date-time",
        "pattern": r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z$",
    },
    examples={"TaskPublic": "2026-11-23T09:30:00.123456Z"},
)


class User(SQLModel, table=True):
    """Better Auth's table of accounts, which the migrations create if it is missing and otherwise do not change."""

    __tablename__: ClassVar[str] = "user"

    id: str = Field(primary_key=True, sa_type=Text)
    name: str = Field(sa_type=Text)
    email: str = Field(sa_type=Text, unique=True)
    email_verified: bool = Field(sa_type=Boolean, sa_column_kwargs={"name": "emailVerified"})
    image: str | None = Field(default=None, sa_type=Text)
    created_at: datetime = Field(sa_column_kwargs={"name": "createdAt", "server_default": func.current_timestamp()})
    updated_at: datetime = Field(sa_column_kwargs={"name": "updatedAt", "server_default": func.current_timestamp()})


class Task(SQLModel, table=True):
    """A task as stored. A column with a `TaskField` is a field of the API, in this order.

    The owner comes first in the primary key, so that no index finds a row without its owner.
    """

    __tablename__: ClassVar[str] = "tasks"
    __table_args__ = (
        PrimaryKeyConstraint("user_id", "id", name="tasks_pkey"),
        CheckConstraint(f"char_length(title) BETWEEN 1 AND {MAX_TITLE}", name="tasks_title_length"),
        CheckConstraint(f"char_length(description) <= {MAX_DESCRIPTION}", name="tasks_description_length"),
        CheckConstraint("status IN ('incomplete', 'complete')", name="tasks_status_known"),
        CheckConstraint(f"char_length(idempotency_key) BETWEEN 1 AND {MAX_KEY}", name="tasks_idempotency_key_length"),
        Index("tasks_idempotency_key", "user_id", "idempotency_key", unique=True, postgresql_where=KEYED),
    )

    id: Annotated[int, TaskField(schema=ID_SCHEMA, examples={"TaskPublic": 1})] = Field(
        sa_type=BigInteger, sa_column_kwargs={"autoincrement": True}
    )
    user_id: Annotated[str, TaskField(schema=USER_ID_SCHEMA, examples={"TaskPublic": "alice"})] = Field(
        sa_type=Text, foreign_key="user.id", ondelete="CASCADE"
    )
    title: Annotated[
        str,
        TaskField(
            schema={
                "type": "string",
                "minLength": 1,
                "maxLength": MAX_TITLE,
                "pattern": _NOT_BLANK,
                "description": "Stored exactly as sent; not blank.",
            },
            create=fields.text("Title", MAX_TITLE, blank="Title is required"),
            update=fields.text("Title", MAX_TITLE, blank="Title cannot be empty"),
            examples={"TaskPublic": "Buy milk", "TaskCreate": "Buy milk", "TaskUpdate": "Buy oat milk"},
        ),
    ] = Field(sa_type=Text)
    description: Annotated[
        str | None,
        TaskField(
            schema={
                "type": "string",
                "maxLength": MAX_DESCRIPTION,
                "pattern": r"^[^\x00]*$",
                "description": "Stored exactly as sent.",
            },
            create=fields.text("Description", MAX_DESCRIPTION),
            update=fields.text("Description", MAX_DESCRIPTION),
            examples={"TaskPublic": "Two litres", "TaskCreate": "Two litres"},
        ),
    ] = Field(default=None, sa_type=Text)
    status: Annotated[
        str,
        TaskField(
            schema={"$ref": "#/components/schemas/TaskStatus"},
            update=fields.one_of(STATUSES, INVALID_STATUS),
            examples={"TaskPublic": "incomplete", "TaskUpdate": "incomplete"},
        ),
    ] = Field(sa_type=Text, sa_column_kwargs={"server_default": STATUSES[0]})
    created_at: Annotated[datetime, _TIME] = Field(sa_column_kwargs={"server_default": func.now()})
    updated_at: Annotated[datetime, _TIME] = Field(sa_column_kwargs={"server_default": func.now()})
    # The request that created the task, if it had an Idempotency-Key: the key, a hash of the fields, and an id that
    # distinguishes the first request from its repetitions.
    idempotency_key: str | None = Field(default=None, sa_type=Text)
    idempotency_fingerprint: bytes | None = Field(default=None, sa_type=LargeBinary)
    idempotency_request: UUID | None = Field(default=None, sa_type=Uuid)


TASK_FIELDS: dict[str, TaskField] = {
    name: declared
    for name, info in Task.model_fields.items()
    for declared in info.metadata
    if isinstance(declared, TaskField)
}
NULLABLE = frozenset(name for name, column in inspect(Task).columns.items() if column.nullable)
CREATED = {name: declared.create for name, declared in TASK_FIELDS.items() if declared.create}
UPDATED = {name: declared.update for name, declared in TASK_FIELDS.items() if declared.update}
_NO_CHANGE = f"At least one field ({', '.join(list(UPDATED)[:-1])} or {list(UPDATED)[-1]}) must be provided"


def read_new_task(body: Mapping[str, Any]) -> dict[str, object]:
    """Read the fields of a task to create, None for an absent one; raise `BadRequest` for the first fault."""
    return {name: _read_value(name, read, body.get(name)) for name, read in CREATED.items()}


def read_changes(body: Mapping[str, Any]) -> dict[str, object]:
    """Read the fields to change, only those that are present; raise `BadRequest` for the first fault."""
    changes = {name: _read_value(name, read, body[name]) for name, read in UPDATED.items() if name in body}
    if not changes:
        raise BadRequest(_NO_CHANGE)
    return changes


def _read_value(name: str, read: fields.Reader, value: object) -> object:
    return None if value is None and name in NULLABLE else read(value)
