import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.api import BearerIsIdentity, CheckedClient, Person, new_account
from tests.support.patience import deadline
from tests.support.postgres import migrated_database, settings_for
from tests.support.proxy import FaultProxy
from tests.support.servers import PgBouncer, Postgres, find_pgbouncer
from todo_api.main import create_app


@pytest.fixture(scope="session")
def directory() -> Iterator[Path]:
    """A directory that PostgreSQL's user may enter."""
    with tempfile.TemporaryDirectory(prefix="todo-") as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


@pytest.fixture(scope="session")
def running_postgres(directory: Path) -> Iterator[Postgres]:
    postgres = Postgres(directory / "postgres")
    migrated_database(postgres.url, "todo")
    yield postgres
    postgres.stop()


@pytest.fixture
def postgres(running_postgres: Postgres) -> Postgres:
    """A PostgreSQL that a test may stop or kill; it is started again for the next test."""
    running_postgres.start()
    return running_postgres


@pytest.fixture(scope="session")
def pgbouncer_program() -> str:
    program = find_pgbouncer()
    if program is None:
        pytest.skip("there is no PgBouncer of version 1.21 or later: name one by PGBOUNCER")
    return program


@pytest.fixture
def bouncer(pgbouncer_program: str, postgres: Postgres, directory: Path) -> Iterator[PgBouncer]:
    bouncer = PgBouncer(pgbouncer_program, postgres, directory)
    yield bouncer
    bouncer.kill()


class Neon:
    """The service in this process, a proxy, PgBouncer unless the endpoint is direct, and PostgreSQL."""

    def __init__(self, postgres: Postgres, bouncer: PgBouncer | None, proxy: FaultProxy) -> None:
        self._stack = ExitStack()
        self._resuming = threading.Lock()
        self.postgres = postgres
        self._bouncer = bouncer
        self.proxy = proxy
        self.direct_url = postgres.url.replace("/postgres?", "/todo?")
        self.url = f"postgresql://postgres@127.0.0.1:{proxy.port}/todo"

    @property
    def bouncer(self) -> PgBouncer:
        assert self._bouncer
        return self._bouncer

    def serve(self, **settings: object) -> Callable[[], Person]:
        """Start the service, and return a function that creates users."""
        app = create_app(settings_for(self.url, **{"pool_size": 4, **settings}), BearerIsIdentity())
        client = self._stack.enter_context(CheckedClient(app))
        return lambda: Person(client, self.direct_url, new_account(self.direct_url))

    def wait_until_warm(self) -> None:
        """Wait until the connections that the service opens at its start are idle."""
        end = deadline()
        seen = -1
        while seen != self.proxy.round_trips or not seen:
            assert time.monotonic() < end
            seen = self.proxy.round_trips
            time.sleep(0.1)

    def suspend(self, wake_seconds: float = 0) -> None:
        """Stop pooler and compute in Neon's order; the next connection starts them after `wake_seconds`."""
        if self._bouncer:
            self._bouncer.kill()
        self.postgres.stop()

        def wake() -> None:
            time.sleep(wake_seconds)
            self.resume()

        self.proxy.wake = wake

    def resume(self) -> None:
        """Start PostgreSQL and PgBouncer unless they run."""
        with self._resuming:
            self.postgres.start()
            if self._bouncer:
                self._bouncer.start()

    def close(self) -> None:
        """Stop the service."""
        self._stack.close()
        self.proxy.unfreeze()


@pytest.fixture
def pooled(postgres: Postgres, bouncer: PgBouncer) -> Iterator[Neon]:
    """A database behind PgBouncer, as Neon's pooled endpoint."""
    bouncer.start()
    with FaultProxy(bouncer.port) as proxy:
        neon = Neon(postgres, bouncer, proxy)
        yield neon
        neon.close()


@pytest.fixture
def direct(postgres: Postgres) -> Iterator[Neon]:
    """A database without a pooler, as Neon's direct endpoint."""
    with FaultProxy(str(postgres.directory / ".s.PGSQL.5432")) as proxy:
        neon = Neon(postgres, None, proxy)
        yield neon
        neon.close()


@pytest.fixture(params=["pooled", "direct"])
def neon(request: pytest.FixtureRequest) -> Neon:
    """A database behind each of Neon's endpoints."""
    neon: Neon = request.getfixturevalue(request.param)
    return neon
