"""The parts of the OpenAPI document that FastAPI cannot derive from the signatures."""

import json
import re
from collections.abc import Callable, Collection
from typing import Annotated, Any

from fastapi import FastAPI, Request
from pydantic import BaseModel, ConfigDict, Field

from todo_api.errors import BodyTooLarge, DatabaseUnavailable, KeyReused, TaskChanged, Unauthorized
from todo_api.models import CREATED, ID_SCHEMA, MAX_KEY, NULLABLE, STATUSES, TASK_FIELDS, UPDATED, USER_ID_SCHEMA
from todo_api.paging import MAX_LIMIT

DESCRIPTION = """\
Each user's tasks are their own: another user's task is a 404, like one that never was.

Every request needs `Authorization: Bearer <token>`, and names in its path the user whose token it is. In development
(`make run`) the token is any user id: authorize as `alice`, and try the operations with `alice` as `user_id`.

Headers and parameters that are optional change nothing for those who leave them out.
"""
TAGS = [{"name": "tasks", "description": "The tasks of the user who is asking."}]
LICENSE = {"name": "MIT", "identifier": "MIT"}
_BEARER = {
    "type": "http",
    "scheme": "bearer",
    "description": "What your authentication layer gives out. In development (`make run`) any user id: `alice`, say.",
}


def _schema(name: str, description: str, fields: Collection[str], **others: object) -> dict[str, Any]:
    """Describe an object by the declarations of its fields; `name` chooses their examples."""
    properties: dict[str, dict[str, Any]] = {}
    for each in fields:
        properties[each] = schema = dict(TASK_FIELDS[each].schema)
        if each in NULLABLE:
            schema["type"] = [schema["type"], "null"]
    example = {each: TASK_FIELDS[each].examples[name] for each in fields if name in TASK_FIELDS[each].examples}
    return {"description": description, "type": "object", "properties": properties, **others, "example": example}


_SCHEMAS: dict[str, dict[str, Any]] = {
    "TaskStatus": {"description": "Whether a task is done.", "type": "string", "enum": list(STATUSES)},
    "TaskPublic": _schema(
        "TaskPublic",
        "A task as it is answered.",
        TASK_FIELDS,
        required=list(TASK_FIELDS),
        additionalProperties=False,
    ),
    "TaskCreate": _schema(
        "TaskCreate",
        "What creates a task. Other fields are ignored.",
        CREATED,
        required=[name for name in CREATED if name not in NULLABLE],
    ),
    "TaskUpdate": _schema(
        "TaskUpdate",
        "What changes a task: the fields that are present, at least one. Other fields are ignored.",
        UPDATED,
        # "At least one" by an `anyOf` splits the type in some code generators, and loses its fields in others.
        **{"not": {"properties": {name: {"not": {}} for name in UPDATED}}},
    ),
}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _reference(schema: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{schema}"}


_PATH_PARAMETERS: dict[str, dict[str, Any]] = {
    "user_id": {
        "name": "user_id",
        "in": "path",
        "required": True,
        "description": "Your own id, as the token says it.",
        "schema": USER_ID_SCHEMA,
        "example": "alice",
    },
    "id": {
        "name": "id",
        "in": "path",
        "required": True,
        "description": "The task's `id`.",
        "schema": ID_SCHEMA,
        "example": 1,
    },
}
# Optional, so without examples: the documentation page fills those in.
STATUS_PARAMETER: dict[str, Any] = {
    "name": "status",
    "in": "query",
    "description": "Only the tasks in this status. Empty means all.",
    "schema": {"type": "string", "enum": [*STATUSES, ""]},
}
LIMIT_PARAMETER: dict[str, Any] = {
    "name": "limit",
    "in": "query",
    "description": "At most so many tasks. Without it all of them come back.",
    "schema": {"type": "integer", "format": "int32", "minimum": 1, "maximum": MAX_LIMIT},
}
CURSOR_PARAMETER: dict[str, Any] = {
    "name": "cursor",
    "in": "query",
    "description": "Where a page begins, as the `Link` of the page before says it. The other parameters stay the same.",
    "schema": {"type": "string", "minLength": 1},
}
KEY_PARAMETER: dict[str, Any] = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "Any text of your choice, a UUID for one: sent again, with the same body, it makes no second task.",
    "schema": {"type": "string", "minLength": 1, "maxLength": MAX_KEY, "pattern": "^[!-~]+$"},
}
_IF_NONE_MATCH: dict[str, Any] = {
    "name": "If-None-Match",
    "in": "header",
    "description": "The `ETag` of what you have: if it is still that, a GET is answered 304 without a body, and a "
    "change is refused with a 412.",
    "schema": {"type": "string"},
}
_IF_MATCH: dict[str, Any] = {
    "name": "If-Match",
    "in": "header",
    "description": "The `ETag` of the version you know: if it is another by now, the answer is a 412.",
    "schema": {"type": "string"},
}
CONDITIONS = [_IF_MATCH, _IF_NONE_MATCH]
_ETAG: dict[str, Any] = {
    "ETag": {
        "description": "The version: good for `If-None-Match` and, that of a task, for `If-Match`.",
        "required": True,
        "schema": {"type": "string", "pattern": '^"[!#-~]+"$'},
    }
}
_LINK: dict[str, Any] = {
    "Link": {
        "description": 'The next page, as `<…>; rel="next"`, where there is one. Relative to the request.',
        "schema": {"type": "string", "pattern": '^<[^>]+>; rel="next"$'},
    }
}
_CREATED: dict[str, Any] = {
    "Location": {
        "description": "The task's path.",
        "required": True,
        "schema": {"type": "string", "format": "uri-reference", "pattern": "^/.+/[1-9][0-9]*$"},
    },
    "Idempotency-Replayed": {
        "description": "The task was there already, made by an earlier request with this key.",
        "schema": {"type": "string", "const": "true"},
    },
}


