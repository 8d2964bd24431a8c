"""The `todo-api` command."""

import argparse
import sys
from importlib.metadata import version

from todo_api.errors import MigrationError, SettingsError


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code; if it fails, print one line and return 1.

    An interrupted migration returns 130.
    """
    parser = argparse.ArgumentParser(prog="todo-api", description="Personal task lists over HTTP.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('todo-api')}")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("migrate", help="bring the database up to the newest schema")
    commands.add_parser("dev", help="serve on loopback with an embedded database; for development only")
    command = parser.parse_args(arguments).command
    try:
        if command == "migrate":
            _migrate()
        else:
            _develop()
    except (SettingsError, MigrationError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # Ctrl-C is how the development server is stopped, but leaves a migration undone
        return 130 if command == "migrate" else 0
    return 0


# Imported only by the command that needs it: the embedded database is not installed in production.
def _migrate() -> None:
    from todo_api.migrations import migrate
    from todo_api.settings import Settings

    applied = migrate(Settings.read())
    print(f"Applied {', '.join(applied)}." if applied else "The schema is up to date.")


def _develop() -> None:
    from todo_api.dev import serve

    serve()
