import os
import ssl
from contextlib import suppress
from pathlib import Path

import asyncpg.connect_utils
import pytest
import trustme

from tests.support.permissions import bound_by_permissions
from todo_api.database_url import connect_arguments

NEON = "ep-cool-darkness-123456-pooler.us-east-2.aws.neon.tech"


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:p@host/db",
        "postgres://u:p@host:5433/db?sslmode=require&application_name=todo",
        "postgresql://u:p%40%2F%3A%23@host/db",
        "postgresql://u:p@[::1]:5432/db",
        "postgresql://u:p@one:5432,two:5433/db?target_session_attrs=read-write",
        "postgresql://postgres:@/postgres?host=/var/run/postgresql",
        f"postgresql://u:p@{NEON}/db?sslmode=require&options=endpoint%3Dep-cool-darkness-123456",
        f"postgresql://u:p@{NEON}/db?sslmode=require&sslnegotiation=direct",
        "postgresql://u:p@host/db?options=-c%20search_path%3Da%2Bb",
        "postgresql://u:p@host/db?channel_binding=prefer",
    ],
)
def test_supported_urls_reach_asyncpg_unchanged(url: str) -> None:
    arguments = connect_arguments(url)

    assert arguments["ssl"] is None
    assert parsed(arguments["dsn"]) == parsed(url.replace("?channel_binding=prefer", ""))


def parsed(dsn: str) -> object:
    names = ["host", "port", "user", "password", "passfile", "database", "ssl", "service", "servicefile", "direct_tls",
             "server_settings", "target_session_attrs", "krbsrvname", "gsslib"]  # fmt: skip
    parse = asyncpg.connect_utils._parse_connect_dsn_and_args  # noqa: SLF001  # its only parser
    addresses, parameters = parse(dsn=dsn, **dict.fromkeys(names))
    return addresses, parameters._replace(ssl=None)


@pytest.mark.parametrize(
    "query",
    [
        "sslmode=require&channel_binding=require",
        "channel_binding=require",
        "sslmode=prefer&channel_binding=require&sslnegotiation=postgres",
        "sslmode=verify-full",
        "sslmode=verify-full&sslrootcert=system",
        "sslmode=require&channel_binding=require&sslrootcert=system",
    ],
)
def test_strict_urls_verify_certificate_and_host(query: str) -> None:
    arguments = connect_arguments(f"postgresql://u:p@{NEON}/db?{query}")

    assert arguments["ssl"] is not None
    assert arguments["ssl"].verify_mode is ssl.CERT_REQUIRED
    assert arguments["ssl"].check_hostname
    assert "channel_binding" not in arguments["dsn"]
    assert "system" not in arguments["dsn"]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A directory with a certificate, its key, its authority and an empty file."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    certificate = authority.issue_cert("client")
    certificate.cert_chain_pems[0].write_to_path(str(tmp_path / "client.pem"))
    certificate.private_key_pem.write_to_path(str(tmp_path / "client.key"))
    (tmp_path / "empty").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("query", "fault"),
    [
        ("channel_binding=require&sslrootcert={}/missing", "missing"),
        ("channel_binding=require&sslrootcert={}/empty", "empty"),
        ("sslmode=verify-full&sslrootcert={}/missing", "missing"),
        ("sslmode=verify-ca&sslrootcert={}/empty", "empty"),
        ("sslmode=require&sslrootcert={}", ""),
        ("sslmode=require&sslcrl={}/missing", "missing"),
        ("sslcert={}/missing&sslkey={}/client.key", "missing"),
        ("sslcert={}/client.pem&sslkey={}/missing", "missing"),
        ("sslcert={}/client.pem&sslkey={}/empty", "client.pem"),
        ("sslcert={}/client.pem", "client.pem"),
    ],
)
def test_unusable_file_is_named(files: Path, query: str, fault: str) -> None:
    with pytest.raises(ValueError, match=rf"^needs the file {files / fault}, which cannot be used \(.+\)$"):
        connect_arguments("postgresql://u:p@h/d?" + query.replace("{}", str(files)))


def test_usable_files_are_left_to_asyncpg(files: Path) -> None:
    query = f"sslmode=verify-ca&sslrootcert={files}/ca.pem&sslcert={files}/client.pem&sslkey={files}/client.key"

    assert connect_arguments(f"postgresql://u:p@h/d?{query}")["ssl"] is None


def test_files_are_not_checked_without_tls(files: Path) -> None:
    for url in ("h/d?sslmode=disable&sslcert=/missing", "/d?host=/tmp&sslcert=/missing"):
        connect_arguments(f"postgresql://u:p@{url}")


def test_replaced_authority_is_loaded_again(files: Path) -> None:
    url = f"postgresql://u:p@h/d?channel_binding=require&sslrootcert={files}/ca.pem"
    before = connect_arguments(url)["ssl"]
    again = connect_arguments(url)["ssl"]
    trustme.CA().cert_pem.write_to_path(str(files / "new.pem"))
    (files / "new.pem").rename(files / "ca.pem")
    after = connect_arguments(url)["ssl"]

    assert before
    assert after
    assert again is before
    assert after.get_ca_certs() != before.get_ca_certs()


