"""The connections, the one way to run a statement on them, and what to do when the database goes away."""

import asyncio
import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from functools import cache
from hashlib import sha256
from typing import TYPE_CHECKING, TypeVar, cast

import asyncpg
from asyncpg.prepared_stmt import PreparedStatement
from sqlalchemy import ClauseElement, Select, make_url
from sqlalchemy.sql import visitors

from todo_api.database_url import connect_arguments
from todo_api.errors import DatabaseUnavailable, Unauthorized
from todo_api.outages import is_away, lost_a_race, never_ran
from todo_api.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy.sql.compiler import SQLCompiler

T = TypeVar("T")
logger = logging.getLogger(__name__)

_DIALECT = make_url("postgresql+asyncpg://").get_dialect()()
CONNECT_SECONDS = 5.0
STATEMENT_SECONDS = 8.0
HANG_UP_SECONDS = 2.0


class _Lost(Exception):
    """There was no connection to be had, or it broke; `__cause__` says why."""

    def __init__(self, *, sent: bool, may_pass: bool) -> None:
        self.sent = sent
        self.may_pass = may_pass


class Query:
    """A statement as PostgreSQL takes it: its text, and its parameters in the order of their numbers.

    It is prepared as `name`, a hash of the text, so that one name means one statement in all processes behind a pooler.
    `is_read` tells a SELECT that writes and locks nothing. Only such a statement is ever sent a second time.
    """

    def __init__(self, statement: ClauseElement) -> None:
        compiled = cast("SQLCompiler", statement.compile(dialect=_DIALECT))
        self.text = str(compiled)
        self.name = f"todo_{sha256(self.text.encode()).hexdigest()[:40]}"
        self.is_read = isinstance(statement, Select) and not any(_writes(part) for part in visitors.iterate(statement))
        self._constants = compiled.params
        self._names = compiled.positiontup or []

    def arguments(self, parameters: Mapping[str, object]) -> list[object]:
        """Put the parameters in order."""
        values = {**self._constants, **parameters}
        return [values[name] for name in self._names]


def _writes(part: object) -> bool:
    return getattr(part, "is_dml", False) or getattr(part, "_for_update_arg", None) is not None


as_query = cache(Query)  # every statement is made once and kept


class Link:
    """A connection, and the statements prepared on it."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self.connection = connection
        self._prepared: dict[str, PreparedStatement] = {}

    async def prepare(self, query: Query) -> PreparedStatement:
        """Prepare a statement, once."""
        prepared = self._prepared.get(query.name)
        if prepared is None:
            prepared = self._prepared[query.name] = await self.connection.prepare(query.text, name=query.name)
        return prepared


class Database:
    """A pool of at most `pool_size` connections, each statement its own transaction.

    Nothing connects before the first statement.
    """

    def __init__(self, settings: Settings) -> None:
        self._url = settings.database_url.get_secret_value()
        self._pool_size = settings.pool_size
        self._wake_seconds = settings.wake_seconds
        self._turns = asyncio.Semaphore(settings.pool_size)  # first come, first served
        self._resting: deque[Link] = deque()

    async def run(self, statement: ClauseElement, parameters: Mapping[str, object]) -> str | None:
        """Run one statement in one round trip and return the only column of its first row, or None without a row.

        While there is no connection to be had, wait for one, at most `wake_seconds`. Where it breaks after the
        statement was sent, run only a read again: a write may have been applied, and undone since.

        Raises `DatabaseUnavailable` when the database does not answer in time, and `Unauthorized` when the statement
        makes a task for an owner who has no account.
        """
        query = as_query(statement)
        arguments = query.arguments(parameters)

        async def work(link: Link) -> str | None:
            prepared = await link.prepare(query)
            answer: str | None = await prepared.fetchval(*arguments)
            return answer

        return await self._connected(work, repeatable=query.is_read)

    async def warm(self, statements: Iterable[ClauseElement]) -> None:
        """Open every connection and prepare the statements on it, so that no request has to."""

        async def work(link: Link) -> None:
            for statement in statements:
                await link.prepare(as_query(statement))
            # Preparing opens a transaction, with its locks, that only a statement ends.
            await link.connection.execute("SELECT 1")

        # All at once, or the first connection would be given back and used for the next.
        turns = [self._connected(work, repeatable=True) for _ in range(self._pool_size)]
        for failure in await asyncio.gather(*turns, return_exceptions=True):
            if failure is not None:
                logger.warning("not every connection is warm: %r", failure.__cause__)
                break

    async def _connected(self, work: Callable[[Link], Awaitable[T]], *, repeatable: bool) -> T:
        """Do some work on a connection, as soon as there is one."""
        now = asyncio.get_running_loop().time
        give_up = now() + self._wake_seconds
        try:
            async with asyncio.timeout_at(give_up) as limit, self._turns:
                limit.reschedule(give_up + STATEMENT_SECONDS)
                pause = 0.05
                while True:
                    try:
                        return await self._attempt(work)
                    except _Lost as lost:
                        if not lost.may_pass or (lost.sent and not repeatable) or now() + pause > give_up:
                            raise DatabaseUnavailable from lost.__cause__
                    # Scattered, so that those who wait do not come all at once.
                    await asyncio.sleep(pause * random.uniform(0.5, 1))  # noqa: S311  # no secret
                    pause = min(pause * 2, 1)
        except TimeoutError as error:
            raise DatabaseUnavailable from error

    async def _attempt(self, work: Callable[[Link], Awaitable[T]]) -> T:
        link = await self._take()
        try:
            answer = await work(link)
        except asyncpg.ForeignKeyViolationError as error:  # `tasks` has one: its owner's account
            self._resting.append(link)
            raise Unauthorized from error
        except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
            if link.connection.is_closed() or is_away(error):
                link.connection.terminate()
                raise _Lost(sent=not never_ran(error), may_pass=True) from error
            self._resting.append(link)
            if lost_a_race(error):
                raise _Lost(sent=False, may_pass=True) from error
            error.detail = None  # it quotes whole rows, and what is raised here reaches the log
            raise
        except OSError as error:  # a TimeoutError, for one
            await self._fell_silent(link)
            raise _Lost(sent=True, may_pass=True) from error
        except BaseException:  # a request given up: its statement has to be cancelled first
            await _hang_up(link)
            raise
        self._resting.append(link)
        return answer

    async def _take(self) -> Link:
        """Take a connection that rests, or open one."""
        while self._resting:
            link = self._resting.popleft()
            if not link.connection.is_closed():  # which asyncio knows without asking the server
                return link
        try:
            connection = await asyncpg.connect(
                **connect_arguments(self._url),
                timeout=CONNECT_SECONDS,
                command_timeout=STATEMENT_SECONDS,
                statement_cache_size=0,
            )
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, ValueError) as error:
            raise _Lost(sent=False, may_pass=is_away(error)) from error
        return Link(connection)

    async def _fell_silent(self, link: Link) -> None:
        """Drop a connection that gave no answer, and those at rest, which may be as dead."""
        while self._resting:
            self._resting.popleft().connection.terminate()  # hanging up politely would take seconds for each
        await _hang_up(link)

    async def close(self) -> None:
        """Close every connection, without waiting for the server."""
        while self._resting:
            self._resting.popleft().connection.terminate()


async def _hang_up(link: Link) -> None:
    """Close a connection whose statement may go on: cancel that first, if the server listens."""
    with suppress(asyncpg.PostgresError, OSError):
        await link.connection.close(timeout=HANG_UP_SECONDS)
