"""Running statements, and handling their failures."""

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress

import asyncpg
from sqlalchemy import ClauseElement

from todo_api.database.connecting import CONNECT_ERRORS, Connector
from todo_api.database.connections import DRIVER_ERRORS, Connection, Connections, pause
from todo_api.database.failures import Meaning, of_statement
from todo_api.database.query import Query, as_query
from todo_api.database.waiting import Interrupt, Waiter
from todo_api.errors import Busy, DatabaseUnavailable, Unauthorized
from todo_api.refusals import Refusals
from todo_api.settings import Settings

logger = logging.getLogger(__name__)

READY_SECONDS = 1.5  # timeout of a readiness check
IDLE_CHECK_SECONDS = 0.5  # part of that for an idle connection, which may be dead
REPLACE_SECONDS = 1.0  # time to retry on another connection, even if `wake_seconds` is shorter
TRIES = 8  # retries of a statement that was rolled back, or refused by a server that has become read-only
# A pooler that tracks prepared statements gives them other names in the server. Prepared under this name, the statement
# finds out, whichever of the pooler's connections it runs on.
_TRACKING_NAME = "todo_api_tracking"
_IS_TRACKED = f"SELECT NOT EXISTS (SELECT FROM pg_prepared_statements WHERE name = '{_TRACKING_NAME}')"  # noqa: S608  # a constant


