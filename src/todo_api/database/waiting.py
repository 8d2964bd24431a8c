"""The queue of those who wait for a connection: owners take turns, and nobody joins who cannot be served in time.

Each owner has a queue (RFC 8290), and as with CoDel (RFC 8289) time counts and not length: the time that a newcomer can
expect to wait, at the rate at which others are served. A burst may wait longer than what keeps coming.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING, Never

from todo_api.errors import Busy
from todo_api.refusals import Refusals

if TYPE_CHECKING:
    from todo_api.database.connections import Connection

TARGET_SECONDS = 0.3  # in a queue that has not been empty for `BURST_SECONDS`
BURST_SECONDS = 1.0  # in any other
MOST_SECONDS = 1.5  # whatever was expected
WOKEN_SECONDS = 10.0  # for those who already waited while there was no database
MEASURED_SECONDS = 0.25  # before anything is expected
FORGETTING = 0.95  # of the rate at which others were served, at each look at it
MAX_WAITING = 1000

# Raises when the client has left.
Interrupt = Callable[[], Awaitable[Never]]


@dataclass(eq=False)
class Waiter:
    """A statement without a connection; `since` is when its request began to wait, on the loop's clock.

    Its time in the queue counts from the moment `counts_from`.
    """

    owner: object
    since: float
    interrupt: Interrupt | None = None
    interrupting: "asyncio.Task[None] | None" = None
    counts_from: float = 0.0
    future: "asyncio.Future[Connection]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def fail(self, error: Exception) -> None:
        """Tell it that there will be no connection."""
        if not self.future.done():
            self.future.set_exception(error)


class Waiting:
    """A queue of waiters for each owner; the owners in the order of their turns."""

    def __init__(self, refusals: Refusals) -> None:
        self._refusals = refusals
        self._queues: OrderedDict[object, OrderedDict[Waiter, None]] = OrderedDict()
        self._length = 0
        self._is_paused = True
        self._busy_since = self._measured_at = 0.0
        self._served = self._seconds = 0.0  # how many in how long, lately

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Waiter]:
        return (waiter for queue in self._queues.values() for waiter in queue)

    def join(self, waiter: Waiter, now: float) -> None:
        """Wait behind the owner's other waiters.

        Raises `Busy` if that is expected to take too long. In a full queue, the last waiter of the longest is refused.
        """
        if not self._is_paused and self._expected(waiter.owner) > self._patience(now):
            self._refusals.count("queue")
            raise Busy
        self._append(waiter, now)
        if self._length > MAX_WAITING:
            longest = max(self._queues.values(), key=len)
            self.refuse(next(reversed(longest)))

    def _expected(self, owner: object) -> float:
        """Tell how long a newcomer of this owner would wait: each of the owner's turns is a turn of all others too."""
        turns = len(self._queues.get(owner, ())) + 1
        return turns * len(self._queues) * self._seconds / (self._served + 1)

    def _patience(self, now: float) -> float:
        busy = now - self._busy_since
        if busy < MEASURED_SECONDS:
            return inf
        return TARGET_SECONDS if busy >= BURST_SECONDS else BURST_SECONDS

    def join_first(self, waiter: Waiter, now: float) -> None:
        """Wait before everybody else."""
        self._append(waiter, now)
        self._queues.move_to_end(waiter.owner, last=False)

    def _append(self, waiter: Waiter, now: float) -> None:
        if not self._length:
            self._begin(now)
        waiter.counts_from = inf if self._is_paused else now
        self._queues.setdefault(waiter.owner, OrderedDict())[waiter] = None
        self._length += 1

    def _begin(self, now: float) -> None:
        self._busy_since = self._measured_at = now
        self._served = self._seconds = 0.0

    def leave(self, waiter: Waiter) -> None:
        """Wait no longer, if it does."""
        queue = self._queues.get(waiter.owner)
        if queue and waiter in queue:
            del queue[waiter]
            self._length -= 1
            if not queue:
                del self._queues[waiter.owner]

    def next(self) -> Waiter:
        """Take the first waiter of the owner whose turn it is out of the queue."""
        owner, queue = next(iter(self._queues.items()))
        waiter = next(iter(queue))
        self.leave(waiter)
        if queue:
            self._queues.move_to_end(owner)
        self._served += 1
        return waiter

    def refuse(self, waiter: Waiter) -> None:
        """Tell a waiter that there is more to do than can be done."""
        self.leave(waiter)
        self._refusals.count("queue")
        waiter.fail(Busy())

    def look(self, now: float) -> None:
        """Measure how fast others are served, and refuse those who have waited too long."""
        self._seconds = (self._seconds + now - self._measured_at) * FORGETTING
        self._served *= FORGETTING
        self._measured_at = now
        for waiter in [*self]:
            if now - waiter.counts_from >= MOST_SECONDS:
                self.refuse(waiter)

    def pause(self) -> None:
        """Count no time from now on: there is no database to wait for a turn at."""
        self._is_paused = True
        self._count_from(inf)

    def resume(self, now: float) -> None:
        """Count time from now on, and none of those who waited for the database, for `WOKEN_SECONDS`."""
        if self._is_paused:
            self._is_paused = False
            self._begin(now)
            self._count_from(now + WOKEN_SECONDS)

    def _count_from(self, moment: float) -> None:
        for waiter in self:
            waiter.counts_from = moment

    def watch(self) -> None:
        """Look out for the clients of those who wait: one that leaves takes its request out of the queue."""
        for waiter in self:
            if waiter.interrupt and not waiter.interrupting:
                waiter.interrupting = asyncio.create_task(self._watch(waiter, waiter.interrupt))

    async def _watch(self, waiter: Waiter, interrupt: Interrupt) -> None:
        try:
            await interrupt()
        except Exception as error:  # noqa: BLE001  # whatever the interrupt raises goes to the waiter
            self.leave(waiter)
            waiter.fail(error)
