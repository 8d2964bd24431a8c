"""The parts of the OpenAPI document that FastAPI cannot derive from the signatures."""

import json
import re
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import FastAPI, Request
from pydantic import BaseModel, ConfigDict, Field

from todo_api.errors import BodyTooLarge, DatabaseUnavailable, KeyReused, TaskChanged, Unauthorized
from todo_api.models import ID_SCHEMA, MAX_KEY, STATUSES, USER_ID_SCHEMA, TaskCreate, TaskPublic, TaskUpdate
from todo_api.paging import MAX_LIMIT

# Read by hand: to declare them would have FastAPI check them for each request, though every text is one.
_PATH_PARAMETERS: dict[str, dict[str, Any]] = {
    "user_id": {"name": "user_id", "in": "path", "required": True, "schema": USER_ID_SCHEMA},
    "id": {"name": "id", "in": "path", "required": True, "schema": ID_SCHEMA},
}
STATUS_PARAMETER: dict[str, Any] = {
    "name": "status",
    "in": "query",
    "description": "Only the tasks in this status. Empty means all.",
    "schema": {"type": "string", "enum": [*STATUSES, ""]},
    "example": "incomplete",
}
LIMIT_PARAMETER: dict[str, Any] = {
    "name": "limit",
    "in": "query",
    "description": "At most so many tasks. Without it all of them come back.",
    "schema": {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT},
}
KEY_PARAMETER: dict[str, Any] = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "Any text of your choice: the same one again, with the same body, makes no second task.",
    "schema": {"type": "string", "minLength": 1, "maxLength": MAX_KEY, "pattern": "^[!-~]+$"},
    "example": "0b9a7e4c-6d0e-4b1b-8e55-2f1f0f6f6f3c",
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
# `cursor` is told in words: it comes in a `Link` to be followed, and is not for anyone to make up.
_ETAG: dict[str, Any] = {
    "ETag": {
        "description": "The version: good for `If-None-Match` and, that of a task, for `If-Match`.",
        "required": True,
        "schema": {"type": "string", "pattern": '^".+"$'},
    }
}
TAGGED: dict[int | str, Any] = {200: {"headers": _ETAG}}
READ: dict[int | str, Any] = TAGGED | {304: {"description": "You have it already.", "headers": _ETAG}}
_LINK = {"Link": {"description": "The next page, where there is one.", "schema": {"type": "string"}}}
LISTED: dict[int | str, Any] = READ | {200: {"headers": _ETAG | _LINK}}
CREATED_HEADERS: dict[str, Any] = _ETAG | {
    "Location": {"description": "The task's path.", "required": True, "schema": {"type": "string"}},
    "Idempotency-Replayed": {
        "description": "The task was there already, made by an earlier request with this key.",
        "schema": {"type": "string", "const": "true"},
    },
}
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
    500: {"Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 1}}},
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
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return {"requestBody": {"required": True, "content": content}}


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
            for model in (TaskPublic, TaskCreate, TaskUpdate):  # FastAPI drops their nulls
                components["schemas"][model.__name__] = model.model_json_schema()
            components["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
            document["security"] = [{"bearer": []}]
        return self.openapi_schema
