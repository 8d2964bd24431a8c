"""Middleware for every path: request ids, the request log, headers common to the API, CORS, and 500 for a crash."""

import asyncio
import logging
import random
import re
import time
from collections.abc import Awaitable
from contextlib import suppress
from functools import partial
from http import HTTPMethod

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from todo_api import logs
from todo_api.error_handlers import error_response, last_response, shutdown_response
from todo_api.inputs import DISCONNECTED_KEY

logger = logging.getLogger(__name__)
_VALID_ID = re.compile(b"[A-Za-z0-9._-]{1,128}")
_METHODS = frozenset(HTTPMethod)
_LINE = "%(method)s %(route)s %(status)d %(duration_ms).1f ms"
_API_HEADERS = [(b"cache-control", b"private, no-cache"), (b"x-content-type-options", b"nosniff")]
# By whether the path is the API's, and whether the request has an `Origin`, to which `CORS` adds `Vary: Origin`.
_COMMON_HEADERS = {
    (True, False): [*_API_HEADERS, (b"vary", b"Authorization, Origin")],
    (True, True): [*_API_HEADERS, (b"vary", b"Authorization")],
    (False, False): [(b"vary", b"Origin")],
    (False, True): [],
}
# How long the application's shutdown waits for requests that the server cancelled, so that their statements end too.
DRAIN_SECONDS = 3.0
# The message with which uvicorn cancels requests at the end of `--timeout-graceful-shutdown`.
_GRACE_PERIOD_OVER = "Task cancelled, timeout graceful shutdown exceeded"


def common_headers(scope: Scope) -> list[tuple[bytes, bytes]]:
    """Return the headers of any response to this request; the first is its id, the client's or else a new one."""
    headers = dict(scope["headers"])
    identifier = headers.get(b"x-request-id", b"")
    if not _VALID_ID.fullmatch(identifier):
        identifier = new_request_id()
    is_api, has_origin = scope["path"].startswith(api_prefix(scope)), b"origin" in headers
    return [(b"x-request-id", identifier), *_COMMON_HEADERS[is_api, has_origin]]


def new_request_id() -> bytes:
    """Return an id for a request that came without one."""
    return b"%032x" % random.getrandbits(128)


class RequestLog:
    """Give each request an id, log one line about it, and add the headers common to all paths under `/api/`."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] == "websocket" and "websocket.http.response" in scope.get("extensions", {}):
            # Without this, the application would close the handshake, which servers answer with 403.
            await WebSocket(scope, receive, send).send_denial_response(error_response(404, "Not found"))
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        more_headers = common_headers(scope)
        logs.request_id.set(more_headers[0][1].decode())
        status = 0  # logged if the client disconnected before a response

        def send_with_headers(message: Message) -> Awaitable[None]:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *more_headers]
            return send(message)

        try:
            await self.app(scope, receive, send_with_headers)
            if not status:
                # The client is gone, but middleware around the application would treat a missing response as a crash.
                with suppress(OSError):  # which a server may raise, since the client is gone
                    await error_response(400, "Client disconnected")(scope, receive, send)
        finally:
            # The route's template, never the path: no text from the client is logged.
            facts = {
                "method": scope["method"] if scope["method"] in _METHODS else "_OTHER",
                "route": getattr(scope.get("route"), "path_format", "-"),
                "status": status,
                "duration_ms": round((time.perf_counter() - started) * 1000, 3),
            }
            if logger.isEnabledFor(logging.INFO):
                # Like `logger.info` without finding the caller's frame, which costs more than the rest of the record.
                logger.handle(logger.makeRecord(logger.name, logging.INFO, __file__, 0, _LINE, (facts,), None))


def api_prefix(scope: Scope) -> str:
    """Return the prefix of the API's paths; also strip trailing slashes from the root path."""
    if not scope.get("root_path"):
        return "/api/"
    root_path: str = scope["root_path"].rstrip("/")
    if root_path != scope["root_path"]:
        if scope["path"].startswith(scope["root_path"] + "/"):  # the server prefixed the path with it
            scope["path"] = root_path + scope["path"][len(scope["root_path"]) :]
        scope["root_path"] = root_path
    return f"{root_path}/api/" if scope["path"].startswith(f"{root_path}/") else "/api/"


class CORS(CORSMiddleware):
    """Starlette's CORS, where only the origin refuses a preflight, and requests without `Origin` are not touched."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] == "http" and b"origin" in dict(scope["headers"]):
            await super().__call__(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def preflight_response(self, request_headers: Headers) -> Response:
        """Answer a preflight, which needs no authentication."""
        origin = request_headers["origin"]
        if not self.is_allowed_origin(origin):
            return error_response(400, "Disallowed CORS origin", {"Vary": "Origin"})
        headers = {**self.preflight_headers, "Access-Control-Allow-Origin": origin}
        if asked := request_headers.get("access-control-request-headers"):
            headers["Access-Control-Allow-Headers"] = asked
        return Response(headers=headers)


class CrashGuard:
    """Answer a crash inside the other middleware, so that the response gets their headers.

    Starlette's own handler runs outside of them, and catches only `Exception`. A request that the server cancels at its
    shutdown is answered too; the application's shutdown waits for that, at most `DRAIN_SECONDS`.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http":
            await self.app(scope, partial(self._receive_when_drained, receive), send)
            return
        started = left = False

        async def watched_receive() -> Message:
            nonlocal left
            message = await receive()
            left = left or message["type"] == "http.disconnect"
            return message

        def watched_send(message: Message) -> Awaitable[None]:
            nonlocal started
            started = True
            return send(message)

        self._requests += 1
        try:
            await self.app(scope, watched_receive, watched_send)
        except GeneratorExit:  # the coroutine is being closed, and can await nothing any more
            raise
        except BaseException as error:
            if isinstance(error, ClientDisconnect) and (started or left or DISCONNECTED_KEY in scope.get("state", ())):
                return
            if started or not await _answer(error, scope, receive, send):
                raise
        finally:
            self._requests -= 1

    async def _receive_when_drained(self, receive: Receive) -> Message:
        message = await receive()
        if message["type"] == "lifespan.shutdown":
            deadline = time.monotonic() + DRAIN_SECONDS
            # Not an `asyncio.Event`, which belongs to one event loop: requests may run on others.
            while self._requests and time.monotonic() < deadline:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        return message


async def _answer(error: BaseException, scope: Scope, receive: Receive, send: Send) -> bool:
    """Answer a request that crashed or was cancelled; return False if the error still has to be raised."""
    task = asyncio.current_task()
    if not isinstance(error, asyncio.CancelledError) or not task or not task.cancelling():
        await last_response(error)(scope, receive, send)
        return isinstance(error, Exception)
    if _GRACE_PERIOD_OVER not in error.args:
        return False
    await shutdown_response()(scope, receive, send)
    return True  # raised, the server would only log it as a crash
