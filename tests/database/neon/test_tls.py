"""TLS with verification of the server, as Neon's connection string requires."""

import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from tests.database.neon.conftest import Neon
from tests.support.api import error
from tests.support.proxy import FaultProxy
from tests.support.servers import PgBouncer, Postgres

STRICT = "sslmode=require&channel_binding=require"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def roots(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with the trusted authority's certificate."""
    path = tmp_path_factory.mktemp("tls") / "root.pem"
    authority.cert_pem.write_to_path(str(path))
    return path


def context(authority: trustme.CA, host: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(host).configure_cert(context)
    return context


@pytest.fixture
def bouncer_port(bouncer: PgBouncer) -> int:
    bouncer.start()
    return bouncer.port


@pytest.fixture
def trusted(postgres: Postgres, bouncer: PgBouncer, bouncer_port: int, authority: trustme.CA) -> Iterator[Neon]:
    """A proxy with a certificate for its host, issued by the trusted authority."""
    with FaultProxy(bouncer_port, context(authority, "localhost")) as proxy:
        neon = Neon(postgres, bouncer, proxy)
        yield neon
        neon.close()


@pytest.mark.parametrize(
    "query",
    [
        STRICT,
        "channel_binding=require",
        "sslmode=verify-full",
        "sslmode=verify-ca",
        "sslmode=require",
        f"{STRICT}&application_name=todo",
    ],
)
def test_verified_server_is_accepted(trusted: Neon, roots: Path, query: str) -> None:
    trusted.url = f"postgres://postgres:p%40ss@localhost:{trusted.proxy.port}/todo?{query}&sslrootcert={roots}"
    alice = trusted.serve()()

    assert alice.create()["user_id"] == alice.id
    assert set(trusted.proxy.server_names) == {"localhost"}


def test_tls_is_preferred_by_default(trusted: Neon) -> None:
    trusted.url = f"postgresql://postgres@localhost:{trusted.proxy.port}/todo"

    assert trusted.serve()().create()
    assert set(trusted.proxy.server_names) == {"localhost"}


@pytest.mark.parametrize("query", [STRICT, "channel_binding=require", "sslmode=verify-full"])
@pytest.mark.parametrize("fault", ["another authority", "another host"])
def test_unverified_server_gets_no_password(
    postgres: Postgres, bouncer_port: int, authority: trustme.CA, roots: Path, caplog: pytest.LogCaptureFixture,
    query: str, fault: str,
) -> None:  # fmt: skip
    wrong = context(trustme.CA(), "localhost") if fault == "another authority" else context(authority, "elsewhere.test")
    with FaultProxy(bouncer_port, wrong) as proxy:
        neon = Neon(postgres, None, proxy)
        neon.url = f"postgresql://postgres:s3cret-pa55word@localhost:{proxy.port}/todo?{query}&sslrootcert={roots}"
        alice = neon.serve(pool_size=1)()

        started = time.monotonic()
        answer = alice.ask("GET")
        took = time.monotonic() - started
        neon.close()

    assert (answer.status_code, answer.json()) == (500, error("Internal server error"))
    assert "certificate verify failed" in caplog.text
    assert "pa55word" not in caplog.text
    assert took < 5, "it will not pass by waiting"


def test_server_without_tls_is_refused_at_once(direct: Neon, caplog: pytest.LogCaptureFixture) -> None:
    direct.url = f"postgresql://postgres:s3cret-pa55word@localhost:{direct.proxy.port}/todo?sslmode=require"
    alice = direct.serve(pool_size=1)()

    started = time.monotonic()
    answer = alice.ask("GET")

    assert (answer.status_code, answer.json()) == (500, error("Internal server error"))
    assert time.monotonic() - started < 2
    assert "rejected SSL upgrade" in caplog.text
    assert "pa55word" not in caplog.text


def test_system_authorities_are_the_default(trusted: Neon, caplog: pytest.LogCaptureFixture) -> None:
    trusted.url = f"postgresql://postgres@localhost:{trusted.proxy.port}/todo?{STRICT}"
    alice = trusted.serve(pool_size=1)()

    assert alice.ask("GET").status_code == 500
    assert "certificate verify failed" in caplog.text


@pytest.mark.parametrize("query", [STRICT, "sslmode=verify-full"])
def test_rotated_authority_needs_no_restart(
    postgres: Postgres, bouncer_port: int, authority: trustme.CA, tmp_path: Path, query: str
) -> None:
    roots, successor = tmp_path / "root.pem", trustme.CA()
    authority.cert_pem.write_to_path(str(roots))
    certificate = context(authority, "localhost")
    with FaultProxy(bouncer_port, certificate) as proxy:
        neon = Neon(postgres, None, proxy)
        neon.url = f"postgresql://postgres@localhost:{proxy.port}/todo?{query}&sslrootcert={roots}"
        alice = neon.serve(pool_size=1)()
        assert alice.ask("GET").status_code == 200

        successor.issue_cert("localhost").configure_cert(certificate)
        proxy.abort_connections()
        assert alice.ask("GET").status_code == 500, "an authority that is not trusted yet"
        successor.cert_pem.write_to_path(str(roots))
        assert alice.ask("GET").status_code == 200
        neon.close()


def test_missing_authority_is_named_at_once(
    postgres: Postgres, bouncer_port: int, authority: trustme.CA, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    roots = tmp_path / "root.pem"
    authority.cert_pem.write_to_path(str(roots))
    with FaultProxy(bouncer_port, context(authority, "localhost")) as proxy:
        neon = Neon(postgres, None, proxy)
        neon.url = f"postgresql://postgres@localhost:{proxy.port}/todo?{STRICT}&sslrootcert={roots}"
        alice = neon.serve(pool_size=1)()
        assert alice.ask("GET").status_code == 200

        roots.unlink()
        proxy.abort_connections()
        started = time.monotonic()
        answer = alice.ask("GET")
        took = time.monotonic() - started
        ready = alice.client.get("/health/ready")
        neon.close()

    assert (answer.status_code, answer.json()) == (500, error("Internal server error"))
    assert ready.status_code == 503
    assert f"needs the file {roots}, which cannot be used" in caplog.text
    assert took < 2
