"""The schema's migrations, run by `todo-api migrate` or by Alembic's command."""

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy.exc import DBAPIError, PendingRollbackError

from todo_api.errors import MigrationError
from todo_api.settings import Settings

# How long a second migration waits for the first.
ADVISORY_LOCK_SECONDS = 60.0
TABLE_LOCK_SECONDS = 5.0
# How often a migration checks whether another transaction blocks it.
WATCH_SECONDS = 1.0
# Not `alembic_version`: another application's Alembic may keep its own version there, in the same database.
VERSION_TABLE = "todo_api_version"


def migrate(settings: Settings) -> list[str]:
    """Migrate the database to the newest schema, by `DATABASE_URL_UNPOOLED` if set, and return the applied revisions.

    Safe during traffic and beside another migration: a second one waits for the first and then has nothing to do. Logs
    which transactions block it. Raises `MigrationError` with one line if the database cannot be reached, refuses a
    statement, or stays locked too long.
    """
    config = Config()
    config.set_main_option("script_location", "todo_api:migrations")
    applied: list[str] = []
    config.attributes.update(settings=settings, applied=applied)
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise MigrationError(f"The database's schema is not one that this version can migrate: {error}") from error
    except DBAPIError as error:
        raise MigrationError(f"The database refused the migration: {error.driver_exception}") from error
    except PendingRollbackError as error:  # how Alembic leaves statements outside of a transaction
        raise MigrationError("The database broke the migration off. It can be run again.") from error
    except (OSError, TimeoutError) as error:
        raise MigrationError(f"The database cannot be reached for the migration: {error!r}") from error
    return applied
