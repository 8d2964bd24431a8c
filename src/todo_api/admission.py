"""Decides which requests are refused under overload, by the number in flight and by the connection queue."""

import asyncio
import time
from math import inf

from todo_api.database import Database

# The limit of requests in flight, but at least `LEAST_IN_FLIGHT`. A higher one adds latency, and no throughput.
IN_FLIGHT_PER_CONNECTION = 6
LEAST_IN_FLIGHT = 64
BURST_SECONDS = 0.25  # the limit applies after being reached for this time
CALM_SECONDS = 0.2  # until fewer requests have been in flight for this time
MOST_IN_FLIGHT = 2000  # always applies, and bounds the memory


class Admission:
    """Counts the requests in flight, and decides whether one more is let in.

    The limit does not apply to owners with few requests in flight, so one user's flood is refused to that user. The
    owner is that of the path, before authentication; but only authenticated requests enter the connection queue, so
    a client cannot fill the queue of another user.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._limit = max(IN_FLIGHT_PER_CONNECTION * database.pool_size, LEAST_IN_FLIGHT)
        self._in_flight = self._announced = 0
        self._by_owner: dict[str, int] = {}
        # Since when the limit has been reached in this overload, and since when fewer requests have been in flight.
        self._overloaded_since = self._calm_since = 0.0

    @property
    def is_near_limit(self) -> bool:
        """Tell whether a request may be refused soon, because at least half of the limit is in flight."""
        return 2 * (self._in_flight + self._announced) >= self._limit

    def announce(self) -> None:
        """Count a request that has arrived and will enter in the next iteration of the event loop.

        Otherwise, all requests that arrive within one iteration would be let in.
        """
        if not self._announced:
            asyncio.get_running_loop().call_soon(self._forget_announced)
        self._announced += 1

    def _forget_announced(self) -> None:
        self._announced = 0

    def refuses(self, owner: str) -> bool:
        """Tell whether to refuse a request of this owner; also update the state of the overload."""
        return self._exceeds_limit(owner) or self._database.would_refuse(owner)

    def _exceeds_limit(self, owner: str) -> bool:
        in_flight = self._in_flight + self._announced
        if in_flight < self._limit - 1:
            return False
        if in_flight >= MOST_IN_FLIGHT:
            return True
        now = time.monotonic()
        if now - self._calm_since > CALM_SECONDS:
            self._overloaded_since = now
        self._calm_since = inf
        if in_flight < self._limit or self._database.is_unavailable or now - self._overloaded_since < BURST_SECONDS:
            return False
        # Exempt an owner with, including this one, at most half of the average number of requests per owner.
        return 2 * (self._by_owner.get(owner, 0) + 1) * len(self._by_owner) > self._in_flight

    def record_refusal(self) -> None:
        """Count a request as refused here."""
        self._database.refusals.record("door")

    def has_most(self, owner: str) -> bool:
        """Tell whether more than half of the requests in flight are this owner's."""
        return 2 * self._by_owner.get(owner, 0) > self._in_flight

    def enter(self, owner: str) -> None:
        """Count a request of this owner as in flight."""
        self._in_flight += 1
        self._by_owner[owner] = self._by_owner.get(owner, 0) + 1

    def leave(self, owner: str) -> None:
        """Count a request of this owner as no longer in flight."""
        self._in_flight -= 1
        if self._calm_since == inf and self._in_flight < self._limit:
            self._calm_since = time.monotonic()
        if self._by_owner[owner] > 1:
            self._by_owner[owner] -= 1
        else:
            del self._by_owner[owner]
