"""Converts a PostgreSQL connection string, as Neon and other hosts provide it, to arguments for asyncpg.

asyncpg parses the string itself, but does not support channel binding, and sends unknown parameters to the server,
which refuses them. Whatever is not supported is refused here, before connecting.
"""

import getpass
import os
import re
import ssl
from functools import lru_cache
from pathlib import Path
from typing import TypedDict
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit, urlunsplit

_TLS_VERSIONS = ("TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3")
# asyncpg's parameters with a fixed set of values, and Neon's channel_binding.
_CHOICES = {
    "sslmode": ("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
    "channel_binding": ("disable", "prefer", "require"),
    "sslnegotiation": ("postgres", "direct"),
    "target_session_attrs": ("any", "primary", "standby", "read-write", "read-only", "prefer-standby"),
    "ssl_min_protocol_version": _TLS_VERSIONS,
    "ssl_max_protocol_version": _TLS_VERSIONS,
}
# Parameters that asyncpg applies only to a TLS context that it creates itself.
_OWN_CONTEXT = {
    "sslcert", "sslkey", "sslcrl", "sslpassword", "ssl_min_protocol_version", "ssl_max_protocol_version"
}  # fmt: skip
# asyncpg's other parameters, and the settings that PostgreSQL and PgBouncer accept when a connection starts.
_OTHERS = {
    "host", "port", "dbname", "database", "user", "password", "passfile", "sslrootcert", "application_name", "options"
}  # fmt: skip
_LABEL = r"[^:\[\],@.]{1,63}"
_HOST = re.compile(rf"(?:\[[0-9A-Fa-f:.]+\]|{_LABEL}(?:\.{_LABEL})*\.?)?(?::[0-9]{{1,5}})?")


class ConnectArguments(TypedDict):
    """Arguments of `asyncpg.connect`."""

    dsn: str
    ssl: ssl.SSLContext | None


def connect_arguments(url: str) -> ConnectArguments:
    """Turn a connection string into arguments for one connection by asyncpg.

    The files that they name are checked on each call, because certificates may be replaced while the service runs.

    `channel_binding=require` asks for proof of the server's identity. asyncpg does not support it, so the server's
    certificate and host name are verified instead, as with `sslmode=verify-full`, against the system's certificate
    authorities or `sslrootcert`.

    Raises `ValueError` with a phrase that completes "DATABASE_URL …" and quotes no value but the name of a file.
    """
    try:
        parts = urlsplit(url)
        query = parse_qsl(parts.query.replace("+", "%2B"), keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:  # its message may quote the password
        raise ValueError("cannot be read") from None
    parameters = dict(query)
    hosts = _check_address(parts, parameters)
    _check_choices(parameters)
    binding = parameters.pop("channel_binding", "prefer") == "require"
    if binding and (parameters.get("sslmode") == "disable" or any("/" in host or not host for host in hosts)):
        raise ValueError("asks for channel_binding=require without TLS")
    _check_user(parts, parameters)
    context = _verifying_context(parameters, binding=binding)
    if parameters.get("sslrootcert") == "system":
        del parameters["sslrootcert"]
    elif context is None and _may_use_tls(parameters, hosts):
        _check_files(parameters)
    return {"dsn": urlunsplit(parts._replace(query=urlencode(parameters))), "ssl": context}


def _check_address(parts: SplitResult, parameters: dict[str, str]) -> list[str]:
    """Check the address and return its hosts: a path for a Unix socket, empty for the default."""
    if parts.scheme not in ("postgres", "postgresql"):
        raise ValueError("is not a PostgreSQL URL")
    credentials, _, netloc = parts.netloc.rpartition("@")
    if "@" in credentials + parts.path or parts.fragment:
        raise ValueError("holds an @, / or # that is not percent-encoded")
    hosts = [unquote(host) for host in netloc.split(",")]
    ports = [host.rpartition("]")[2].partition(":")[2] for host in hosts] + parameters.get("port", "").split(",")
    if not all("/" in host or _HOST.fullmatch(host) for host in hosts) or any(
        port and not (re.fullmatch("[0-9]{1,5}", port) and 0 < int(port) < 65536) for port in ports
    ):
        raise ValueError("holds a host or port that cannot be read")
    return parameters["host"].split(",") if "host" in parameters else hosts


def _check_choices(parameters: dict[str, str]) -> None:
    if not parameters.keys() <= _CHOICES.keys() | _OWN_CONTEXT | _OTHERS:
        raise ValueError("holds a parameter that is not supported")
    for name, choices in _CHOICES.items():
        if parameters.get(name, choices[0]) not in choices:
            raise ValueError(f"holds a value of {name} other than {', '.join(choices)}")
    if parameters.get("sslnegotiation") == "direct" and parameters.get("sslmode", "prefer") in _CHOICES["sslmode"][:3]:
        raise ValueError("asks for sslnegotiation=direct, which needs sslmode=require or stricter")


def _verifying_context(parameters: dict[str, str], *, binding: bool) -> ssl.SSLContext | None:
    """Create a TLS context that verifies certificate and host name, if asyncpg itself would verify less."""
    verify_full = parameters.get("sslmode") == "verify-full"
    authorities = parameters.get("sslrootcert", "system")
    if not binding and not (verify_full and authorities == "system"):
        if authorities == "system" and "sslrootcert" in parameters:
            raise ValueError("asks for sslrootcert=system, which needs sslmode=verify-full")
        return None
    if ignored := sorted(_OWN_CONTEXT & parameters.keys()):
        raise ValueError(f"asks for full verification together with {ignored[0]}, which is not supported")
    file = ssl.get_default_verify_paths().cafile if authorities == "system" else authorities
    try:
        return _trusting(authorities, _version(file) if file else None)
    except OSError as error:
        raise _unusable(error, file) from None


@lru_cache(maxsize=2)  # one entry for each version of a file: loading the system's authorities takes 0.1 s
def _trusting(authorities: str, _: object) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=None if authorities == "system" else authorities)
    context.set_alpn_protocols(["postgresql"])  # required by PostgreSQL for sslnegotiation=direct
    return context


def _version(file: str) -> tuple[int, ...]:
    stat = Path(file).stat()
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def _unusable(error: OSError, file: object) -> ValueError:
    return ValueError(f"needs the file {error.filename or file}, which cannot be used ({error.strerror})")


def _check_user(parts: SplitResult, parameters: dict[str, str]) -> None:
    if not (parts.username or parameters.get("user") or os.environ.get("PGUSER")):
        try:
            getpass.getuser()
        except (KeyError, OSError):  # a container's user often has a number and no name
            raise ValueError("names no user") from None


def _may_use_tls(parameters: dict[str, str], hosts: list[str]) -> bool:
    """Tell whether asyncpg creates a TLS context; by default it does, unless all hosts are Unix sockets."""
    default = "disable" if all("/" in host for host in hosts) else "prefer"
    return (parameters.get("sslmode") or os.environ.get("PGSSLMODE") or default) != "disable"


def _check_files(parameters: dict[str, str]) -> None:
    """Check the files that asyncpg reads: those named by a parameter or variable, and existing defaults in the home."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    file = None
    try:
        for parameter, default in (("sslrootcert", "root.crt"), ("sslcrl", "root.crl")):
            if file := _file(parameters, parameter, default):
                context.load_verify_locations(file)
            elif parameter == "sslrootcert" and parameters.get("sslmode") == "verify-ca":
                raise ValueError("asks for sslmode=verify-ca, which needs sslrootcert")
        key = _file(parameters, "sslkey", "postgresql.key")
        if file := _file(parameters, "sslcert", "postgresql.crt"):
            context.load_cert_chain(file, key, lambda: parameters.get("sslpassword", ""))
    except OSError as error:
        raise _unusable(error, file) from None


def _file(parameters: dict[str, str], parameter: str, default: str) -> Path | None:
    named = parameters.get(parameter) or os.environ.get(f"PG{parameter.upper()}")
    # Path.expanduser raises without a home directory; os.path.expanduser returns a path that does not exist.
    file = Path(named or os.path.expanduser(f"~/.postgresql/{default}"))  # noqa: PTH111
    if not named and not file.exists():
        return None
    file.open().close()  # raises an error that names the file
    return file
