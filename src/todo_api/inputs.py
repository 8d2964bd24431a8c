"""What a request may say, checked in the order the API promises: who is asking first, the body last.

The body is read here and not declared to FastAPI, which would read it before anyone knows who is asking.
"""

import json
import math
import re
from typing import Annotated, Any, Never, cast

from fastapi import Depends, Request
from starlette.datastructures import QueryParams

from todo_api.errors import BadRequest, BodyTooLarge
from todo_api.models import INVALID_STATUS, MAX_ID, MAX_KEY, STATUSES, Status, TaskCreate, TaskUpdate
from todo_api.paging import Page, read_page

MAX_BODY = 64 * 1024
MAX_DEPTH = 1000
_ID = re.compile("[1-9][0-9]{0,18}")
# Possessive, and content with a string that never ends: time grows with the length, whatever the text.
_STRING = re.compile(r'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_KEY = re.compile(f"[\\x21-\\x7e]{{1,{MAX_KEY}}}")
_INVALID_JSON = "Request body must be valid JSON"


async def _task_id(request: Request) -> int:
    task_id = request.path_params["id"]
    if not _ID.fullmatch(task_id) or int(task_id) > MAX_ID:
        raise BadRequest("Invalid task ID")
    return int(task_id)


def _status_filter(query: QueryParams) -> Status | None:
    values = query.getlist("status")
    if values in ([], [""]):
        return None
    if len(values) > 1 or values[0] not in STATUSES:
        raise BadRequest(INVALID_STATUS)
    return cast("Status", values[0])


async def _selection(request: Request) -> tuple[Status | None, Page | None]:
    status = _status_filter(request.query_params)
    return status, read_page(request.query_params, request.path_params["user_id"], status)


async def _read_body(request: Request) -> bytes:
    """Read the whole body, but no more than `MAX_BODY` bytes of it, whatever length it declares."""
    declared = request.headers.get("content-length", "").lstrip("0")
    if declared.isdecimal() and declared.isascii() and (len(declared) > 18 or int(declared) > MAX_BODY):
        raise BodyTooLarge
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise BodyTooLarge
    return bytes(body)


def _refuse_constant(_: str) -> Never:
    raise ValueError


def _finite(number: str) -> float:
    value = float(number)
    if math.isinf(value):
        raise ValueError
    return value


def _is_too_deep(text: str) -> bool:
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return False
    depth = 0
    for bracket in re.findall(r"[\[\]{}]", _STRING.sub("", text)):
        depth += 1 if bracket in "[{" else -1
        if depth > MAX_DEPTH:
            return True
    return False


_parse = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite).decode


def _json_object(request: Request, body: bytes) -> dict[str, Any]:
    if not body:
        raise BadRequest(_INVALID_JSON)
    content_types = request.headers.getlist("content-type")
    if {value.partition(";")[0].strip(" \t").lower() for value in content_types} != {"application/json"}:
        raise BadRequest("Content-Type must be application/json")
    try:
        text = body.decode()
        if _is_too_deep(text):
            raise BadRequest(_INVALID_JSON)
        value = _parse(text)
    except (ValueError, RecursionError):
        raise BadRequest(_INVALID_JSON) from None
    if not isinstance(value, dict):
        raise BadRequest("Request body must be a JSON object")
    return value


def _idempotency_key(request: Request) -> str | None:
    keys = request.headers.getlist("idempotency-key")
    if not keys:
        return None
    if len(keys) > 1 or not _KEY.fullmatch(keys[0]):
        raise BadRequest("Invalid Idempotency-Key")
    return keys[0]


async def _new_task(request: Request) -> tuple[TaskCreate, str | None]:
    body = await _read_body(request)
    key = _idempotency_key(request)
    return TaskCreate.from_json(_json_object(request, body)), key


TaskId = Annotated[int, Depends(_task_id)]


async def _task_changes(_: TaskId, request: Request) -> TaskUpdate:
    return TaskUpdate.from_json(_json_object(request, await _read_body(request)))


Selection = Annotated[tuple[Status | None, Page | None], Depends(_selection)]
NewTask = Annotated[tuple[TaskCreate, str | None], Depends(_new_task)]
TaskChanges = Annotated[TaskUpdate, Depends(_task_changes)]
