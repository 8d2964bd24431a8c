"""The engine, its pool, the one way to run a statement, and what to do when the database goes away."""

import asyncio
import logging
import random
import re
import ssl
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar
from weakref import WeakSet

import asyncpg
from sqlalchemy import Connection, Executable, Select, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError, DisconnectionError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry
from sqlalchemy.util import await_, greenlet_spawn

from todo_api.database_url import connect_arguments
from todo_api.errors import DatabaseUnavailable, Unauthorized
from todo_api.settings import Settings

T = TypeVar("T")
logger = logging.getLogger(__name__)

CONNECT_SECONDS = 5.0
STATEMENT_SECONDS = 8.0
# SQLSTATEs of a server that is not there yet, not there any more, or full: connection, resources, operator.
_AWAY = re.compile("08(?!P01)...|53...|57P0[123]")
# A statement that lost a race in a database set to a stricter isolation than the default: nothing was applied.
_LOST_A_RACE = ("40001", "40P01")
# Neon's proxy gives every error this one code, and PgBouncer its own errors the other: there the text decides.
_CODES_OF_MANY_ERRORS = ("XX000", "08P01")
_AWAY_TEXTS = re.compile(
    "Couldn't connect to compute node|Control plane request failed(?!: )|Too many connections|"
    "Failed to acquire permit|Authentication timed out|Internal error|remaining connection slots|"
    "no more connections allowed|query_wait_timeout|server login has been failing|server conn crashed|"
    "the database system is|terminating connection|early eof",
    re.IGNORECASE,
)
# A pooler that says so had no server to run the statement on.
_NEVER_RAN = re.compile("query_wait_timeout|server login has been failing|no more connections allowed")


class _Lost(Exception):
    """There was no connection to be had, or it broke; `__cause__` says why."""

    def __init__(self, *, sent: bool, may_pass: bool) -> None:
        self.sent = sent
        self.may_pass = may_pass