class Database:
    """A pool of at most `pool_size` connections, each statement its own transaction.

    Nothing connects before the first statement.
    """

    def __init__(self, settings: Settings) -> None:
        self.pool_size = settings.pool_size
        self._wake_seconds = settings.wake_seconds
        connector = Connector(settings.database_url.get_secret_value())
        self._connections = Connections(connector, settings.pool_size, settings.wake_seconds)

    @property
    def refusals(self) -> Refusals:
        """The number of requests refused because of overload."""
        return self._connections.refusals

    @property
    def is_unavailable(self) -> bool:
        """Tell whether no connection is open, so that requests wait for the database."""
        return self._connections.is_unavailable

    def would_refuse(self, owner: str) -> bool:
        """Tell whether a statement of this owner would have to wait too long for a connection."""
        return self._connections.would_refuse(owner)

    async def run(
        self, statement: ClauseElement | Query, parameters: Mapping[str, object], interrupt: Interrupt | None = None
    ) -> str | None:
        """Run one statement in one round trip and return the only column of its first row, or None without a row.

        A database that is away is waited for, at most `wake_seconds`. A write is sent a second time only where the
        first is known not to have been applied; a read is. Owners take turns. What `interrupt` raises, when the
        client has left, is raised instead of waiting for a connection and of running the statement.

        Raises `Busy` when more statements wait than can run in time, `DatabaseUnavailable` when the database does not
        answer in time or nobody knows whether a write was applied, `Unauthorized` when the statement makes a task for
        an owner without an account, and what the driver raised where the statement itself is at fault.
        """
        query = as_query(statement)
        arguments = query.arguments(parameters)
        since = time.monotonic()
        tries = 0
        owner = parameters.get("owner")
        while True:
            if interrupt:
                interrupt.check()
            connection = self._connections.take(owner)
            if connection is None:
                connection = await self._connections.acquire(Waiter(owner, since, interrupt))
            sent = False
            try:
                prepared = connection.prepared.get(query.name) or await connection.prepare(query)
                sent = True
                answer: str | None = await prepared.fetchval(*arguments)
            except DRIVER_ERRORS as error:
                meaning = self._release(connection, error, sent=sent)
                if meaning is Meaning.OWN:
                    raise
                if not self._runs_again(meaning, since, tries, is_read=query.is_read):
                    raise (Unauthorized if meaning is Meaning.NO_ACCOUNT else DatabaseUnavailable) from error
            except BaseException:
                self._connections.cancel_and_close(connection)
                raise
            else:
                self._connections.release(connection)
                return answer
            await asyncio.sleep(pause(tries))
            tries += 1

    def _release(self, connection: Connection, error: Exception, *, sent: bool) -> Meaning:
        """Release, replace or close the connection of a failed statement, and classify the error."""
        meaning = of_statement(error)
        if isinstance(error, OSError):  # no answer in time: a slow statement, or a dead network
            self._connections.probe_idle_before_use()
            self._connections.cancel_and_close(connection)
        elif connection.driver.is_closed() or not isinstance(error, asyncpg.PostgresError):
            self._connections.probe_idle_before_use()
            self._connections.drop(connection)
        elif meaning is Meaning.UNTRACKED:
            self._connections.note_untracked()
            self._connections.drop(connection)
        else:
            if meaning is Meaning.READ_ONLY:
                self._connections.retire_all()
            error.detail = None  # it contains whole rows, and the error is logged
            self._connections.release(connection)
        return Meaning.NOT_RUN if meaning is Meaning.UNKNOWN and not sent else meaning

    def _runs_again(self, meaning: Meaning, since: float, tries: int, *, is_read: bool) -> bool:
        in_time = time.monotonic() < since + max(self._wake_seconds, REPLACE_SECONDS)
        if meaning in (Meaning.ROLLED_BACK, Meaning.READ_ONLY):
            return in_time and tries < TRIES
        return in_time and (meaning is Meaning.NOT_RUN or (meaning is Meaning.UNKNOWN and is_read))

    async def check(self, statement: ClauseElement | Query) -> None:
        """Run a statement without queueing behind requests; raise `DatabaseUnavailable` unless it is answered in time.

        Takes less than 2 seconds in any case.
        """
        try:
            async with asyncio.timeout(READY_SECONDS):
                await self._check(as_query(statement))
        except (*CONNECT_ERRORS, Busy) as error:
            if of_statement(error) is Meaning.UNTRACKED:
                self._connections.note_untracked()
            raise DatabaseUnavailable from error

    async def _check(self, query: Query) -> None:
        connections = self._connections
        if not connections.untracked and (idle := connections.take_any()):
            with suppress(*CONNECT_ERRORS):  # the connection may be dead while the database is not
                async with asyncio.timeout(IDLE_CHECK_SECONDS):
                    await self._run_check(idle, query)
                return
        try:
            connection = await connections.connect()
        except CONNECT_ERRORS:
            if not connections.used:
                raise
            # The server may allow no more connections than are in use, so use the next one that is released.
            await self._run_check(await connections.acquire(Waiter(None), first=True), query)
            return
        try:
            if connections.untracked:
                tracking = await connection.driver.prepare(_IS_TRACKED, name=_TRACKING_NAME)
                if not await tracking.fetchval():
                    raise ConnectionError("the pooler still tracks no prepared statements")
                connections.untracked = False
            prepared = await connection.prepare(query)
            await prepared.fetchval(*query.arguments({}))
        finally:
            connection.driver.terminate()

    async def _run_check(self, connection: Connection, query: Query) -> None:
        try:
            prepared = connection.prepared.get(query.name) or await connection.prepare(query)
            await prepared.fetchval(*query.arguments({}))
        except DRIVER_ERRORS as error:
            self._release(connection, error, sent=True)
            raise
        except BaseException:
            self._connections.probe_idle_before_use()
            self._connections.cancel_and_close(connection)
            raise
        self._connections.release(connection)

    async def warm(self, statements: Iterable[ClauseElement | Query]) -> None:
        """Open every connection and prepare the statements on it, so that no request has to; log a failure."""
        try:
            await self._connections.fill(as_query(statement) for statement in statements)
        except CONNECT_ERRORS as error:
            logger.warning("not every connection is warm: %r", error)

    async def close(self) -> None:
        """Close every connection; wait only for statements that are being cancelled, at most 2 seconds."""
        await self._connections.close()
