"""The pool: it hands out connections, opens more, and closes broken, old and unresponsive ones."""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress

import asyncpg
from asyncpg.prepared_stmt import PreparedStatement

from todo_api.database.connecting import CONNECT_ERRORS, CONNECT_SECONDS, Connector
from todo_api.database.failures import Meaning, of_statement, while_connecting
from todo_api.database.query import Query
from todo_api.database.waiting import Waiter, Waiting
from todo_api.errors import DatabaseUnavailable
from todo_api.refusals import Refusals

logger = logging.getLogger(__name__)

STATEMENT_SECONDS = 8.0  # timeout of a statement, which is then cancelled
CANCEL_SECONDS = 2.0  # timeout of cancelling it
TICK_SECONDS = 0.02  # interval of checking the waiting requests
IDLE_SECONDS = 1.0  # a connection that was idle for longer is probed before use
PROBE_SECONDS = 0.5
MAX_AGE_SECONDS = 600.0  # connections are replaced at about this age: the host name may resolve to another server
MIN_AGE_SECONDS = 1.0  # a younger connection is not replaced after a failover
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 1.0  # between two attempts
# Of so many open connections, one is kept idle for others while the only owner that waits uses the rest.
LEAST_TO_SPARE = 10
# What the driver raises if a statement or its connection fails.
DRIVER_ERRORS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)


def pause(tries: int) -> float:
    """Return the pause after so many attempts, with jitter, so that clients do not retry at the same moment."""
    return min(FIRST_PAUSE * 2.0**tries, LONGEST_PAUSE) * random.uniform(0.5, 1)  # noqa: S311  # no secret


class Connection:
    """An open connection, and the statements prepared on it."""

    def __init__(self, driver: asyncpg.Connection, now: float) -> None:
        self.driver = driver
        self.prepared: dict[str, PreparedStatement] = {}
        self.opened_at = now
        self.retire_at = now + MAX_AGE_SECONDS * random.uniform(0.8, 1.2)  # noqa: S311  # no secret
        self.fresh_until = now + IDLE_SECONDS
        self.owner: object = None  # of the request that uses it

    async def prepare(self, query: Query) -> PreparedStatement:
        """Prepare a statement that is not in `prepared` yet."""
        prepared = self.prepared[query.name] = await self.driver.prepare(query.text, name=query.name)
        return prepared