def test_tls_context_offers_postgresql_protocol(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    listening = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    listening.set_alpn_protocols(["postgresql"])
    authority.issue_cert("localhost").configure_cert(listening)
    query = f"sslmode=require&sslnegotiation=direct&channel_binding=require&sslrootcert={tmp_path}/ca.pem"
    context = connect_arguments(f"postgresql://u:p@localhost/d?{query}")["ssl"]
    assert context

    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(back, there, server_hostname="localhost")
    server = listening.wrap_bio(there, back, server_side=True)
    for side in (client, server, client, server):
        with suppress(ssl.SSLWantReadError):
            side.do_handshake()

    assert server.selected_alpn_protocol() == "postgresql"


@pytest.fixture
def nameless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user id without a user name, as in a container."""
    for variable in ("LOGNAME", "USER", "LNAME", "USERNAME", "PGUSER", "HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 64321)


def test_no_home_directory_is_accepted(nameless: None) -> None:
    assert connect_arguments("postgresql://u:p@h/d")["ssl"] is None


@pytest.mark.parametrize("url", ["postgresql://h/d", "postgresql:///d?host=/tmp"])
def test_missing_user_name_is_refused(nameless: None, url: str) -> None:
    with pytest.raises(ValueError, match=r"^names no user$"):
        connect_arguments(url)


def test_unreadable_home_directory_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    tmp_path.chmod(0)
    file = tmp_path / ".postgresql" / "root.crt"

    with (
        bound_by_permissions(),
        pytest.raises(ValueError, match=rf"^needs the file {file}, which cannot be used \(Permission denied\)$"),
    ):
        connect_arguments("postgresql://u:p@h/d")


@pytest.mark.parametrize(
    ("url", "phrase"),
    [
        ("", "is not a PostgreSQL URL"),
        ("host=localhost dbname=x", "is not a PostgreSQL URL"),
        ("postgresql+asyncpg://u:p@h/d", "is not a PostgreSQL URL"),
        ("postgresql://u:p@ss@h/d", "holds an @, / or # that is not percent-encoded"),
        ("postgresql://u:12/3@h/d", "holds an @, / or # that is not percent-encoded"),
        ("postgresql://u:p#s@h/d", "holds an @, / or # that is not percent-encoded"),
        ("postgresql://u:p@h:port/d", "holds a host or port that cannot be read"),
        ("postgresql://u:p@h:1:2/d", "holds a host or port that cannot be read"),
        ("postgresql://u:p@[::1/d", "cannot be read"),
        ("postgresql://u:p@h/d?sslmode", "cannot be read"),
        (
            "postgresql://u:p@h/d?sslmode=on",
            "holds a value of sslmode other than disable, allow, prefer, require",
        ),
        (
            "postgresql://u:p@h/d?channel_binding=yes",
            "holds a value of channel_binding other than disable, prefer",
        ),
        ("postgresql://u:p@h/d?pgbouncer=true", "holds a parameter that is not supported"),
        ("postgresql://u:p@h/d?statement_timeout=5", "holds a parameter that is not supported"),
        (
            "postgresql://u:p@h/d?sslmode=disable&channel_binding=require",
            "asks for channel_binding=require without TLS",
        ),
        ("postgresql://u@/d?host=/tmp&channel_binding=require", "asks for channel_binding=require without TLS"),
        ("postgresql://u:p@%2Ftmp/d?channel_binding=require", "asks for channel_binding=require without TLS"),
        ("postgresql:///d?channel_binding=require", "asks for channel_binding=require without TLS"),
        ("postgresql://u:p@h:99999/d", "holds a host or port that cannot be read"),
        ("postgresql://u:p@h:0/d", "holds a host or port that cannot be read"),
        ("postgresql://u:p@h/d?port=5432,x", "holds a host or port that cannot be read"),
        ("postgresql://u:p@a..b/d", "holds a host or port that cannot be read"),
        (f"postgresql://u:p@{'x' * 64}/d", "holds a host or port that cannot be read"),
        ("postgresql://u:p@h/d?client_encoding=latin1", "holds a parameter that is not supported"),
        ("postgresql://u:p@h/d?sslnegotiation=quick", "holds a value of sslnegotiation other than postgres, direct"),
        ("postgresql://u:p@h/d?sslnegotiation=direct", "asks for sslnegotiation=direct, which needs sslmode=require"),
        ("postgresql://u:p@h/d?target_session_attrs=any-", "holds a value of target_session_attrs other than any, pri"),
        ("postgresql://u:p@h/d?ssl_min_protocol_version=3", "holds a value of ssl_min_protocol_version other than TLS"),
        (
            "postgresql://u:p@h/d?sslmode=verify-full&sslcert=/c.pem",
            "asks for full verification together with sslcert, which is not supported",
        ),
        (
            "postgresql://u:p@h/d?channel_binding=require&ssl_min_protocol_version=TLSv1.3",
            "asks for full verification together with ssl_min_protocol_version, which is not supported",
        ),
        ("postgresql://u:p@h/d?sslrootcert=system", "asks for sslrootcert=system, which needs sslmode=verify-full"),
        ("postgresql://u:p@h/d?sslmode=verify-ca", "asks for sslmode=verify-ca, which needs sslrootcert"),
    ],
)
def test_unsupported_urls_are_refused(url: str, phrase: str) -> None:
    with pytest.raises(ValueError, match="^" + phrase):
        connect_arguments(url)
