"""The API's part of a task's field: its JSON Schema, its examples, and which operations accept it.

`models.Task` declares the fields; the SQL, the checks of request bodies and the OpenAPI document are derived from it.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from todo_api.errors import BadRequest

# Checks a JSON value and returns the value to store; raises `BadRequest` with the message for the client.
Reader = Callable[[object], object]


@dataclass(frozen=True, kw_only=True)
class TaskField:
    """The declaration of one field, attached to its column by `Annotated`.

    `schema` is the JSON Schema of a value; null is added for a nullable column. An operation without a reader ignores
    the field. Readers never get a null that the column may hold. A column that `create` writes is required or nullable.
    The keys of `examples` are the names of the schemas: TaskPublic, TaskCreate, TaskUpdate.
    """

    schema: Mapping[str, Any]
    create: Reader | None = None
    update: Reader | None = None
    examples: Mapping[str, object] = field(default_factory=dict)


def text(name: str, limit: int, *, blank: str | None = None) -> Reader:
    """Build a reader of strings of at most `limit` code points, which refuses null and blank with `blank`, if given."""

    def read(value: object) -> str:
        if blank and (value is None or value == "" or (isinstance(value, str) and value.isspace())):
            raise BadRequest(blank)
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

    return read


def one_of(choices: Collection[str], message: str) -> Reader:
    """Build a reader that accepts only the strings in `choices`, and refuses anything else with `message`."""

    def read(value: object) -> str:
        if not isinstance(value, str) or value not in choices:
            raise BadRequest(message)
        return value

    return read
