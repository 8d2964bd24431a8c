"""The parts of the OpenAPI document that FastAPI cannot derive from the signatures."""

import json
import re
from collections.abc import Callable, Collection
from typing import Annotated, Any

from fastapi import FastAPI, Request
from pydantic import BaseModel, ConfigDict, Field

from todo_api.errors import BodyTooLarge, Busy, DatabaseUnavailable, KeyReused, TaskChanged, Unauthorized
from todo_api.models import CREATED, ID_SCHEMA, MAX_KEY, NULLABLE, STATUSES, TASK_FIELDS, UPDATED, USER_ID_SCHEMA
from todo_api.paging import MAX_LIMIT

DESCRIPTION = """\
Users can only use their own tasks: another user's task is a 404, like one that does not exist.

Every request needs `Authorization: Bearer <token>`, and the token's user in its path. In development (`make run`) the
token is any user id: authorize as `alice`, and try the operations with `alice` as `user_id`.

Clients that do not send the optional headers and parameters are unaffected by them.
"""
TAGS = [{"name": "tasks", "description": "The tasks of the authenticated user."}]
LICENSE = {"name": "MIT", "identifier": "MIT"}
_BEARER = {
    "type": "http",
    "scheme": "bearer",
    "description": "A token of your authentication layer. In development (`make run`) any user id, such as `alice`.",
}


def _schema(name: str, description: str, fields: Collection[str], **others: object) -> dict[str, Any]:
    """Build an object's schema from the declarations of its fields, with their examples for the schema `name`."""
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
        "A task in a response.",
        TASK_FIELDS,
        required=list(TASK_FIELDS),
        additionalProperties=False,
    ),
    "TaskCreate": _schema(
        "TaskCreate",
        "The fields of a new task. Other fields are ignored.",
        CREATED,
        required=[name for name in CREATED if name not in NULLABLE],
    ),
    "TaskUpdate": _schema(
        "TaskUpdate",
        "The fields of a task to change, at least one. Other fields are ignored.",
        UPDATED,
        # "At least one" as an `anyOf` makes some code generators split the type, and others omit its fields.
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
        "description": "Your own user id, the same as in the token.",
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
# Without examples, which the documentation page would fill in, although these are optional.
STATUS_PARAMETER: dict[str, Any] = {
    "name": "status",
    "in": "query",
    "description": "Only tasks with this status. Empty means all.",
    "schema": {"type": "string", "enum": [*STATUSES, ""]},
}
LIMIT_PARAMETER: dict[str, Any] = {
    "name": "limit",
    "in": "query",
    "description": "The maximum number of tasks to return. Without it, all tasks are returned.",
    "schema": {"type": "integer", "format": "int32", "minimum": 1, "maximum": MAX_LIMIT},
}
CURSOR_PARAMETER: dict[str, Any] = {
    "name": "cursor",
    "in": "query",
    "description": "The start of a page, from the `Link` of the previous one. The other parameters stay the same.",
    "schema": {"type": "string", "minLength": 1},
}
KEY_PARAMETER: dict[str, Any] = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "Any unique text, such as a UUID. A repeated request with this key and body creates no second task.",
    "schema": {"type": "string", "minLength": 1, "maxLength": MAX_KEY, "pattern": "^[!-~]+$"},
}
_IF_NONE_MATCH: dict[str, Any] = {
    "name": "If-None-Match",
    "in": "header",
    "description": "The `ETag` of what you have. If it is still current, the response is 304 without a body to a GET, "
    "and 412 to a change.",
    "schema": {"type": "string"},
}
_IF_MATCH: dict[str, Any] = {
    "name": "If-Match",
    "in": "header",
    "description": "The `ETag` of the version you have. If it is no longer current, the response is 412.",
    "schema": {"type": "string"},
}
CONDITIONS = [_IF_MATCH, _IF_NONE_MATCH]
_ETAG: dict[str, Any] = {
    "ETag": {
        "description": "The version, for `If-None-Match` and, for a single task, `If-Match`.",
        "required": True,
        "schema": {"type": "string", "pattern": '^"[!#-~]+"$'},
    }
}
_LINK: dict[str, Any] = {
    "Link": {
        "description": 'The next page, as `<…>; rel="next"`, if there is one. Relative to the request.',
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
        "description": "Present if an earlier request with this key created the task.",
        "schema": {"type": "string", "const": "true"},
    },
}


