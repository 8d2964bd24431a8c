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

    Owners share the limit: one that has less than its share is let in, so one user's flood is refused to that user. The
    owner is that of the path, before authentication; but only authenticated requests enter the connection queue, so
    a client cannot fill the queue of another user.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._limit = max(IN_FLIGHT_PER_CONNECTION * database.pool_size, LEAST_IN_FLIGHT)
        self._in_flight = 0
        self._by_owner: dict[str, int] = {}
        self._announced: list[str] = []
        # Since when the limit has been reached in this overload, and since when fewer requests have been in flight.
        self._overloaded_since = self._calm_since = 0.0

    @property
    def is_near_limit(self) -> bool:
        """Tell whether a request may be refused soon, because at least half of the limit is in flight."""
        return 2 * self._in_flight >= self._limit

    def announce(self, owner: str) -> None:
        """Count a request that will enter in the next iteration of the event loop as in flight until then.

        Otherwise, all requests that arrive within one iteration would be let in.
        """
        if not self._announced:
            asyncio.get_running_loop().call_soon(self._forget_announced)
        self._announced.append(owner)
        self.enter(owner)

    def _forget_announced(self) -> None:
        for owner in self._announced:
            self.leave(owner)
        self._announced.clear()

    def refuses(self, owner: str) -> bool:
        """Tell whether to refuse a request of this owner; also update the state of the overload."""
        return self._exceeds_limit(owner) or self._database.would_refuse(owner)

    def _exceeds_limit(self, owner: str) -> bool:
        if self._in_flight < self._limit - 1:
            return False
        own = self._by_owner.get(owner, 0)
        if self._in_flight >= MOST_IN_FLIGHT or own >= MOST_IN_FLIGHT // 2:
            return True
        now = time.monotonic()
        if now - self._calm_since > CALM_SECONDS:
            self._overloaded_since = now
        self._calm_since = inf
        is_burst = now - self._overloaded_since < BURST_SECONDS
        if is_burst or self._in_flight < self._limit or self._database.is_unavailable:
            return False
        # The owner exceeds its share if the limit is exceeded even when nobody counts for more than this owner.
        counts = self._by_owner
        capped = sum([min(count, own + 1) for count in counts.values()]) if own else len(counts)
        return capped + 1 > self._limit

    def record_refusal(self) -> None:
        """Count a request as refused here."""
        self._database.refusals.record("door")

    def has_many(self, owner: str) -> bool:
        """Tell whether more than an eighth of the requests in flight are this owner's."""
        return 8 * self._by_owner.get(owner, 0) > self._in_flight

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
