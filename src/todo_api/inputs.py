"""Reads and checks the inputs of the six operations, each when the endpoint calls for it.

Bodies are not declared to FastAPI, which would read them before the request is authenticated.
"""

import asyncio
import json
import math
import re
from typing import Any, Never, cast

from fastapi import Request
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

from todo_api.errors import BadRequest, BodyTooLarge
from todo_api.models import INVALID_STATUS, MAX_ID, MAX_KEY, STATUSES, Status, read_changes, read_new_task
from todo_api.paging import Page, read_page
from todo_api.tasks import TaskStore

MAX_BODY = 64 * 1024
MAX_DEPTH = 1000
DISCONNECTED_KEY = "todo_api_disconnected"  # in the state of a request whose client has disconnected
_ID = re.compile("[1-9][0-9]{0,18}")
# Possessive quantifiers keep this linear; it also matches an unterminated string.
_STRING = re.compile(r'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_KEY = re.compile(f"[\\x21-\\x7e]{{1,{MAX_KEY}}}")
_INVALID_JSON = "Request body must be valid JSON"


class OwnerRequest(Request):
    """An authenticated request, with its owner's tasks.

    The methods raise `BadRequest` if the input is invalid. An endpoint calls them in the order in which the API reports
    faults: id, body, query.
    """

    tasks: TaskStore

    def task_id(self) -> int:
        """Read the id in the path."""
        task_id: str = self.path_params["id"]
        if not _ID.fullmatch(task_id) or int(task_id) > MAX_ID:
            raise BadRequest("Invalid task ID")
        return int(task_id)

    def status_filter(self) -> Status | None:
        """Read the query parameter `status`; None means all."""
        values = self.query_params.getlist("status")
        if values in ([], [""]):
            return None
        if len(values) > 1 or values[0] not in STATUSES:
            raise BadRequest(INVALID_STATUS)
        return cast("Status", values[0])

    def page(self, status: Status | None) -> Page | None:
        """Read the requested page of the list with this status; None means the whole list."""
        return read_page(self.query_params, self.tasks.owner, status)

    async def new_task(self) -> tuple[dict[str, object], str | None]:
        """Read the task to create, and the `Idempotency-Key` if there is one; may raise `BodyTooLarge`."""
        body = await self._bounded_body()
        key = self._idempotency_key()
        return read_new_task(self._json_object(body)), key

    async def changes(self) -> dict[str, object]:
        """Read the changes to a task; may raise `BodyTooLarge`."""
        return read_changes(self._json_object(await self._bounded_body()))

    async def _bounded_body(self) -> bytes:
        """Read the body; raise `BodyTooLarge` if its declared or its real length exceeds `MAX_BODY` bytes."""
        declared = self.headers.get("content-length", "").lstrip("0")
        if declared.isdecimal() and declared.isascii() and (len(declared) > 18 or int(declared) > MAX_BODY):
            raise BodyTooLarge
        body = bytearray()
        async for chunk in self.stream():  # what the authentication backend has read already, or the request's
            body += chunk
            if len(body) > MAX_BODY:
                raise BodyTooLarge
        return bytes(body)

    def _idempotency_key(self) -> str | None:
        keys = self.headers.getlist("idempotency-key")
        if not keys:
            return None
        if len(keys) > 1 or not _KEY.fullmatch(keys[0]):
            raise BadRequest("Invalid Idempotency-Key")
        return keys[0]

    def _json_object(self, body: bytes) -> dict[str, Any]:
        if not body:
            raise BadRequest(_INVALID_JSON)
        content_types = self.headers.getlist("content-type")
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


class Disconnect:
    """Tells that the client has disconnected, by raising `ClientDisconnect`."""

    __slots__ = ("_receive", "_state")

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self._state = scope.get("state", {})
        self._receive = receive

    def check(self) -> None:
        """Raise if the server has noted the disconnect in the request's state."""
        if DISCONNECTED_KEY in self._state:
            raise ClientDisconnect

    async def wait(self) -> Never:
        """Wait until the client disconnects, then raise; discards the unread part of the body."""
        body_ends = 0
        while body_ends < 2:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            body_ends += not message.get("more_body", False)
        await asyncio.Future[Never]()  # a server that repeats the body's end does not report disconnects


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
