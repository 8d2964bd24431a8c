import os
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.support.serving import BIN
from todo_api import cli, main, migrations

LOOKS = "it should be a PostgreSQL URL like postgresql://user:password@host/database.\n"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("command", [("todo-api", "migrate"), ("uvicorn", "todo_api.main:app")])
def test_invalid_setting_aborts_the_start(command: tuple[str, ...]) -> None:
    environment = {**os.environ, "DATABASE_URL": "mysql://me:pa55word@host/db"}

    ended = subprocess.run(
        [str(BIN / command[0]), *command[1:]], env=environment, capture_output=True, text=True, check=False
    )

    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == f"DATABASE_URL is not a PostgreSQL URL: {LOOKS}"


def test_missing_database_url_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["migrate"]) == 1
    assert capsys.readouterr().err == f"DATABASE_URL is not set: {LOOKS}"


def test_unloadable_backend_aborts_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://me:pa55word@host/db")
    monkeypatch.setenv("AUTH_BACKEND", "no.such:Backend")

    # As an ASGI server reads it. With a string in SystemExit, Python prints the string and exits with 1.
    with pytest.raises(SystemExit) as ended:
        _ = main.app

    sentence = "AUTH_BACKEND cannot be loaded from no.such:Backend: ModuleNotFoundError(\"No module named 'no'\")."
    assert ended.value.code == sentence


def test_migrate_without_database_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://me:pa55word@127.0.0.1:1/db")

    assert cli.main(["migrate"]) == 1

    said = capsys.readouterr().err
    assert said.startswith("The database cannot be reached for the migration: ConnectionRefusedError(")
    assert said.count("\n") == 1
    assert "pa55word" not in said


def test_refused_password_is_not_printed(
    server: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = server.replace("postgres:@", "nobody:pa55word@")
    assert wrong != server
    monkeypatch.setenv("DATABASE_URL", wrong)

    assert cli.main(["migrate"]) == 1

    assert capsys.readouterr().err == 'The database refused the migration: role "nobody" does not exist\n'


@pytest.mark.parametrize("arguments", [[], ["fly"], ["dev", "--host=0.0.0.0"]])
def test_unknown_command_prints_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)

    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("usage: todo-api")


def test_main_app_is_created_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://me:pa55word@host/db")
    try:
        assert main.app is main.app
    finally:
        del main.app


def test_main_has_no_other_lazy_attribute() -> None:
    with pytest.raises(AttributeError, match="application"):
        _ = main.application


def test_version_option_prints_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])

    assert ended.value.code == 0
    assert capsys.readouterr().out == f"todo-api {version('todo-api')}\n"


def test_migrate_prints_the_applied_revisions(
    empty_database: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", empty_database)
    revisions = sorted(path.name[:4] for path in (Path(migrations.__file__).parent / "versions").glob("*.py"))

    for said in (f"Applied {', '.join(revisions)}.\n", "The schema is up to date.\n"):
        assert cli.main(["migrate"]) == 0
        assert capsys.readouterr() == (said, "")
