"""Those who wait for a connection: first come, first served."""

import asyncio
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from todo_api.errors import DatabaseUnavailable

if TYPE_CHECKING:
    from todo_api.database.connections import Connection


@dataclass(eq=False)
class Waiter:
    """A statement without a connection; `since` is when its request began to wait, on the loop's clock."""

    since: float
    future: "asyncio.Future[Connection]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def fail(self, cause: Exception) -> None:
        """Tell it that there will be no connection."""
        unavailable = DatabaseUnavailable()
        unavailable.__cause__ = cause
        self.future.set_exception(unavailable)


class Waiting:
    """The queue of waiters."""

    def __init__(self) -> None:
        self._waiters: deque[Waiter] = deque()

    def __len__(self) -> int:
        return len(self._waiters)

    def __iter__(self) -> Iterator[Waiter]:
        return iter(self._waiters)

    def join(self, waiter: Waiter, *, first: bool) -> None:
        """Stand at the end of the queue, or before everybody else."""
        if first:
            self._waiters.appendleft(waiter)
        else:
            self._waiters.append(waiter)

    def leave(self, waiter: Waiter) -> None:
        """Wait no longer."""
        self._waiters.remove(waiter)

    def next(self) -> Waiter:
        """Take the one who is served next out of the queue."""
        return self._waiters.popleft()
