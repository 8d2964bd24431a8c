import os
import subprocess
from pathlib import Path

import pytest

from tests.serving import BIN
from todo_api import cli, main

LOOKS = "it should be a PostgreSQL URL like postgresql://user:password@host/database.\n"


def run(cwd: Path, *command: str, **environment: str) -> tuple[int, str]:
    """Run a command of the project in an empty directory; return its exit code and all it said."""
    inherited = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
    ended = subprocess.run(
        [str(BIN / command[0]), *command[1:]],
        env={**inherited, **environment},
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return ended.returncode, ended.stdout


@pytest.mark.parametrize("command", [("todo-api", "migrate"), ("uvicorn", "todo_api.main:app", "--port", "0")])
@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({}, f"DATABASE_URL is not set: {LOOKS}"),
        (
            {"DATABASE_URL": "mysql://me:pa55word@host/db"},
            f"DATABASE_URL is not a PostgreSQL URL: {LOOKS}",
        ),
        (
            {"DATABASE_URL": "postgresql://me:pa55word@host/db", "POOL_SIZE": "many"},
            "POOL_SIZE cannot be read: it should be a whole number from 1 to 1000.\n",
        ),
    ],
)
def test_a_bad_setting_ends_the_process_with_a_sentence(
    tmp_path: Path, command: tuple[str, ...], environment: dict[str, str], sentence: str
) -> None:
    assert run(tmp_path, *command, **environment) == (1, sentence)


def test_a_backend_that_cannot_be_loaded_ends_the_process_with_a_sentence(tmp_path: Path) -> None:
    code, said = run(
        tmp_path,
        "uvicorn",
        "todo_api.main:app",
        DATABASE_URL="postgresql://me:pa55word@host/db",
        AUTH_BACKEND="no.such:Backend",
    )

    assert (code, said) == (
        1,
        "AUTH_BACKEND cannot be loaded from no.such:Backend: ModuleNotFoundError(\"No module named 'no'\").\n",
    )


def test_a_database_that_is_away_ends_the_migration_with_a_sentence(tmp_path: Path) -> None:
    code, said = run(tmp_path, "todo-api", "migrate", DATABASE_URL="postgresql://me:pa55word@127.0.0.1:1/db")

    assert code == 1
    assert said.startswith("The database cannot be reached for the migration: ConnectionRefusedError(")
    assert said.count("\n") == 1
    assert "pa55word" not in said


def test_a_password_that_the_database_refuses_is_not_repeated(tmp_path: Path, server: str) -> None:
    wrong = server.replace("postgres:@", "nobody:pa55word@")
    assert wrong != server

    code, said = run(tmp_path, "todo-api", "migrate", DATABASE_URL=wrong)

    assert (code, said) == (1, 'The database refused the migration: role "nobody" does not exist\n')


@pytest.mark.parametrize("arguments", [[], ["fly"], ["dev", "--host=0.0.0.0"]])
def test_an_unknown_command_is_explained(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)

    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("usage: todo-api")


def test_the_module_of_the_application_has_no_other_secrets() -> None:
    with pytest.raises(AttributeError, match="application"):
        _ = main.application
