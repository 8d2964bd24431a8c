"""The queue of requests for a connection: fair between owners, and bounded by the expected waiting time.

Each owner has a queue, and the queues are served in turn (RFC 8290). As in CoDel (RFC 8289) the bound is on time, not
length: the time that a new request is expected to wait, at the current rate of service. Short bursts may wait longer.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING, Never, Protocol

from todo_api.errors import Busy
from todo_api.refusals import Refusals

if TYPE_CHECKING:
    from todo_api.database.connections import Connection

TARGET_SECONDS = 0.45  # limit of the expected wait
BURST_TARGET_SECONDS = 1.0  # the limit while the queue has not been in use for `BURST_SECONDS`
BURST_SECONDS = 1.0
MOST_SECONDS = 1.5  # limit of the real wait
WOKEN_SECONDS = 2.0  # additional wait of requests that queued while the database was unavailable
FLOOD_SECONDS = 0.25  # from then on, a queue of only one owner may be a flood
RATE_SECONDS = 0.25  # time to measure the rate before the limits apply
RATE_DECAY = 0.95  # decay of the measured rate at each update
STALL_SECONDS = 0.1  # a longer time between two updates is a pause of this process, not of the database
MAX_WAITING = 1000
WATCH_SECONDS = 0.1  # a shorter wait ends before watching its client would be worth its cost
FEW = 10  # so many waiters are watched without regard to the cost


class Interrupt(Protocol):
    """Ends the wait of a request whose client disconnects."""

    def check(self) -> None:
        """Raise if the client is known to have disconnected."""

    async def wait(self) -> Never:
        """Wait until the client disconnects, and raise."""


@dataclass(eq=False)
class Waiter:
    """A request for a connection; `since` is when it began to wait.

    `MOST_SECONDS` limits its wait from `limited_from` on, which is infinite while the database is unavailable.
    """

    owner: object
    since: float = field(default_factory=time.monotonic)
    interrupt: Interrupt | None = None
    interrupting: "asyncio.Task[None] | None" = None
    limited_from: float = 0.0
    future: "asyncio.Future[Connection]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def fail(self, error: Exception) -> None:
        """End its waiting with an error."""
        if not self.future.done():
            self.future.set_exception(error.with_traceback(None))  # whose frames would refer to the waiter

    def hand(self, connection: "Connection") -> bool:
        """Hand it a connection, and return True; or False if it does not wait any more, or its client has left."""
        try:
            if self.interrupt:
                self.interrupt.check()
        except Exception as error:  # noqa: BLE001  # any exception of the interrupt is passed to the waiter
            self.fail(error)
        if self.future.done():
            return False
        connection.owner = self.owner
        self.future.set_result(connection)
        return True


class Waiting:
    """A queue of waiters for each owner, and the owners in the order in which they are served next."""

    def __init__(self, refusals: Refusals, connections: int) -> None:
        self._refusals = refusals
        self._connections = connections
        self._queues: OrderedDict[object, OrderedDict[Waiter, None]] = OrderedDict()
        self._length = 0
        self._is_paused = True
        self._busy_since = self._measured_at = 0.0
        self._served = self._seconds = 0.0  # number served, and in how many seconds, with decay

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Waiter]:
        return (waiter for queue in self._queues.values() for waiter in queue)

    def has(self, owner: object) -> bool:
        """Tell whether a request of this owner waits."""
        return owner in self._queues

    def only_owner(self, now: float) -> object:
        """Return the only owner that waits, in a queue that has not been empty for `FLOOD_SECONDS`, or None."""
        if len(self._queues) != 1 or self._is_paused or now - self._busy_since < FLOOD_SECONDS:
            return None
        return next(iter(self._queues))

    def join(self, waiter: Waiter, now: float) -> None:
        """Append a waiter to its owner's queue.

        Raises `Busy` if the expected wait is too long. If there are too many waiters, the last of the longest queue is
        refused.
        """
        if self.would_refuse(waiter.owner, now):
            self._refusals.record("queue")
            raise Busy
        self._append(waiter, now)
        if self._length > MAX_WAITING:
            longest = max(self._queues.values(), key=len)
            self.refuse(next(reversed(longest)))

    def would_refuse(self, owner: object, now: float) -> bool:
        """Tell whether the owner's next request is expected to wait too long."""
        return not self._is_paused and self._expected(owner) > self._bound(now)

    def _expected(self, owner: object) -> float:
        """Return the expected wait of the owner's next request: before each one, every other owner is served once.

        Every connection counts as about to be released, so that a short pause of the database refuses nobody.
        """
        turns = len(self._queues.get(owner, ())) + 1
        return min(turns * len(self._queues), self._length + 1) * self._seconds / (self._served + self._connections)

    def _bound(self, now: float) -> float:
        """Return the limit of the expected wait: none until the rate has been measured."""
        busy = now - self._busy_since
        if busy < RATE_SECONDS:
            return inf
        return TARGET_SECONDS if busy >= BURST_SECONDS else BURST_TARGET_SECONDS

    def join_with_priority(self, waiter: Waiter, now: float) -> None:
        """Append a waiter to its owner's queue, and serve that owner next."""
        self._append(waiter, now)
        self._queues.move_to_end(waiter.owner, last=False)

    def _append(self, waiter: Waiter, now: float) -> None:
        if not self._length:
            self._reset_rate(now)
        waiter.limited_from = inf if self._is_paused else now
        self._queues.setdefault(waiter.owner, OrderedDict())[waiter] = None
        self._length += 1

    def _reset_rate(self, now: float) -> None:
        self._busy_since = self._measured_at = now
        self._served = self._seconds = 0.0

    def leave(self, waiter: Waiter) -> None:
        """Remove a waiter, if it is in the queue."""
        queue = self._queues.get(waiter.owner)
        if queue and waiter in queue:
            del queue[waiter]
            self._length -= 1
            if not queue:
                del self._queues[waiter.owner]

    def first(self) -> Waiter:
        """Return the first waiter of the owner to serve next."""
        return next(iter(next(iter(self._queues.values()))))

    def pop(self) -> Waiter:
        """Remove and return the first waiter of the owner to serve next, as served."""
        waiter = self.first()
        self.leave(waiter)
        if self.has(waiter.owner):
            self._queues.move_to_end(waiter.owner)
        self._served += 1
        return waiter

    def refuse(self, waiter: Waiter) -> None:
        """Remove a waiter and fail it with `Busy`."""
        self.leave(waiter)
        self._refusals.record("queue")
        waiter.fail(Busy())

    def expire(self, now: float) -> None:
        """Update the rate of service, and refuse the waiters that have waited too long."""
        self._seconds = (self._seconds + min(now - self._measured_at, STALL_SECONDS)) * RATE_DECAY
        self._served *= RATE_DECAY
        self._measured_at = now
        for waiter in [*self]:
            if now - waiter.limited_from >= MOST_SECONDS:
                self.refuse(waiter)

    def pause(self) -> None:
        """Stop measuring waits, because the database is unavailable."""
        self._is_paused = True
        self._limit_from(inf)

    def resume(self, now: float) -> None:
        """Limit waits again. Those of requests that are in the queue already are limited from `WOKEN_SECONDS` on."""
        if self._is_paused:
            self._is_paused = False
            self._reset_rate(now)
            self._limit_from(now + WOKEN_SECONDS)

    def _limit_from(self, moment: float) -> None:
        for waiter in self:
            waiter.limited_from = moment

    def watch(self, now: float) -> None:
        """Watch the clients of requests that have waited for some time; the request of one that disconnects leaves."""
        since = now - (WATCH_SECONDS if self._length > FEW else 0)
        for waiter in self:
            if waiter.interrupt and not waiter.interrupting and waiter.since <= since:
                waiter.interrupting = asyncio.create_task(self._watch(waiter, waiter.interrupt))

    async def _watch(self, waiter: Waiter, interrupt: Interrupt) -> None:
        try:
            await interrupt.wait()
        except Exception as error:  # noqa: BLE001  # any exception of the interrupt is passed to the waiter
            self.leave(waiter)
            waiter.fail(error)
