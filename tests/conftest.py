import os
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.support.api import BearerIsIdentity, CheckedClient, Person, PersonMaker, new_account
from tests.support.citus import VARIABLE as CITUS_URL
from tests.support.citus import distributed_database
from tests.support.postgres import migrated_database, new_database, settings_for, temporary_server
from todo_api.main import create_app
from todo_api.settings import Settings

# Can be set to another server's URL, which must have the same form as the embedded one's.
SERVER = "TODO_TEST_SERVER"
_running = ExitStack()


def pytest_configure(config: pytest.Config) -> None:
    """Remove the service's settings from the environment, and start one server for the whole run, before any worker."""
    Settings.model_config["env_file"] = None
    settings = {name.upper() for name in Settings.model_fields} | {"FORWARDED_ALLOW_IPS", "WEB_CONCURRENCY"}
    kept = {"PGBOUNCER", "PGSERVER_POSTGRES_VERSION"}
    for name in os.environ.keys() - kept:
        if name in settings or name.startswith(("BETTER_AUTH_", "OTEL_", "PG", "UVICORN_")):
            del os.environ[name]
    os.environ["NO_PROXY"] = "*"
    # Python may write compiled files, even if the environment forbids it: the tests start many processes.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    # A shell starts background jobs with SIGINT ignored, which the processes of the tests would inherit.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if SERVER not in os.environ:
        os.environ[SERVER] = _running.enter_context(temporary_server())


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        _running.close()


@pytest.fixture(scope="session", autouse=True)
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Change to an empty directory, so that no `.env` is read."""
    os.chdir(tmp_path_factory.mktemp("elsewhere"))


@pytest.fixture(scope="session")
def server() -> str:
    """The URL of a PostgreSQL server where databases can be created."""
    return os.environ[SERVER]


@pytest.fixture(scope="session")
def worker() -> str:
    """A name unique to this worker of pytest-xdist."""
    return os.environ.get("PYTEST_XDIST_WORKER", "main")


@pytest.fixture(scope="session")
def database_url(server: str, worker: str) -> str:
    """The URL of a migrated database that the tests of this worker share, each with users of its own.

    If CITUS_URL is set, it is on that cluster and distributed.
    """
    name = f"todo_{worker}"
    return distributed_database(name) if CITUS_URL in os.environ else migrated_database(server, name)


@pytest.fixture
def empty_database(server: str, worker: str) -> str:
    """The URL of a database without any table."""
    return new_database(server, f"empty_{worker}")


@pytest.fixture(scope="session")
def settings(database_url: str) -> Settings:
    return settings_for(database_url, cors_origins="https://app.example.com", pool_size=4)


@pytest.fixture(scope="session")
def client(settings: Settings) -> Iterator[CheckedClient]:
    """The application, which takes the bearer token as the user id."""
    with CheckedClient(create_app(settings, BearerIsIdentity())) as client:
        yield client


@pytest.fixture
def person(client: CheckedClient, database_url: str) -> PersonMaker:
    """Create users."""
    return lambda user_id=None: Person(client, database_url, new_account(database_url, user_id))


@pytest.fixture
def alice(person: PersonMaker) -> Person:
    return person()


@pytest.fixture
def bob(person: PersonMaker) -> Person:
    return person()
