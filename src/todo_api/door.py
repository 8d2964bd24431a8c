"""Load shedding: under overload, requests are refused before they are read or authenticated.

A refusal by the outermost middleware costs little more than the work of the server, so the processor is left to the
requests that are served.
"""

import asyncio
import random
import time
from math import inf
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from todo_api.database import Database
from todo_api.error_handlers import api_response
from todo_api.errors import Busy
from todo_api.middleware import CORS, common_headers

# The limit of requests in flight, but at least `LEAST_IN_FLIGHT`. A higher one adds latency, and no throughput.
IN_FLIGHT_PER_CONNECTION = 6
LEAST_IN_FLIGHT = 64
BURST_SECONDS = 0.25  # the limit applies after being reached for this time
CALM_SECONDS = 0.2  # until fewer requests have been in flight for this time
MOST_IN_FLIGHT = 2000  # always applies, and bounds the memory
# Refusals of an owner who has most of the requests in flight are delayed, so that clients of one user that retry
# immediately do not use up the processor; only so many at a time.
DELAY_SECONDS = 0.09
MOST_DELAYED = 200


class Door:
    """Refuse requests of the API while too many are in flight, or if the connection queue would refuse them.

    The limit does not apply to owners with few requests in flight, so one user's flood is refused to that user. The
    owner is that of the path, before authentication; but only authenticated requests enter the connection queue, so
    a client cannot fill the queue of another user.
    """

    def __init__(self, app: ASGIApp, /, **cors_options: Any) -> None:  # noqa: ANN401  # those of `CORS`
        self.app = app
        refusal = api_response(Busy())
        self._body = bytes(refusal.body)
        self._headers = refusal.raw_headers
        self._refuse = CORS(self._send_refusal, **cors_options)
        self._in_flight = self._delayed = 0
        self._by_owner: dict[str, int] = {}
        # Since when the limit has been reached in this overload, and since when fewer requests have been in flight.
        self._overloaded_since = self._calm_since = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        owner = _owner(scope)
        if owner is None:
            await self.app(scope, receive, send)
            return
        database: Database = scope["app"].state.database
        if self._exceeds_limit(owner, database) or database.would_refuse(owner):
            database.refusals.record("door")
            if 2 * self._by_owner.get(owner, 0) > self._in_flight and self._delayed < MOST_DELAYED:
                await self._delay()
            await self._refuse(scope, receive, send)
            return
        self._in_flight += 1
        self._by_owner[owner] = self._by_owner.get(owner, 0) + 1
        try:
            await self.app(scope, receive, send)
        finally:
            self._in_flight -= 1
            if self._calm_since == inf and self._in_flight < _limit(database):
                self._calm_since = time.monotonic()
            if self._by_owner[owner] > 1:
                self._by_owner[owner] -= 1
            else:
                del self._by_owner[owner]

    def _exceeds_limit(self, owner: str, database: Database) -> bool:
        """Tell whether to refuse a request of this owner; also update the state of the overload."""
        limit = _limit(database)
        if self._in_flight < limit - 1:
            return False
        if self._in_flight >= MOST_IN_FLIGHT:
            return True
        now = time.monotonic()
        if now - self._calm_since > CALM_SECONDS:
            self._overloaded_since = now
        self._calm_since = inf
        if self._in_flight < limit or database.is_unavailable or now - self._overloaded_since < BURST_SECONDS:
            return False
        # Exempt an owner with, including this one, at most half of the average number of requests per owner.
        return 2 * (self._by_owner.get(owner, 0) + 1) * len(self._by_owner) > self._in_flight

    async def _delay(self) -> None:
        self._delayed += 1
        try:
            # With jitter, so that they do not come again at the same moment, in the way of everyone else.
            await asyncio.sleep(DELAY_SECONDS * random.uniform(0.7, 1.3))  # noqa: S311  # no secret
        finally:
            self._delayed -= 1

    async def _send_refusal(self, scope: Scope, _: Receive, send: Send) -> None:
        headers = [*self._headers, *common_headers(scope)]
        await send({"type": "http.response.start", "status": Busy.status, "headers": headers})
        await send({"type": "http.response.body", "body": self._body})


def _limit(database: Database) -> int:
    return max(IN_FLIGHT_PER_CONNECTION * database.pool_size, LEAST_IN_FLIGHT)


def _owner(scope: Scope) -> str | None:
    """Return the user in the path, or None on other paths than the API's."""
    if scope["type"] != "http":
        return None
    path: str = scope["path"]
    if root_path := scope.get("root_path"):
        path = path.removeprefix(root_path.rstrip("/"))
    return path[5:].partition("/")[0] if path.startswith("/api/") else None
