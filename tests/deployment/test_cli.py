import os
import subprocess
from pathlib import Path

import pytest

from tests.support.serving import BIN
from todo_api import cli, main

LOOKS = "it should be a PostgreSQL URL like postgresql://user:password@host/database.\n"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("command", [("todo-api", "migrate"), ("uvicorn", "todo_api.main:app")])
def test_a_bad_setting_ends_the_process_with_a_sentence(command: tuple[str, ...]) -> None:
    environment = {**os.environ, "DATABASE_URL": "mysql://me:pa55word@host/db"}

    ended = subprocess.run(
        [str(BIN / command[0]), *command[1:]], env=environment, capture_output=True, text=True, check=False
    )

    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == f"DATABASE_URL is not a PostgreSQL URL: {LOOKS}"


def test_a_database_that_is_not_configured_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["migrate"]) == 1
    assert capsys.readouterr().err == f"DATABASE_URL is not set: {LOOKS}"


def test_a_backend_that_cannot_be_loaded_ends_the_process_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://me:pa55word@host/db")
    monkeypatch.setenv("AUTH_BACKEND", "no.such:Backend")

    # What an ASGI server asks the module for. Python prints a string that ends the process, and exits with 1.
    with pytest.raises(SystemExit) as ended:
        _ = main.app

    sentence = "AUTH_BACKEND cannot be loaded from no.such:Backend: ModuleNotFoundError(\"No module named 'no'\")."
    assert ended.value.code == sentence


def test_a_database_that_is_away_ends_the_migration_with_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://me:pa55word@127.0.0.1:1/db")

    assert cli.main(["migrate"]) == 1

    said = capsys.readouterr().err
    assert said.startswith("The database cannot be reached for the migration: ConnectionRefusedError(")
    assert said.count("\n") == 1
    assert "pa55word" not in said


def test_a_password_that_the_database_refuses_is_not_repeated(
    server: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = server.replace("postgres:@", "nobody:pa55word@")
    assert wrong != server
    monkeypatch.setenv("DATABASE_URL", wrong)

    assert cli.main(["migrate"]) == 1

    assert capsys.readouterr().err == 'The database refused the migration: role "nobody" does not exist\n'


@pytest.mark.parametrize("arguments", [[], ["fly"], ["dev", "--host=0.0.0.0"]])
def test_an_unknown_command_is_explained(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)

    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("usage: todo-api")


def test_the_module_of_the_application_makes_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://me:pa55word@host/db")
    try:
        assert main.app is main.app
    finally:
        del main.app


def test_the_module_of_the_application_makes_nothing_else() -> None:
    with pytest.raises(AttributeError, match="application"):
        _ = main.application
