import re
from pathlib import Path

import pytest

from tests.support.permissions import bound_by_permissions
from tests.support.postgres import settings_for
from todo_api.errors import SettingsError
from todo_api.settings import Settings

ROOT = Path(__file__).parents[2]
URL = "postgresql://user:s3cret-pa55word@host/database"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(Settings.model_config, "env_file", ".env")


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", URL)
    monkeypatch.setenv("CORS_ORIGINS", " https://a.example , http://localhost:3000,")
    monkeypatch.setenv("AUTH_BACKEND", "package.module:name")
    monkeypatch.setenv("POOL_SIZE", "3")

    settings = Settings.read()

    assert settings.database_url.get_secret_value() == URL
    assert settings.cors_origins == ("https://a.example", "http://localhost:3000")
    assert (settings.auth_backend, settings.pool_size, settings.database_url_unpooled) == (
        "package.module:name",
        3,
        None,
    )


def test_environment_takes_precedence_over_dotenv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text(f"DATABASE_URL={URL}\nPOOL_SIZE=3\nSOMEONE_ELSES=1\n")
    monkeypatch.setenv("POOL_SIZE", "4")

    assert Settings.read().database_url.get_secret_value() == URL
    assert Settings.read().pool_size == 4


@pytest.mark.parametrize(
    ("variable", "value", "sentence"),
    [
        ("DATABASE_URL", "", "DATABASE_URL is not set: it should be a PostgreSQL URL like"),
        ("DATABASE_URL", "mysql://u:s3cret-pa55word@h/d", "DATABASE_URL is not a PostgreSQL URL: it should be a"),
        ("DATABASE_URL", "s3cret-pa55word", "DATABASE_URL is not a PostgreSQL URL: it should be a"),
        ("DATABASE_URL", "postgresql://[s3cret-pa55word", "DATABASE_URL cannot be read: it should be a"),
        (
            "DATABASE_URL",
            "postgresql://u:s3cret-pa55word@h/d?sslmode=verify-full&sslrootcert=/missing.pem",
            "DATABASE_URL needs the file /missing.pem, which cannot be used (No such file or directory): it",
        ),
        ("DATABASE_URL_UNPOOLED", "x:s3cret-pa55word", "DATABASE_URL_UNPOOLED is not a PostgreSQL URL: it should be"),
        ("AUTH_BACKEND", "no import string", "AUTH_BACKEND cannot be read: it should be an import string like"),
        ("AUTH_BACKEND", "module.name", "AUTH_BACKEND cannot be read: it should be an import string like"),
        ("CORS_ORIGINS", "*", "CORS_ORIGINS holds *, which would let every site"),
        ("CORS_ORIGINS", "https://a.example,*", "CORS_ORIGINS holds *, which would let every site"),
        ("CORS_ORIGINS", "https://a.example/", "CORS_ORIGINS holds something that is not an origin: it should be"),
        ("CORS_ORIGINS", "a.example", "CORS_ORIGINS holds something that is not an origin: it should be"),
        ("CORS_ORIGINS", "https://a.example:443", "CORS_ORIGINS holds something that is not an origin: it should be"),
        ("CORS_ORIGINS", "http://a.example:80", "CORS_ORIGINS holds something that is not an origin: it should be"),
        ("CORS_ORIGINS", "null", "CORS_ORIGINS holds something that is not an origin: it should be"),
        ("POOL_SIZE", "0", "POOL_SIZE cannot be read: it should be a whole number from 1 to 1000."),
        ("POOL_SIZE", "many", "POOL_SIZE cannot be read: it should be a whole number from 1 to 1000."),
        ("WAKE_SECONDS", "soon", "WAKE_SECONDS cannot be read: it should be a number of seconds from 0 to 60."),
        ("WAKE_SECONDS", "61", "WAKE_SECONDS cannot be read: it should be a number of seconds from 0 to 60."),
        ("DOCS_ENABLED", "maybe", "DOCS_ENABLED cannot be read: it should be true or false."),
        ("PORT", "65536", "PORT cannot be read: it should be a port number from 1 to 65535."),
    ],
)
def test_invalid_value_is_one_line_without_secrets(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, sentence: str
) -> None:
    monkeypatch.setenv("DATABASE_URL", URL)
    monkeypatch.setenv(variable, value)

    with pytest.raises(SettingsError) as caught:
        Settings.read()

    assert str(caught.value).startswith(sentence)
    assert "pa55word" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_non_utf8_dotenv_is_one_line(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"DATABASE_URL=\xff")

    with pytest.raises(SettingsError, match=r"^\.env cannot be read: it should be a text file in UTF-8\.$"):
        Settings.read()


def test_unreadable_dotenv_is_one_line(tmp_path: Path) -> None:
    (tmp_path / ".env").touch(mode=0)

    with bound_by_permissions(), pytest.raises(SettingsError, match=r"^\.env cannot be read"):
        Settings.read()


def test_repr_of_settings_hides_passwords() -> None:
    assert "pa55word" not in repr(settings_for(URL, database_url_unpooled=URL))


def test_example_dotenv_documents_every_setting(tmp_path: Path) -> None:
    example = (ROOT / ".env.example").read_text()
    (tmp_path / ".env").write_text(example)

    documented = re.findall(r"(?m)^# .+\n([A-Z_]+)=|^([A-Z_]+)=", example)

    assert [first or second for first, second in documented] == [name.upper() for name in Settings.model_fields]
    assert Settings.read().auth_backend == "my_auth:Backend"
