"""Settings from the environment, validated once at start."""

import re
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, Field, SecretStr, StringConstraints, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from todo_api.database_url import connect_arguments
from todo_api.errors import SettingsError

EXAMPLE_URL = "postgresql://user:password@host/database"
# The expected form of each variable, for the error message.
_EXPECTED = {
    "DATABASE_URL": f"a PostgreSQL URL like {EXAMPLE_URL}",
    "DATABASE_URL_UNPOOLED": f"a PostgreSQL URL like {EXAMPLE_URL}",
    "AUTH_BACKEND": "an import string like package.module:name",
    "CORS_ORIGINS": "origins like https://app.example.com, separated by commas",
    "POOL_SIZE": "a whole number from 1 to 1000",
    "WAKE_SECONDS": "a number of seconds from 0 to 60",
    "DOCS_ENABLED": "true or false",
    "DATA_DIR": "a path to a directory",
    "PORT": "a port number from 1 to 65535",
}
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(?:\[[0-9a-f:]+\]|[a-z0-9._-]+)(?::[0-9]{1,5})?")
_DEFAULT_PORT = re.compile("https://.*:443|http://.*:80")  # which browsers omit from `Origin`


def _readable(url: SecretStr) -> SecretStr:
    connect_arguments(url.get_secret_value())
    return url


PostgresUrl = Annotated[SecretStr, AfterValidator(_readable)]


class Settings(BaseSettings):
    """The service's settings, from the environment or else from `.env` in the working directory.

    Build them with `Settings.read()`, which raises `SettingsError` with one line for the operator.
    """

    model_config = SettingsConfigDict(
        env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True, hide_input_in_errors=True
    )

    database_url: PostgresUrl
    database_url_unpooled: PostgresUrl | None = None
    auth_backend: Annotated[str, StringConstraints(pattern=r"^[\w.]+:[\w.]+$")] | None = None
    cors_origins: Annotated[tuple[str, ...], NoDecode] = ()
    pool_size: Annotated[int, Field(ge=1, le=1000)] = 10
    wake_seconds: Annotated[float, Field(ge=0, le=60)] = 10
    docs_enabled: bool = True
    data_dir: Path = Path(".data")
    port: Annotated[int, Field(ge=1, le=65535)] = 8000

    @classmethod
    def read(cls, **overrides: object) -> Self:
        """Read and validate the settings; `overrides` take precedence over the environment."""
        try:
            return cls(**overrides)  # type: ignore[arg-type]  # validated by pydantic, like those from the environment
        except (UnicodeDecodeError, OSError) as error:
            raise SettingsError(".env cannot be read: it should be a text file in UTF-8.") from error
        except ValidationError as error:
            fault = error.errors(include_url=False, include_input=False)[0]
        variable = str(fault["loc"][0]).upper()
        if fault["type"] == "missing":
            what = "is not set"
        elif fault["type"] == "value_error":
            what = str(fault["ctx"]["error"])
        else:
            what = "cannot be read"
        raise SettingsError(f"{variable} {what}: it should be {_EXPECTED[variable]}.")

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _origins(cls, value: str | tuple[str, ...]) -> tuple[str, ...]:
        origins = tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value
        if "*" in origins:
            raise ValueError("holds *, which would let every site act for a signed-in user")
        if not all(_ORIGIN.fullmatch(origin) and not _DEFAULT_PORT.fullmatch(origin) for origin in origins):
            raise ValueError("holds something that is not an origin")
        return origins
