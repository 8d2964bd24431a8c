"""Load shedding: under overload, requests are refused before they are read or authenticated.

A refusal by the outermost middleware costs little more than the work of the server, so the processor is left to the
requests that are served.
"""

import asyncio
import random
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from todo_api.admission import Admission
from todo_api.error_handlers import api_response
from todo_api.errors import Busy
from todo_api.middleware import CORS, common_headers

# Refusals of an owner who has most of the requests in flight are delayed, so that clients of one user that retry
# immediately do not use up the processor; only so many at a time.
DELAY_SECONDS = 0.09
MOST_DELAYED = 200
STATE_KEY = "todo_api_door"  # of the door in the lifespan's state


class Door:
    """Refuse requests of the API while too many are in flight, or if the connection queue would refuse them.

    A server finds the door in the state of the lifespan, and may refuse requests before it calls the application.
    """

    def __init__(self, app: ASGIApp, admission: Admission, /, **cors_options: Any) -> None:  # noqa: ANN401  # of `CORS`
        self.app = app
        self.admission = admission
        refusal = api_response(Busy())
        self.body = bytes(refusal.body)
        self._headers = refusal.raw_headers
        self._refuse = CORS(self._send_refusal, **cors_options)
        self._origins = [origin.encode() for origin in cors_options["allow_origins"]]
        # The headers of a refusal but for `X-Request-ID`, as sent, by the request's `Origin`; since the startup.
        self.header_lines: dict[bytes | None, bytes] = {}
        self._delayed = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        owner = _owner(scope)
        if owner is None:
            if scope["type"] == "lifespan" and "state" in scope:
                self.header_lines = {origin: await self._lines(origin) for origin in (None, *self._origins)}
                scope["state"][STATE_KEY] = self
            await self.app(scope, receive, send)
            return
        if self.admission.refuses(owner):
            self.admission.record_refusal()
            if self.delays(owner):
                await self._delay()
            await self._refuse(scope, receive, send)
            return
        self.admission.enter(owner)
        try:
            await self.app(scope, receive, send)
        finally:
            self.admission.leave(owner)

    def delays(self, owner: str) -> bool:
        """Tell whether to delay a refusal of this owner."""
        return self._delayed < MOST_DELAYED and self.admission.has_most(owner)

    async def _delay(self) -> None:
        self._delayed += 1
        try:
            # With jitter, so that they do not come again at the same moment, in the way of everyone else.
            await asyncio.sleep(DELAY_SECONDS * random.uniform(0.7, 1.3))  # noqa: S311  # no secret
        finally:
            self._delayed -= 1

    async def _lines(self, origin: bytes | None) -> bytes:
        sent: list[Message] = []

        async def receive() -> Message:
            raise NotImplementedError

        async def send(message: Message) -> None:
            sent.append(message)

        headers = [] if origin is None else [(b"origin", origin)]
        await self._refuse({"type": "http", "method": "GET", "path": "/api/", "headers": headers}, receive, send)
        return b"".join(b"%b: %b\r\n" % pair for pair in sent[0]["headers"] if pair[0] != b"x-request-id")

    async def _send_refusal(self, scope: Scope, _: Receive, send: Send) -> None:
        headers = [*self._headers, *common_headers(scope)]
        await send({"type": "http.response.start", "status": Busy.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body})


def _owner(scope: Scope) -> str | None:
    """Return the user in the path, or None on other paths than the API's."""
    if scope["type"] != "http":
        return None
    path: str = scope["path"]
    if root_path := scope.get("root_path"):
        path = path.removeprefix(root_path.rstrip("/"))
    return path[5:].partition("/")[0] if path.startswith("/api/") else None