class Connections:
    """A pool of at most `limit` connections, opened when a request waits for one.

    Connections belong to the event loop that they were opened on. Used on another loop, the pool starts empty.
    """

    def __init__(self, connector: Connector, limit: int, wake_seconds: float) -> None:
        self.limit = limit
        self.untracked = False  # whether the pooler before the database was seen not to track prepared statements
        self._connector = connector
        self.refusals = Refusals()
        self.record_wait: Callable[[float], None] | None = None  # called with the seconds that each request waited
        self._wake_seconds = wake_seconds
        self.queries: tuple[Query, ...] = ()  # prepared on each new connection
        self._open: set[Connection] = set()
        self._reset(None)

    def _reset(self, loop: asyncio.AbstractEventLoop | None) -> None:
        self._loop = loop
        for connection in self._open:
            with suppress(RuntimeError):  # its loop is closed
                connection.driver.terminate()
        self._open = set()
        self._idle: list[Connection] = []  # last in, first out
        self._waiting = Waiting(self.refusals, self.limit)
        self._is_filling = False
        self._ticking: asyncio.TimerHandle | None = None
        self._opening = self._closing = 0
        self._failure: Exception | None = None  # of the last attempt to connect
        self._openings: set[asyncio.Task[None]] = set()
        self._closings: set[asyncio.Task[None]] = set()

    def _use_running_loop(self) -> None:
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._reset(loop)

    @property
    def used(self) -> int:
        """The number of connections in use."""
        return len(self._open) - len(self._idle)

    @property
    def idle(self) -> int:
        """The number of idle connections."""
        return len(self._idle)

    @property
    def waiting(self) -> int:
        """The number of requests that wait for a connection."""
        return len(self._waiting)

    @property
    def is_unavailable(self) -> bool:
        """Tell whether no connection is open."""
        return not self._open

    def would_refuse(self, owner: object) -> bool:
        """Tell whether `acquire` would raise `Busy` for this owner."""
        return bool(self._waiting) and self._waiting.would_refuse(owner, time.monotonic())

    def take(self, owner: object = None) -> Connection | None:
        """Return an idle connection that was used recently enough to need no probe, if there is one for this owner."""
        self._use_running_loop()
        if self._idle and not self._waiting.has(owner):
            connection = self._idle[-1]
            if time.monotonic() < connection.fresh_until and not connection.driver.is_closed():
                connection.owner = owner
                return self._idle.pop()
        return None

    def take_any(self) -> Connection | None:
        """Return any idle connection, if there is one."""
        return self.take() or (self._idle.pop() if self._idle else None)

    async def acquire(self, waiter: Waiter, *, first: bool = False) -> Connection:
        """Return a connection for this waiter, as soon as one is free.

        Raises `Busy` when too many others wait, `DatabaseUnavailable` when none can be opened for `wake_seconds`, and
        what the waiter's interrupt raises.
        """
        while self._idle and not self._waiting.has(waiter.owner):
            connection = self._idle.pop()
            if await self._is_usable(connection):
                if not waiter.hand(connection):
                    self._offer(connection)
                return waiter.future.result()
        if not self._ticking:
            self._ticking = asyncio.get_running_loop().call_later(TICK_SECONDS, self._tick)
        joined = time.monotonic()
        (self._waiting.join_with_priority if first else self._waiting.join)(waiter, joined)
        self._open_more()
        try:
            return await waiter.future
        except asyncio.CancelledError:
            if waiter.future.cancelled():
                self._waiting.leave(waiter)
            elif not waiter.future.exception():
                self._offer(waiter.future.result())
            raise
        finally:
            if waiter.interrupting:
                waiter.interrupting.cancel()
            if self.record_wait:
                self.record_wait(time.monotonic() - joined)
            del waiter  # an error refers to this frame by its traceback, and the waiter to the error

    def _tick(self) -> None:
        """Check the waiting requests periodically, while there are any."""
        self._ticking = None
        if not self._waiting:
            return
        now = time.monotonic()
        if self._open:
            self._waiting.expire(now)
            if self._idle and not self._keeps_one():
                self._stop_keeping(self._idle.pop(), now)
        else:
            # One attempt to connect is always made, even if `wake_seconds` is shorter; its failure ends the waiting.
            patience = max(self._wake_seconds, CONNECT_SECONDS)
            self._fail_waiting(self._failure or TimeoutError("no connection could be opened"), now - patience)
        self._waiting.watch(now)
        self._ticking = asyncio.get_running_loop().call_later(TICK_SECONDS, self._tick)

    def _fail_waiting(self, error: Exception, since: float) -> None:
        """Fail the requests that have waited since `since` or longer."""
        for waiter in [*self._waiting]:
            if waiter.since <= since:
                self._waiting.leave(waiter)
                unavailable = DatabaseUnavailable()
                unavailable.__cause__ = error
                waiter.fail(unavailable)

    async def _is_usable(self, connection: Connection) -> bool:
        """Tell whether an idle connection is open, young enough and, probed if necessary, alive; otherwise drop it."""
        now = time.monotonic()
        if connection.driver.is_closed() or now >= connection.retire_at:
            self.drop(connection)
            return False
        return now < connection.fresh_until or await self._answers(connection)

    async def _answers(self, connection: Connection) -> bool:
        """Probe a connection; if it is dead, drop all that have been idle as long."""
        try:
            await connection.driver.execute("SELECT 1", timeout=PROBE_SECONDS)
        except DRIVER_ERRORS:
            now = time.monotonic()
            for other in [connection, *(other for other in self._idle if other.fresh_until <= now)]:
                self.drop(other)
            self._idle = [other for other in self._idle if other in self._open]
            return False
        except BaseException:
            self.drop(connection)
            raise
        return True

    def release(self, connection: Connection) -> None:
        """Return a connection to the pool, for the next waiting request or as idle."""
        now = time.monotonic()
        if now < connection.retire_at and connection in self._open:  # otherwise it belongs to a previous event loop
            connection.fresh_until = min(now + IDLE_SECONDS, connection.retire_at)
            self._offer(connection)
        else:
            self.drop(connection)
            if self._has_room():
                self._start_opening()

    def _offer(self, connection: Connection) -> None:
        """Hand a connection to the next waiting request, or keep it idle."""
        connection.owner = None
        while self._waiting and not self._keeps_one():
            waiter = self._waiting.first()
            if waiter.hand(connection):
                self._waiting.pop()
                return
            self._waiting.leave(waiter)  # without a turn
        self._idle.append(connection)

    def _keeps_one(self) -> bool:
        """Tell whether one connection is kept from the only owner that waits, because it uses all others."""
        if len(self._open) < LEAST_TO_SPARE:
            return False
        owner = self._waiting.only_owner(time.monotonic())
        return owner is not None and sum(each.owner == owner for each in self._open) >= len(self._open) - 1

    def _stop_keeping(self, kept: Connection, now: float) -> None:
        """Hand the connection that was kept idle to a waiting request, or replace it if it would need a probe."""
        if now < kept.fresh_until and not kept.driver.is_closed():
            self._offer(kept)
        else:
            self.drop(kept)

    def drop(self, connection: Connection) -> None:
        """Close a connection at once, without notifying the server."""
        connection.driver.terminate()
        self._forget(connection)
        self._open_more()

    def cancel_and_close(self, connection: Connection) -> None:
        """In the background, cancel the statement that may still run on a connection, then close the connection."""
        self._forget(connection)
        self._closing += 1
        self._start(self._close(connection), self._closings)

    def _forget(self, connection: Connection) -> None:
        self._open.discard(connection)
        if not self._open:
            self._waiting.pause()

    async def _close(self, connection: Connection) -> None:
        try:
            with suppress(*DRIVER_ERRORS):
                await connection.driver.close(timeout=CANCEL_SECONDS)
        finally:
            self._closing -= 1
            self._open_more()

    def probe_idle_before_use(self) -> None:
        """Mark every idle connection to be probed before its next use."""
        for connection in self._idle:
            connection.fresh_until = 0

    def retire_all(self) -> None:
        """Replace every connection, but none before `MIN_AGE_SECONDS`: a new one may reach the same server."""
        for connection in self._open:
            connection.retire_at = min(connection.retire_at, connection.opened_at + MIN_AGE_SECONDS)
            connection.fresh_until = min(connection.fresh_until, connection.retire_at)

    async def fill(self, queries: Iterable[Query]) -> None:
        """Open every connection and prepare the statements on it, so that no request has to.

        Raises one of `CONNECT_ERRORS` if that fails for `wake_seconds`.
        """
        self._use_running_loop()
        self.queries = tuple(queries)
        until = time.monotonic() + self._wake_seconds
        self._is_filling = True
        # One first: if the pooler does not track prepared statements, preparing them on a second connection fails.
        await self._start_opening(until)
        while self._has_room() and not self._failure:
            self._start_opening(until)
        await asyncio.gather(*self._openings)
        self._is_filling = False
        if self._open:
            self._waiting.resume(time.monotonic())
        if self._failure:
            raise self._failure

    async def connect(self) -> Connection:
        """Open a connection outside of the pool; raise one of `CONNECT_ERRORS`."""
        driver = await self._connector.connect(statement_seconds=STATEMENT_SECONDS)
        return Connection(driver, time.monotonic())

    def _has_room(self) -> bool:
        return len(self._open) + self._opening + self._closing < self.limit

    def _open_more(self) -> None:
        """Open connections for waiting requests; one at a time while that fails."""
        while self._has_room() and self._opening < len(self._waiting) and not (self._failure and self._opening):
            self._start_opening()

    def _start_opening(self, until: float = 0) -> "asyncio.Task[None]":
        self._opening += 1
        return self._start(self._open_one(until), self._openings)

    def _start(self, work: Coroutine[None, None, None], tasks: "set[asyncio.Task[None]]") -> "asyncio.Task[None]":
        task = asyncio.create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        return task

    async def _open_one(self, until: float) -> None:
        """Open a connection, and retry until `until` and for as long as a request waits."""
        tries = 0
        try:
            while True:
                try:
                    connection = await self._connect_and_prepare()
                    break
                except CONNECT_ERRORS as error:
                    self._note_failure(error)
                    is_last = self._opening == 1
                    may_pass = self._open or while_connecting(error) is Meaning.AWAY
                    if not (is_last and may_pass and (self._waiting or time.monotonic() < until)):
                        return
                await asyncio.sleep(pause(tries))
                tries += 1
            self._failure = None
            self._open.add(connection)
            if not self._is_filling:
                self._waiting.resume(time.monotonic())
            self._offer(connection)
        finally:
            self._opening -= 1
        self._open_more()

    async def _connect_and_prepare(self) -> Connection:
        connection = await self.connect()
        try:
            for query in self.queries:
                if self._waiting:
                    break
                await connection.prepare(query)
            else:
                # Preparing opens a transaction, with its locks, which only executing a statement ends.
                await connection.driver.execute("SELECT 1")
        except BaseException:
            connection.driver.terminate()
            raise
        return connection

    def _note_failure(self, error: Exception) -> None:
        """Fail the requests that have waited long enough, or all of them if waiting does not help."""
        if of_statement(error) is Meaning.UNTRACKED:
            self.note_untracked()
        if self._open:
            if self._failure is None:
                logger.warning("no more connections can be opened than these %d: %r", len(self._open), error)
            self._failure = error
            return
        self._failure = error
        lasting = while_connecting(error) is Meaning.LASTING
        self._fail_waiting(error, time.monotonic() - (0 if lasting else self._wake_seconds))

    def note_untracked(self) -> None:
        """Log, once, that the pooler before the database does not track prepared statements."""
        if not self.untracked:
            logger.error(
                "the pooler before the database does not track prepared statements: set max_prepared_statements "
                "(PgBouncer 1.21 or later), or connect without a pooler"
            )
        self.untracked = True

    async def close(self) -> None:
        """Close every connection; wait only for statements that are being cancelled, at most `CANCEL_SECONDS`."""
        if asyncio.get_running_loop() is self._loop:
            for opening in self._openings:
                opening.cancel()
            await asyncio.gather(*self._openings, *self._closings, return_exceptions=True)
        self._reset(None)
