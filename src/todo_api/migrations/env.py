"""Runs migrations for Alembic: all in one transaction, one runner at a time, only ever about this service's tables."""

import asyncio

import asyncpg
from alembic import context
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool
from sqlmodel import SQLModel

from todo_api import migrations
from todo_api.database_url import connect_arguments
from todo_api.errors import MigrationError
from todo_api.models import Task
from todo_api.settings import Settings

# Any number no other program locks by. Transaction-level locks and settings also hold through a transaction pooler.
_LOCK = 0x746F646F
_SET_LOCK_TIMEOUT = text("SELECT set_config('lock_timeout', :milliseconds, true)")


def _wait_for_locks(connection: Connection, seconds: float) -> None:
    connection.execute(_SET_LOCK_TIMEOUT, {"milliseconds": f"{seconds * 1000:.0f}"})


def _migrate(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=SQLModel.metadata,
        # Better Auth's tables share the database; "user" is theirs too, wherever it came from.
        include_name=lambda name, kind, _: kind != "table" or name == Task.__tablename__,
        include_object=lambda _object, name, kind, _reflected, _compared: kind != "table" or name == Task.__tablename__,
        autogenerate_plugins=["alembic.autogenerate.*", "alembic.ext.checkconstraint_byname"],
        compare_server_default=True,
    )
    if connection.scalar(text("SHOW server_encoding")) != "UTF8":
        raise MigrationError("The database cannot hold every text: its encoding has to be UTF8.")
    with context.begin_transaction():
        _wait_for_locks(connection, migrations.TURN_SECONDS)
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
        _wait_for_locks(connection, migrations.LOCK_SECONDS)
        context.run_migrations()


async def _run() -> None:
    settings: Settings = context.config.attributes.get("settings") or Settings.read()
    url = settings.database_url_unpooled or settings.database_url
    arguments = connect_arguments(url.get_secret_value())

    async def connect() -> asyncpg.Connection:
        return await asyncpg.connect(**arguments)

    engine = create_async_engine("postgresql+asyncpg://", async_creator=connect, poolclass=NullPool)
    async with engine.connect() as connection:
        await connection.run_sync(_migrate)


asyncio.run(_run())
