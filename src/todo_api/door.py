"""Load shedding: under overload, requests are refused before they are read or authenticated.

A refusal by the outermost middleware costs little more than the work of the server, so the processor is left to the
requests that are served.
"""

import asyncio
import random
from typing import Any

from starlette.requests import empty_receive
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from todo_api.admission import Admission
from todo_api.error_handlers import api_response
from todo_api.errors import Busy
from todo_api.middleware import CORS, api_prefix, common_headers

# Refusals of an owner with many requests in flight are delayed, so that clients of one user that retry immediately do
# not use up the processor. The more of them wait, the longer, so that no more than these are sent in a second.
DELAY_SECONDS = 0.09
LONGEST_DELAY_SECONDS = 1.0  # as long as `Retry-After`
MOST_DELAYED_PER_SECOND = 2000
MOST_DELAYED = 200  # tasks that wait in the application; the others are refused without a delay
STATE_KEY = "todo_api_door"  # of the door in the lifespan's state


class Door:
    """Refuse requests of the API while too many are in flight, or if the connection queue would refuse them.

    A server finds the door in the state of the lifespan, and may refuse requests before it calls the application.
    """

    def __init__(self, app: ASGIApp, admission: Admission, /, **cors_options: Any) -> None:  # noqa: ANN401  # those of `CORS`
        self.app = app
        self.admission = admission
        refusal = api_response(Busy())
        self.body = bytes(refusal.body)
        self._headers = refusal.raw_headers
        self._refuse = CORS(self._send_refusal, **cors_options)
        self._origins = [origin.encode() for origin in cors_options["allow_origins"]]
        # The headers of a refusal but for `X-Request-ID`, as sent, by the request's `Origin`; since the startup.
        self.header_lines: dict[bytes | None, bytes] = {}
        self.root_path: str | None = None  # of the last request
        self.delayed = 0  # refusals that wait

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] == "http":
            self.root_path = scope.get("root_path", "")
            owner = _owner(scope)
        else:
            owner = None
            if scope["type"] == "lifespan" and "state" in scope:
                self.header_lines = {origin: await self._lines(origin) for origin in (None, *self._origins)}
                scope["state"][STATE_KEY] = self
        if owner is None:
            await self.app(scope, receive, send)
            return
        if self.admission.refuses(owner):
            self.admission.record_refusal()
            if delay := self.delay(owner, MOST_DELAYED):
                await self._wait(delay)
            await self._refuse(scope, receive, send)
            return
        self.admission.enter(owner)
        try:
            await self.app(scope, receive, send)
        finally:
            self.admission.leave(owner)

    def delay(self, owner: str, most: int) -> float:
        """Return how many seconds to delay a refusal of this owner; 0 if not at all, or if `most` wait already."""
        if self.delayed >= most or not self.admission.has_many(owner):
            return 0.0
        seconds = min(max(DELAY_SECONDS, self.delayed / MOST_DELAYED_PER_SECOND), LONGEST_DELAY_SECONDS)
        # With jitter, so that they do not come again at the same moment, in the way of everyone else.
        return seconds * random.uniform(0.7, 1.3)  # noqa: S311  # no secret

    async def _wait(self, seconds: float) -> None:
        self.delayed += 1
        try:
            await asyncio.sleep(seconds)
        finally:
            self.delayed -= 1

    async def _lines(self, origin: bytes | None) -> bytes:
        sent: list[Message] = []

        async def send(message: Message) -> None:
            sent.append(message)

        headers = [] if origin is None else [(b"origin", origin)]
        await self._refuse({"type": "http", "method": "GET", "path": "/api/", "headers": headers}, empty_receive, send)
        return b"".join(b"%b: %b\r\n" % pair for pair in sent[0]["headers"] if pair[0] != b"x-request-id")

    async def _send_refusal(self, scope: Scope, _: Receive, send: Send) -> None:
        headers = [*self._headers, *common_headers(scope)]
        await send({"type": "http.response.start", "status": Busy.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body})


def _owner(scope: Scope) -> str | None:
    """Return the user in the path, or None on other paths than the API's."""
    prefix = api_prefix(scope)
    path: str = scope["path"]
    return path[len(prefix) :].partition("/")[0] if path.startswith(prefix) else None
