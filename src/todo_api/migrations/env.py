"""Alembic's environment: one migrating process at a time, one transaction per migration, this service's tables only."""

import asyncio
import logging

from alembic import context
from alembic.util import CommandError
from sqlalchemy import Connection, event, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool
from sqlmodel import SQLModel

from todo_api import migrations
from todo_api.database.connecting import Connector
from todo_api.errors import MigrationError
from todo_api.models import Task
from todo_api.settings import Settings

logger = logging.getLogger("todo_api.migrations")
_APPLICATION_NAME = "todo-api-migrate"
# Arbitrary advisory-lock key, unique to this project. Transaction-level locks and settings also work through a
# transaction pooler.
_TRY_LOCK = text(f"SELECT pg_try_advisory_xact_lock({0x746F646F})")
# No idle timeout while the lock is held. Run after the SELECT, whose snapshot the connection would otherwise keep.
_NO_IDLE_TIMEOUT = text("SET LOCAL idle_in_transaction_session_timeout = 0")
# Version 1.0 stored its schema version in `alembic_version`, which may be another application's. So for its databases
# the schema version is derived from the tables.
_VERSION_OF_TABLES = text("""
    SELECT CASE WHEN EXISTS (
        SELECT FROM pg_attribute
        WHERE attrelid = conrelid AND attname = 'idempotency_request' AND NOT attisdropped
    ) THEN '0002' ELSE '0001' END
    FROM pg_constraint WHERE conrelid = to_regclass('tasks') AND conname = 'tasks_status_known'
""")
_BLOCKERS = text("""
    SELECT blocker.pid, blocker.usename, coalesce(nullif(blocker.application_name, ''), 'unnamed application')
    FROM pg_stat_activity AS migration
    CROSS JOIN unnest(pg_blocking_pids(migration.pid)) AS blocking (pid)
    JOIN pg_stat_activity AS blocker ON blocker.pid = blocking.pid
    WHERE migration.datname = current_database() AND migration.application_name = :application_name
        AND migration.wait_event_type = 'Lock'
""")


async def _acquire_lock(connection: AsyncConnection) -> None:
    """Wait for other migrations, and take the advisory lock in this connection's transaction.

    The lock has its own connection, because the migration's transaction ends where an index is built CONCURRENTLY. That
    waits for all snapshots in the database, so none may be kept while holding the lock or waiting for it.
    """
    try:
        async with asyncio.timeout(migrations.ADVISORY_LOCK_SECONDS):
            while not await connection.scalar(_TRY_LOCK):
                await connection.rollback()
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise MigrationError("Another migration of this database is still running.") from None
    await connection.execute(_NO_IDLE_TIMEOUT)


def _limit_waiting(connection: Connection) -> None:
    connection.exec_driver_sql(f"SELECT set_config('lock_timeout', '{migrations.TABLE_LOCK_SECONDS * 1000:.0f}', true)")


async def _log_blockers(engine: AsyncEngine) -> None:
    """Log each transaction that blocks the migration, once.

    The connection keeps no transaction open, because building an index would wait for its snapshot.
    """
    named: set[object] = set()
    async with engine.connect() as connection:
        while True:
            await asyncio.sleep(migrations.WATCH_SECONDS)
            blockers = await connection.execute(_BLOCKERS, {"application_name": _APPLICATION_NAME})
            for blocker in set(blockers) - named:
                named.add(blocker)
                logger.warning("The migration waits for a transaction of process %d (role %s, %s) to end.", *blocker)
            await connection.rollback()


def _migrate(connection: Connection) -> None:
    event.listen(connection, "begin", _limit_waiting)
    applied = context.config.attributes.setdefault("applied", [])
    context.configure(
        connection=connection,
        target_metadata=SQLModel.metadata,
        # Better Auth's tables share the database, including "user", even if a migration of this service created it.
        include_name=lambda name, kind, _: kind != "table" or name == Task.__tablename__,
        include_object=lambda _object, name, kind, _reflected, _compared: kind != "table" or name == Task.__tablename__,
        autogenerate_plugins=["alembic.autogenerate.*", "alembic.ext.checkconstraint_byname"],
        compare_server_default=True,
        transaction_per_migration=True,
        version_table=migrations.VERSION_TABLE,
        on_version_apply=lambda step, **_: applied.append(step.up_revision_id),
    )
    if connection.scalar(text("SHOW server_encoding")) != "UTF8":
        raise MigrationError("The database cannot hold every text: its encoding has to be UTF8.")
    if not context.get_context().get_current_heads() and (version := connection.scalar(_VERSION_OF_TABLES)):
        context.get_context().stamp(context.script, version)
        connection.commit()
    with context.begin_transaction():
        context.run_migrations()


async def _run() -> None:
    settings: Settings = context.config.attributes.get("settings") or Settings.read()
    url = (settings.database_url_unpooled or settings.database_url).get_secret_value()
    url += f"{'&' if '?' in url else '?'}application_name={_APPLICATION_NAME}"  # of two, the last one counts
    engine = create_async_engine(
        "postgresql+asyncpg://",
        async_creator=Connector(url).connect,
        poolclass=NullPool,
        isolation_level="READ COMMITTED",  # a stricter level would keep one snapshot for the whole transaction
    )
    async with engine.connect() as lock_holder, engine.connect() as connection:
        await _acquire_lock(lock_holder)
        watching = asyncio.create_task(_log_blockers(engine))
        try:
            await connection.run_sync(_migrate)
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)


if context.is_offline_mode():
    raise CommandError("Migrations look at the database before they change it: without one there is no SQL to print.")
asyncio.run(_run())