class Database:
    """A pool of at most `pool_size` connections, each statement its own transaction.

    Nothing connects before the first statement.
    """

    def __init__(self, settings: Settings) -> None:
        arguments = connect_arguments(settings.database_url.get_secret_value())

        async def connect() -> asyncpg.Connection:
            return await asyncpg.connect(**arguments, timeout=CONNECT_SECONDS, command_timeout=STATEMENT_SECONDS)

        self._engine = create_async_engine(
            "postgresql+asyncpg://",
            async_creator=connect,
            isolation_level="AUTOCOMMIT",  # one round trip: no BEGIN, no COMMIT
            pool_size=settings.pool_size,
            max_overflow=0,  # overflow connections would be opened and closed all the time under load
            hide_parameters=True,  # error messages reach the log
        )
        self._idle: WeakSet[asyncpg.Connection] = WeakSet()
        event.listen(self._engine.sync_engine, "checkin", self._rest)
        event.listen(self._engine.sync_engine, "checkout", self._take)
        event.listen(self._engine.sync_engine, "handle_error", self._notice_silence)
        # The pool wakes its waiters in no order; this serves them first come, first served.
        self._turns = asyncio.Semaphore(settings.pool_size)
        self._pool_size = settings.pool_size
        self._wake_seconds = settings.wake_seconds

    async def run(self, statement: Executable, parameters: Mapping[str, object], *, repeatable: bool) -> str | None:
        """Run one statement in one round trip and return the only column of its first row, or None without a row.

        While there is no connection to be had, wait for one, at most `wake_seconds`. Where it breaks after the
        statement was sent, run only what is `repeatable` again: it may have been applied.

        Raises `DatabaseUnavailable` when the database does not answer in time, and `Unauthorized` when the statement
        makes a task for an owner who has no account.
        """
        return await self._connected(lambda connection: connection.scalar(statement, parameters), repeatable=repeatable)

    async def warm(self, statements: Iterable[Select[Any]]) -> None:
        """Open every connection and prepare the statements on it, so that no request has to."""
        texts = [str(statement.compile(dialect=self._engine.dialect)) for statement in statements]

        def prepare(connection: Connection) -> None:
            adapted: Any = connection.connection.dbapi_connection
            for text in texts:
                # Where SQLAlchemy keeps a connection's prepared statements. Its only public way in is to run them.
                await_(adapted._prepare(text, 0))  # noqa: SLF001
            # Preparing opens a transaction, with its locks, that only a statement ends.
            connection.dialect.do_ping(adapted)

        # All at once, or the first connection would be given back and used for the next.
        turns = [self._connected(prepare, repeatable=True) for _ in range(self._pool_size)]
        for failure in await asyncio.gather(*turns, return_exceptions=True):
            if failure is not None:
                logger.warning("not every connection is warm: %r", failure.__cause__)
                break

    async def _connected(self, work: Callable[[Connection], T], *, repeatable: bool) -> T:
        """Do some work on a connection, as soon as there is one."""
        now = asyncio.get_running_loop().time
        give_up = now() + self._wake_seconds
        try:
            async with asyncio.timeout_at(give_up) as limit, self._turns:
                limit.reschedule(give_up + STATEMENT_SECONDS)
                pause = 0.05
                while True:
                    try:
                        # One greenlet for all of it: SQLAlchemy's own asynchronous connection makes one for every step.
                        return await greenlet_spawn(self._attempt, work)
                    except _Lost as lost:
                        if not lost.may_pass or (lost.sent and not repeatable) or now() + pause > give_up:
                            raise DatabaseUnavailable from lost.__cause__
                    # Scattered, so that those who wait do not come all at once.
                    await asyncio.sleep(pause * random.uniform(0.5, 1))  # noqa: S311  # no secret
                    pause = min(pause * 2, 1)
        except TimeoutError as error:
            raise DatabaseUnavailable from error

    def _attempt(self, work: Callable[[Connection], T]) -> T:
        try:
            connection = self._engine.sync_engine.connect()
        except (DBAPIError, OSError) as error:
            raise _Lost(sent=False, may_pass=_is_away(error)) from error
        with connection:
            try:
                return work(connection)
            except DBAPIError as error:
                cause = error.driver_exception
                if isinstance(cause, asyncpg.ForeignKeyViolationError):  # `tasks` has one: its owner's account
                    raise Unauthorized from error
                if error.connection_invalidated or _is_away(error):
                    never_sent = isinstance(cause, asyncpg.InterfaceError) or _NEVER_RAN.search(str(cause))
                    raise _Lost(sent=not never_sent, may_pass=True) from error
                if getattr(cause, "sqlstate", None) in _LOST_A_RACE:
                    raise _Lost(sent=False, may_pass=True) from error
                raise
            except OSError as error:  # a TimeoutError, for one
                raise _Lost(sent=True, may_pass=True) from error

    def _rest(self, _: object, record: ConnectionPoolEntry) -> None:
        if record.driver_connection is not None:  # as it is when the connection was given up
            self._idle.add(record.driver_connection)

    def _take(self, _: object, record: ConnectionPoolEntry, *__: object) -> None:
        """Have the pool replace a connection that has died in it, which asyncio knows without asking the server."""
        connection: asyncpg.Connection = record.driver_connection
        self._idle.discard(connection)
        if connection.is_closed():
            raise DisconnectionError

    def _notice_silence(self, context: ExceptionContext) -> None:
        """Have the pool replace a connection that gave no answer, and those at rest, which may be as dead."""
        if isinstance(context.original_exception, TimeoutError):
            context.is_disconnect = True
            for resting in self._idle:
                resting.terminate()  # hanging up politely would take seconds for each

    async def close(self) -> None:
        """Close every connection, without waiting for the server."""
        await self._engine.dispose()


def _is_away(error: Exception) -> bool:
    """Tell whether an error says that the database is away for the moment: neither forbidden nor misconfigured."""
    if not isinstance(error, DBAPIError):
        return not isinstance(error, ssl.SSLCertVerificationError)
    cause = error.driver_exception
    sqlstate = getattr(cause, "sqlstate", None) or ""
    if sqlstate in _CODES_OF_MANY_ERRORS:
        return _AWAY_TEXTS.search(str(cause)) is not None
    return _AWAY.fullmatch(sqlstate) is not None
