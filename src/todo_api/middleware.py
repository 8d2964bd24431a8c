"""What every answer gets, on every path: a request id, the headers of the API, CORS, and a body even for a crash."""

import logging
import re
import time
import uuid
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from todo_api.error_handlers import crash_response, error_response

logger = logging.getLogger(__name__)
_SANE_ID = re.compile("[A-Za-z0-9._-]{1,128}")


class RequestLog:
    """Give each request an id, log one line about it, and set the headers that all of `/api/` shares."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] == "websocket" and "websocket.http.response" in scope.get("extensions", {}):
            # Left alone, a handshake would be closed, which servers turn into a 403.
            await WebSocket(scope, receive, send).send_denial_response(error_response(404, "Not found"))
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        request_id = Headers(scope=scope).get("x-request-id", "")
        if not _SANE_ID.fullmatch(request_id):
            request_id = uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        is_api = scope["path"].removeprefix(scope.get("root_path", "")).startswith("/api/")
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = request_id
                if is_api:
                    headers["Cache-Control"] = "private, no-cache"
                    headers["X-Content-Type-Options"] = "nosniff"
                    headers.add_vary_header("Authorization")
            await send(message)

        try:
            await self.app(scope, receive, send_with_headers)
        finally:
            # Quoted again, because a decoded path can hold a line break; status 0: the client left unanswered.
            path = quote(scope["path"], errors="replace")
            milliseconds = (time.perf_counter() - started) * 1000
            logger.info("%s %s %s %d %.1f ms", request_id, scope["method"], path, status, milliseconds)


class CORS(CORSMiddleware):
    """Starlette's CORS, with refused preflights in the error shape."""

    def preflight_response(self, request_headers: Headers) -> Response:
        """Answer a preflight, without asking who is asking."""
        response = super().preflight_response(request_headers)
        if response.status_code < 400:
            return response
        headers = {name: value for name, value in response.headers.items() if not name.startswith("content-")}
        return error_response(400, bytes(response.body).decode(), headers)


class CrashGuard:
    """Answer a crash from inside the other middleware, where the answer still gets its headers.

    Starlette's own handler for `Exception` sits outside of them all.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        started = False

        async def watched_send(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive, watched_send)
        except ClientDisconnect:
            pass  # there is nobody left to answer
        except Exception as error:
            if started or scope["type"] != "http":
                raise
            await crash_response(Request(scope), error)(scope, receive, send)


def stack(cors_origins: tuple[str, ...]) -> list[Middleware]:
    """List the middleware, outermost first."""
    return [
        Middleware(RequestLog),
        Middleware(
            CORS,
            allow_origins=cors_origins,
            allow_credentials=True,
            allow_methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
            allow_headers=[
                "Authorization",
                "Content-Type",
                "If-Match",
                "If-None-Match",
                "Idempotency-Key",
                "X-Request-ID",
            ],
            expose_headers=["Location", "ETag", "Link", "Idempotency-Replayed", "Retry-After", "X-Request-ID"],
        ),
        Middleware(CrashGuard),
    ]
