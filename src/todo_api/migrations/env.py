"""Alembic's environment: one migrating process at a time, one transaction per migration, this service's tables only."""

import asyncio

import asyncpg
from alembic import context
from sqlalchemy import Connection, event, text
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.pool import NullPool
from sqlmodel import SQLModel

from todo_api import migrations
from todo_api.database_url import connect_arguments
from todo_api.errors import MigrationError
from todo_api.models import Task
from todo_api.settings import Settings

# Any number no other program locks by. Transaction-level locks and settings also hold through a transaction pooler.
_TRY_LOCK = text(f"SELECT pg_try_advisory_xact_lock({0x746F646F})")
# Executed last while the lock is held: after a SELECT, the connection would keep its snapshot until the next statement.
_STAY = text("SET LOCAL idle_in_transaction_session_timeout = 0")


async def _take_turn(connection: AsyncConnection) -> None:
    """Wait for other migrations, and take the advisory lock in this connection's transaction.

    The lock has its own connection, because the migration's transaction ends where an index is built CONCURRENTLY. That
    waits for all snapshots in the database, so none may be kept while holding the lock or waiting for it.
    """
    try:
        async with asyncio.timeout(migrations.TURN_SECONDS):
            while not await connection.scalar(_TRY_LOCK):
                await connection.rollback()
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise MigrationError("Another migration of this database is still running.") from None
    await connection.execute(_STAY)


def _limit_waiting(connection: Connection) -> None:
    connection.exec_driver_sql(f"SELECT set_config('lock_timeout', '{migrations.LOCK_SECONDS * 1000:.0f}', true)")


def _migrate(connection: Connection) -> None:
    event.listen(connection, "begin", _limit_waiting)
    context.configure(
        connection=connection,
        target_metadata=SQLModel.metadata,
        # Better Auth's tables share the database, including "user", even if a migration of this service created it.
        include_name=lambda name, kind, _: kind != "table" or name == Task.__tablename__,
        include_object=lambda _object, name, kind, _reflected, _compared: kind != "table" or name == Task.__tablename__,
        autogenerate_plugins=["alembic.autogenerate.*", "alembic.ext.checkconstraint_byname"],
        compare_server_default=True,
        transaction_per_migration=True,
    )
    if connection.scalar(text("SHOW server_encoding")) != "UTF8":
        raise MigrationError("The database cannot hold every text: its encoding has to be UTF8.")
    with context.begin_transaction():
        context.run_migrations()


async def _run() -> None:
    settings: Settings = context.config.attributes.get("settings") or Settings.read()
    url = settings.database_url_unpooled or settings.database_url

    async def connect() -> asyncpg.Connection:
        return await asyncpg.connect(**connect_arguments(url.get_secret_value()))

    engine = create_async_engine(
        "postgresql+asyncpg://",
        async_creator=connect,
        poolclass=NullPool,
        isolation_level="READ COMMITTED",  # a stricter level would keep one snapshot for the whole transaction
    )
    async with engine.connect() as turn, engine.connect() as connection:
        await _take_turn(turn)
        await connection.run_sync(_migrate)


asyncio.run(_run())
