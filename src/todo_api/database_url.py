"""Reads a PostgreSQL connection string, as Neon and other hosts give it out, for asyncpg.

asyncpg reads the string itself, but has no channel binding, and sends parameters it does not know to the server, which
refuses them. Whatever cannot be honoured is refused here, before anything connects.
"""

import re
import ssl
from typing import TypedDict
from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit, urlunsplit

SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
CHANNEL_BINDINGS = ("disable", "prefer", "require")
# What asyncpg understands, and the settings that PostgreSQL and PgBouncer take when a connection starts.
PARAMETERS = frozenset({
    "host", "port", "dbname", "database", "user", "password", "passfile", "target_session_attrs",
    "sslmode", "sslcert", "sslkey", "sslrootcert", "sslcrl", "sslpassword", "sslnegotiation",
    "ssl_min_protocol_version", "ssl_max_protocol_version",
    "application_name", "client_encoding", "options",
})  # fmt: skip
_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[^:\[\],@]*)(?::[0-9]{1,5})?")


class ConnectArguments(TypedDict):
    """What `asyncpg.connect` is called with."""

    dsn: str
    ssl: ssl.SSLContext | None


def connect_arguments(url: str) -> ConnectArguments:
    """Turn a connection string into arguments for asyncpg.

    `channel_binding=require` asks for proof that the server is the one meant. asyncpg cannot give it, so the server's
    certificate and host name are verified instead, as with `sslmode=verify-full`, against the system's certificate
    authorities or `sslrootcert`.

    Raises `ValueError` with a phrase that completes "DATABASE_URL …" and quotes no value.
    """
    try:
        parts = urlsplit(url)
        query = parse_qsl(parts.query.replace("+", "%2B"), keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:  # its message may quote the password
        raise ValueError("cannot be read") from None
    parameters = dict(query)
    binding = parameters.pop("channel_binding", "prefer")
    _check_address(parts)
    _check_parameters(parameters, binding)
    context = _verifying_context(parameters, binding)
    if parameters.get("sslrootcert") == "system":
        del parameters["sslrootcert"]
    return {"dsn": urlunsplit(parts._replace(query=urlencode(parameters))), "ssl": context}


def _check_address(parts: SplitResult) -> None:
    if parts.scheme not in ("postgres", "postgresql"):
        raise ValueError("is not a PostgreSQL URL")
    credentials, _, hosts = parts.netloc.rpartition("@")
    if "@" in credentials + parts.path or parts.fragment:
        raise ValueError("holds an @, / or # that is not percent-encoded")
    if not all(_HOST.fullmatch(host) for host in hosts.split(",")):
        raise ValueError("holds a host or port that cannot be read")


def _check_parameters(parameters: dict[str, str], binding: str) -> None:
    if not parameters.keys() <= PARAMETERS:
        raise ValueError("holds a parameter that is not supported")
    if parameters.get("sslmode", "prefer") not in SSL_MODES:
        raise ValueError(f"holds an sslmode other than {', '.join(SSL_MODES)}")
    if binding not in CHANNEL_BINDINGS:
        raise ValueError(f"holds a channel_binding other than {', '.join(CHANNEL_BINDINGS)}")
    if binding == "require" and (parameters.get("sslmode") == "disable" or "/" in parameters.get("host", "")):
        raise ValueError("asks for channel_binding=require without TLS")


def _verifying_context(parameters: dict[str, str], binding: str) -> ssl.SSLContext | None:
    """Make the context that checks certificate and host name, where asyncpg's own reading would check less."""
    verify_full = parameters.get("sslmode") == "verify-full"
    authorities = parameters.get("sslrootcert", "system")
    if binding != "require" and not (verify_full and authorities == "system"):
        if parameters.get("sslrootcert") == "system":
            raise ValueError("asks for sslrootcert=system, which needs sslmode=verify-full")
        return None
    try:
        return ssl.create_default_context(cafile=None if authorities == "system" else authorities)
    except OSError:
        raise ValueError("names an sslrootcert file that cannot be read") from None
