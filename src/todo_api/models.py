"""The tables, and the shapes tasks take on their way in and out."""

from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal, Self
from uuid import UUID

from pydantic import PlainValidator, WithJsonSchema
from sqlalchemy import BigInteger, Boolean, CheckConstraint, Index, LargeBinary, Text, Uuid, func, text
from sqlmodel import Field, SQLModel

from todo_api.errors import BadRequest

MAX_ID = 2**63 - 1
MAX_USER_ID = 255
MAX_TITLE = 255
MAX_DESCRIPTION = 5000
MAX_KEY = 255
KEYED = text("idempotency_key IS NOT NULL")
STATUSES = ("incomplete", "complete")
Status = Literal["incomplete", "complete"]
INVALID_STATUS = "Invalid status value. Must be 'incomplete' or 'complete'"

# The characters of Python's str.isspace(), spelled so that every regular expression dialect agrees.
_BLANK = r"\u0009-\u000d\u001c-\u0020\u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_TITLE_SCHEMA: dict[str, Any] = {
    "type": "string",
    "minLength": 1,
    "maxLength": MAX_TITLE,
    "pattern": rf"^[^\u0000]*[^\u0000{_BLANK}][^\u0000]*$",
    "description": "Stored exactly as sent; not blank.",
}
_DESCRIPTION_SCHEMA: dict[str, Any] = {
    "type": ["string", "null"],
    "maxLength": MAX_DESCRIPTION,
    "pattern": r"^[^\u0000]*$",
}
_STATUS_SCHEMA: dict[str, Any] = {"type": "string", "enum": list(STATUSES)}
ID_SCHEMA: dict[str, Any] = {"type": "integer", "format": "int64", "minimum": 1, "maximum": MAX_ID}
_TIME_SCHEMA: dict[str, Any] = {
    "type": "string",
    "format": "date-time",
    "pattern": r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z$",
}
USER_ID_SCHEMA: dict[str, Any] = {"type": "string", "minLength": 1, "maxLength": MAX_USER_ID}
_EXAMPLE: dict[str, Any] = {
    "id": 7,
    "user_id": "u1",
    "title": "Buy milk",
    "description": None,
    "status": "incomplete",
    "created_at": "2026-11-23T09:30:00.123456Z",
    "updated_at": "2026-11-23T09:30:00.123456Z",
}


class User(SQLModel, table=True):
    """Better Auth's own table of accounts: made where it is missing, otherwise left alone."""

    __tablename__: ClassVar[str] = "user"

    id: str = Field(primary_key=True, sa_type=Text)
    name: str = Field(sa_type=Text)
    email: str = Field(sa_type=Text, unique=True)
    email_verified: bool = Field(sa_type=Boolean, sa_column_kwargs={"name": "emailVerified"})
    image: str | None = Field(default=None, sa_type=Text)
    created_at: datetime = Field(sa_column_kwargs={"name": "createdAt", "server_default": func.current_timestamp()})
    updated_at: datetime = Field(sa_column_kwargs={"name": "updatedAt", "server_default": func.current_timestamp()})


class Task(SQLModel, table=True):
    """A task as stored. The owner comes first in the key, so no row can be reached without naming one."""

    __tablename__: ClassVar[str] = "tasks"
    __table_args__ = (
        CheckConstraint(f"char_length(title) BETWEEN 1 AND {MAX_TITLE}", name="tasks_title_length"),
        CheckConstraint(f"char_length(description) <= {MAX_DESCRIPTION}", name="tasks_description_length"),
        CheckConstraint("status IN ('incomplete', 'complete')", name="tasks_status_known"),
        CheckConstraint(f"char_length(idempotency_key) BETWEEN 1 AND {MAX_KEY}", name="tasks_idempotency_key_length"),
        Index("tasks_idempotency_key", "user_id", "idempotency_key", unique=True, postgresql_where=KEYED),
    )

    user_id: str = Field(primary_key=True, sa_type=Text, foreign_key="user.id", ondelete="CASCADE")
    id: int = Field(primary_key=True, sa_type=BigInteger, sa_column_kwargs={"autoincrement": True})
    title: str = Field(sa_type=Text)
    description: str | None = Field(default=None, sa_type=Text)
    status: str = Field(sa_type=Text, sa_column_kwargs={"server_default": STATUSES[0]})
    created_at: datetime = Field(sa_column_kwargs={"server_default": func.now()})
    updated_at: datetime = Field(sa_column_kwargs={"server_default": func.now()})
    # The request that made the task, where it came with a key: its body, and which of those with that body it was.
    idempotency_key: str | None = Field(default=None, sa_type=Text)
    idempotency_fingerprint: bytes | None = Field(default=None, sa_type=LargeBinary)
    idempotency_request: UUID | None = Field(default=None, sa_type=Uuid)


