"""The engine, its pool, and the one way to run a statement."""

import asyncio
from collections.abc import Mapping

import asyncpg
from sqlalchemy import Executable
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.util import greenlet_spawn

from todo_api.database_url import connect_arguments
from todo_api.errors import DatabaseUnavailable, Unauthorized
from todo_api.settings import Settings

CONNECT_SECONDS = 10.0
STATEMENT_SECONDS = 10.0


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
        # The pool wakes its waiters in no order; this serves them first come, first served.
        self._turns = asyncio.Semaphore(settings.pool_size)

    async def run(self, statement: Executable, parameters: Mapping[str, object]) -> str | None:
        """Run one statement in one round trip and return the only column of its first row, or None without a row.

        Raises `DatabaseUnavailable` when there is no connection to be had or it breaks, and `Unauthorized` when the
        statement makes a task for an owner who has no account.
        """
        async with self._turns:
            # One greenlet for the whole statement: SQLAlchemy's asynchronous connection makes one for every step.
            return await greenlet_spawn(self._run, statement, parameters)

    def _run(self, statement: Executable, parameters: Mapping[str, object]) -> str | None:
        try:
            connection = self._engine.sync_engine.connect()
        except (DBAPIError, OSError, TimeoutError) as error:
            raise DatabaseUnavailable from error
        with connection:
            try:
                result: str | None = connection.scalar(statement, parameters)
            except DBAPIError as error:
                cause = error.driver_exception
                if isinstance(cause, asyncpg.ForeignKeyViolationError):  # `tasks` has one: its owner's account
                    raise Unauthorized from error
                if error.connection_invalidated:
                    raise DatabaseUnavailable from error
                raise
            except TimeoutError as error:
                connection.invalidate()
                raise DatabaseUnavailable from error
            return result

    async def close(self) -> None:
        """Close every connection."""
        await self._engine.dispose()