def _success(code: int, description: str, schema: dict[str, Any], headers: dict[str, Any]) -> dict[int | str, Any]:
    return {code: {"description": description, "content": _json(schema), "headers": _ETAG | headers}}


_UNCHANGED: dict[int | str, Any] = {304: {"description": "You have it already.", "headers": _ETAG}}
TASK = _success(200, "The task.", _reference("TaskPublic"), {})
FOUND = TASK | _UNCHANGED
LISTED = _success(200, "The tasks.", {"type": "array", "items": _reference("TaskPublic")}, _LINK) | _UNCHANGED
CREATED_TASK = _success(201, "The task.", _reference("TaskPublic"), _CREATED)
DELETED: dict[int | str, Any] = {204: {"description": "The task is gone."}}
_DESCRIPTIONS = {
    400: "The request breaks a rule; the error says which.",
    401: "Nobody is known to be asking.",
    404: "You have no such task, or the path is another user's.",
    409: "The key was used before, with another title or description.",
    412: "The version is not one that `If-Match` names, or it is one that `If-None-Match` names.",
    413: "The body is over 64 KiB.",
    500: "The service's fault. With `Retry-After` where its database is away.",
}
_EXAMPLES = {
    error.status: error.message for error in (Unauthorized, KeyReused, TaskChanged, BodyTooLarge, DatabaseUnavailable)
}
_HEADERS: dict[int, Any] = {
    401: {"WWW-Authenticate": {"required": True, "schema": {"type": "string", "const": "Bearer"}}},
    500: {
        "Retry-After": {
            "description": "Seconds to wait.",
            "schema": {"type": "integer", "format": "int32", "minimum": 1},
        }
    },
}


class Error(BaseModel):
    """The body of every answer of 400 and above."""

    model_config = ConfigDict(extra="forbid")

    error: Annotated[str, Field(description="One sentence for a person to read.", min_length=1)]


def errors(bad_request: str, not_found: str, *codes: int) -> dict[int | str, dict[str, Any]]:
    """Describe the failures of an operation: those every operation has, two of them by an example, and `codes`."""
    examples = {**_EXAMPLES, 400: bad_request, 404: not_found}
    return {
        code: {
            "model": Error,
            "description": _DESCRIPTIONS[code],
            "headers": _HEADERS.get(code, {}),
            "content": {"application/json": {"example": {"error": examples[code]}}},
        }
        for code in sorted({400, 401, 404, 500, *codes})
    }


def body_of(schema: str) -> dict[str, Any]:
    """Describe the JSON body of an operation."""
    return {"requestBody": {"required": True, "content": _json(_reference(schema))}}


class TodoAPI(FastAPI):
    """The application, with a document that says what happens."""

    def __init__(self, **options: Any) -> None:  # noqa: ANN401  # handed on as they came
        super().__init__(**options)
        self._own_middleware = len(self.user_middleware)

    def add_middleware(self, middleware_class: Any, *args: Any, **options: Any) -> None:  # noqa: ANN401  # the same
        """Add a middleware inside of the service's own, which give its answers their headers and answer its crashes."""
        super().add_middleware(middleware_class, *args, **options)
        self.user_middleware.insert(self._own_middleware, self.user_middleware.pop(0))

    def add_route(self, path: str, route: Callable[[Request], Any], *args: Any, **options: Any) -> None:  # noqa: ANN401  # the same
        """Add a route; FastAPI's own page as any other of ours, so that log and traces know it by its path."""
        if path == self.openapi_url:
            self.add_api_route(path, route, include_in_schema=False)
        else:
            super().add_route(path, route, *args, **options)

    def openapi(self) -> dict[str, Any]:
        """Generate the document once: with the parameters and bodies that the service reads itself."""
        if self.openapi_schema is None:
            # FastAPI makes limits floats.
            document = json.loads(json.dumps(super().openapi()), parse_float=lambda number: int(float(number)))
            self.openapi_schema = document
            for path, operations in document["paths"].items():
                in_path = [_PATH_PARAMETERS[name] for name in re.findall("{(.*?)}", path)]
                for operation in operations.values():
                    operation["parameters"] = in_path + operation.get("parameters", [])
            components = document["components"]
            components["schemas"] |= _SCHEMAS
            components["securitySchemes"] = {"bearer": _BEARER}
            document["security"] = [{"bearer": []}]
        return self.openapi_schema