def _success(code: int, description: str, schema: dict[str, Any], headers: dict[str, Any]) -> dict[int | str, Any]:
    return {code: {"description": description, "content": _json(schema), "headers": _ETAG | headers}}


_UNCHANGED: dict[int | str, Any] = {304: {"description": "Not modified.", "headers": _ETAG}}
TASK = _success(200, "The task.", _reference("TaskPublic"), {})
FOUND = TASK | _UNCHANGED
LISTED = _success(200, "The tasks.", {"type": "array", "items": _reference("TaskPublic")}, _LINK) | _UNCHANGED
CREATED_TASK = _success(201, "The task.", _reference("TaskPublic"), _CREATED)
DELETED: dict[int | str, Any] = {204: {"description": "The task was deleted."}}
_DESCRIPTIONS = {
    400: "The request is invalid; the error says why.",
    401: "The request is not authenticated.",
    404: "You have no such task, or the path is another user's.",
    409: "The key was used before, with another title or description.",
    412: "The version is not one that `If-Match` names, or it is one that `If-None-Match` names.",
    413: "The body is over 64 KiB.",
    500: "The service failed. With `Retry-After` if its database is unavailable.",
    503: "The service is overloaded. Nothing was done: try again later.",
}
_EXAMPLES = {
    error.status: error.message
    for error in (Unauthorized, KeyReused, TaskChanged, BodyTooLarge, DatabaseUnavailable, Busy)
}
_RETRY_AFTER = {
    "description": "Seconds to wait.",
    "schema": {"type": "integer", "format": "int32", "minimum": 1},
}
_HEADERS: dict[int, Any] = {
    401: {"WWW-Authenticate": {"required": True, "schema": {"type": "string", "const": "Bearer"}}},
    500: {"Retry-After": _RETRY_AFTER},
    503: {"Retry-After": {**_RETRY_AFTER, "required": True}},
}


class Error(BaseModel):
    """The body of every response with a status of 400 or above."""

    model_config = ConfigDict(extra="forbid")

    error: Annotated[str, Field(description="One sentence for people to read.", min_length=1)]


def errors(bad_request: str, not_found: str, *codes: int) -> dict[int | str, dict[str, Any]]:
    """Document the errors of an operation: 400 and 404 with these examples, 401 and 500, and `codes`."""
    examples = {**_EXAMPLES, 400: bad_request, 404: not_found}
    return {
        code: {
            "model": Error,
            "description": _DESCRIPTIONS[code],
            "headers": _HEADERS.get(code, {}),
            "content": {"application/json": {"example": {"error": examples[code]}}},
        }
        for code in sorted({400, 401, 404, 500, 503, *codes})
    }


def body_of(schema: str) -> dict[str, Any]:
    """Document the JSON body of an operation."""
    return {"requestBody": {"required": True, "content": _json(_reference(schema))}}


class TodoAPI(FastAPI):
    """FastAPI, which adds to its OpenAPI document the parameters and schemas that it cannot derive."""

    def __init__(self, **options: Any) -> None:  # noqa: ANN401  # passed through
        super().__init__(**options)
        self._own_middleware = len(self.user_middleware)

    def add_middleware(self, middleware_class: Any, *args: Any, **options: Any) -> None:  # noqa: ANN401  # passed through
        """Add a middleware inside the service's own, so that its responses and crashes are handled by these."""
        super().add_middleware(middleware_class, *args, **options)
        self.user_middleware.insert(self._own_middleware, self.user_middleware.pop(0))

    def add_route(self, path: str, route: Callable[[Request], Any], *args: Any, **options: Any) -> None:  # noqa: ANN401  # passed through
        """Add a route; FastAPI's page of the document as an API route, so that logs and traces have its path."""
        if path == self.openapi_url:
            self.add_api_route(path, route, include_in_schema=False)
        else:
            super().add_route(path, route, *args, **options)

    def openapi(self) -> dict[str, Any]:
        """Generate the document once, with the parameters and bodies that the service reads itself."""
        if self.openapi_schema is None:
            # FastAPI converts limits to floats.
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
