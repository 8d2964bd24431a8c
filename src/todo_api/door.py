"""The door: refuses requests that cannot be answered in time, before anything is read or authenticated.

It is the outermost middleware: a refusal costs little more than what the server does itself, so that the processor is
left to the requests that are served.
"""

import asyncio
from collections import Counter
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from todo_api.database import Database
from todo_api.error_handlers import api_response
from todo_api.errors import Busy
from todo_api.middleware import API_HEADERS, CORS, request_id

# Requests in flight for each connection of the pool, and at least. More makes them wait, and answers no more of them.
FOR_EACH_CONNECTION = 6
LEAST = 64
BURST_SECONDS = 0.25  # how long more may be in flight
CALM_SECONDS = 1.0  # a burst is over after this time without more
MOST = 2000  # bounds the memory
# Refusals are sent a little later, while few are held, so that clients that repeat at once do not take the processor.
HOLD_SECONDS = 0.05
MOST_HELD = 200


class Door:
    """Refuse requests of the API while too many are in flight, or if the queue of their owner is too long.

    Owners with few requests in flight pass in any case, so that one user's flood costs others nothing. The owner is
    that of the path, who is not authenticated yet. Only authenticated requests wait in the queue, so nobody can fill
    another user's.
    """

    def __init__(self, app: ASGIApp, /, **cors_options: Any) -> None:  # noqa: ANN401  # those of `CORS`
        self.app = app
        refusal = api_response(Busy())
        self._body = bytes(refusal.body)
        self._headers = [*refusal.raw_headers, *API_HEADERS]
        self._refuse = CORS(self._send_refusal, **cors_options)
        self._in_flight = self._held = 0
        self._by_owner = Counter[str]()
        self._many_since = self._many_at = -CALM_SECONDS  # when too many were in flight: the first and the last time

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        owner = _owner(scope)
        if owner is None:
            await self.app(scope, receive, send)
            return
        database: Database = scope["app"].state.database
        if self._is_full(owner, database) or database.would_refuse(owner):
            database.refusals.count("door")
            if self._held < MOST_HELD:
                await self._hold()
            await self._refuse(scope, receive, send)
            return
        self._in_flight += 1
        self._by_owner[owner] += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self._in_flight -= 1
            self._by_owner[owner] -= 1
            if not self._by_owner[owner]:
                del self._by_owner[owner]

    def _is_full(self, owner: str, database: Database) -> bool:
        if self._in_flight < max(FOR_EACH_CONNECTION * database.pool_size, LEAST):
            return False
        if self._in_flight >= MOST:
            return True
        now = asyncio.get_running_loop().time()
        if now - self._many_at > CALM_SECONDS:
            self._many_since = now
        self._many_at = now
        if database.is_away or now - self._many_since < BURST_SECONDS:
            return False
        # The owners have some requests in flight on average; half of that is free for each.
        return 2 * (self._by_owner[owner] + 1) * len(self._by_owner) > self._in_flight

    async def _hold(self) -> None:
        self._held += 1
        try:
            await asyncio.sleep(HOLD_SECONDS)
        finally:
            self._held -= 1

    async def _send_refusal(self, scope: Scope, _: Receive, send: Send) -> None:
        headers = [*self._headers, (b"x-request-id", request_id(scope))]
        await send({"type": "http.response.start", "status": Busy.status, "headers": headers})
        await send({"type": "http.response.body", "body": self._body})


def _owner(scope: Scope) -> str | None:
    """Return the user in the path, or None on other paths than the API's."""
    if scope["type"] != "http":
        return None
    path: str = scope["path"]
    if root_path := scope.get("root_path"):
        path = path.removeprefix(root_path.rstrip("/"))
    return path[5:].partition("/")[0] if path.startswith("/api/") else None
