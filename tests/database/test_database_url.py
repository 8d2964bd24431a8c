import ssl
from pathlib import Path

import asyncpg.connect_utils
import pytest

from todo_api.database_url import connect_arguments

NEON = "ep-cool-darkness-123456-pooler.us-east-2.aws.neon.tech"


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:p@host/db",
        "postgres://u:p@host:5433/db?sslmode=verify-ca&application_name=todo",
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
def test_what_asyncpg_understands_reaches_it(url: str) -> None:
    arguments = connect_arguments(url)

    assert arguments["ssl"] is None
    assert parsed(arguments["dsn"]) == parsed(url.replace("?channel_binding=prefer", ""))


def parsed(dsn: str) -> object:
    names = ["host", "port", "user", "password", "passfile", "database", "ssl", "service", "servicefile", "direct_tls",
             "server_settings", "target_session_attrs", "krbsrvname", "gsslib"]  # fmt: skip
    dsn = dsn.replace("sslmode=verify-ca", "sslmode=require")
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
def test_where_the_server_must_prove_itself_its_certificate_and_name_are_checked(query: str) -> None:
    arguments = connect_arguments(f"postgresql://u:p@{NEON}/db?{query}")

    assert arguments["ssl"] is not None
    assert arguments["ssl"].verify_mode is ssl.CERT_REQUIRED
    assert arguments["ssl"].check_hostname
    assert "channel_binding" not in arguments["dsn"]
    assert "system" not in arguments["dsn"]


def test_a_file_of_authorities_is_read(tmp_path: Path) -> None:
    empty = tmp_path / "empty.pem"
    empty.write_text("")

    for file in (empty, tmp_path / "missing.pem"):
        with pytest.raises(ValueError, match=r"^names an sslrootcert file that cannot be read$"):
            connect_arguments(f"postgresql://u:p@h/d?channel_binding=require&sslrootcert={file}")
    assert connect_arguments(f"postgresql://u:p@h/d?sslmode=verify-full&sslrootcert={empty}")["ssl"] is None


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
    ],
)
def test_what_cannot_be_honoured_is_refused(url: str, phrase: str) -> None:
    with pytest.raises(ValueError, match="^" + phrase):
        connect_arguments(url)