def _text(value: object, name: str, limit: int) -> str:
    if not isinstance(value, str):
        raise BadRequest(f"{name} must be a string")
    if len(value) > limit:
        raise BadRequest(f"{name} must be {limit} characters or less")
    if "\0" in value:
        raise BadRequest(f"{name} must not contain NUL characters")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadRequest(f"{name} must be valid Unicode") from None
    return value


def _title(value: object, when_blank: str) -> str:
    if value is None or value == "" or (isinstance(value, str) and value.isspace()):
        raise BadRequest(when_blank)
    return _text(value, "Title", MAX_TITLE)


def _new_title(value: object) -> str:
    return _title(value, "Title is required")


def _changed_title(value: object) -> str:
    return _title(value, "Title cannot be empty")


def _description(value: object) -> str | None:
    return None if value is None else _text(value, "Description", MAX_DESCRIPTION)


def _status(value: object) -> str:
    if value not in STATUSES:
        raise BadRequest(INVALID_STATUS)
    return str(value)


def _input_schema(schema: dict[str, Any]) -> None:
    """Describe a field that may be absent without a `default`: absent is not null."""
    for field in schema["properties"].values():
        field.pop("default", None)


def _create_schema(schema: dict[str, Any]) -> None:
    _input_schema(schema)
    schema["example"] = {"title": "Buy milk", "description": "Two litres"}


def _update_schema(schema: dict[str, Any]) -> None:
    _input_schema(schema)
    schema["example"] = {"description": None, "status": "incomplete"}
    # Each choice whole: generators of clients make a type of each, and of a bare `required` one that allows anything.
    whole = {"type": "object", "properties": schema["properties"]}
    schema["anyOf"] = [{**whole, "required": [name]} for name in schema["properties"]]


_Description = Annotated[str | None, PlainValidator(_description), WithJsonSchema(_DESCRIPTION_SCHEMA)]


class TaskCreate(SQLModel):
    """What creates a task. Other fields are ignored."""

    model_config = {"json_schema_extra": _create_schema}

    title: Annotated[str, PlainValidator(_new_title), WithJsonSchema(_TITLE_SCHEMA)]
    description: _Description = None

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> Self:
        """Read a task to create; raise `BadRequest` for the first fault in the order of the fields."""
        return cls.model_validate({"title": body.get("title"), "description": body.get("description")})


class TaskUpdate(SQLModel):
    """What changes a task: the fields that are present, at least one. Other fields are ignored."""

    model_config = {"json_schema_extra": _update_schema}

    title: Annotated[str | None, PlainValidator(_changed_title), WithJsonSchema(_TITLE_SCHEMA)] = None
    description: _Description = None
    status: Annotated[Status | None, PlainValidator(_status), WithJsonSchema(_STATUS_SCHEMA)] = None

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> Self:
        """Read the changes to a task; raise `BadRequest` for the first fault in the order of the fields."""
        changes = cls.model_validate(body)
        if not changes.model_fields_set:
            raise BadRequest("At least one field (title, description or status) must be provided")
        return changes


class TaskPublic(SQLModel):
    """A task as it is answered."""

    model_config = {"json_schema_extra": {"example": _EXAMPLE, "additionalProperties": False}}

    id: Annotated[int, WithJsonSchema(ID_SCHEMA)]
    user_id: Annotated[str, WithJsonSchema(USER_ID_SCHEMA)]
    title: Annotated[str, WithJsonSchema(_TITLE_SCHEMA)]
    description: _Description
    status: Annotated[Status, WithJsonSchema(_STATUS_SCHEMA)]
    created_at: Annotated[datetime, WithJsonSchema(_TIME_SCHEMA)]
    updated_at: Annotated[datetime, WithJsonSchema(_TIME_SCHEMA)]
