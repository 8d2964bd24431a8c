"""Opening one connection: the hosts and addresses to try, the timeout of each, and the options of the sockets."""

import asyncio
import socket
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import asyncpg

from todo_api.database.failures import Meaning, while_connecting
from todo_api.database_url import connect_arguments

# For all hosts of the connection string together, and for one address of a host that has several.
CONNECT_SECONDS = 5.0
ADDRESS_SECONDS = 1.0
# TCP keepalive: the kernel closes an idle connection within two minutes after the network has dropped it, and the
# probes keep firewalls and NAT from dropping it. PostgreSQL does not see them, so they do not keep a compute awake.
_KEEPALIVE = {"TCP_KEEPIDLE": 45, "TCP_KEEPALIVE": 45, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
_OPTIONS = [(getattr(socket, name), value) for name, value in _KEEPALIVE.items() if hasattr(socket, name)]

CONNECT_ERRORS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, ValueError)


class Connector:
    """Opens connections to the database of a connection string."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._host = 0  # index of the host that was connected to last, which is tried first
        self._address: object = None

    async def connect(self, *, statement_seconds: float | None = None) -> asyncpg.Connection:
        """Open a connection to the first host that answers and meets `target_session_attrs`.

        Its statements raise `TimeoutError` after `statement_seconds`. Raises one of `CONNECT_ERRORS`, within
        `CONNECT_SECONDS`.
        """
        arguments = connect_arguments(self._url)  # on each call, so that renewed certificates are used
        hosts = _each_host(arguments["dsn"])
        failure: Exception
        for offset in range(len(hosts)):
            host = (self._host + offset) % len(hosts)
            try:
                connection = await asyncpg.connect(
                    hosts[host],
                    ssl=arguments["ssl"],
                    loop=_Loop(self),
                    timeout=CONNECT_SECONDS / len(hosts),
                    command_timeout=statement_seconds,
                    statement_cache_size=0,  # otherwise the driver names statements by a counter of the process
                )
            except CONNECT_ERRORS as error:
                if while_connecting(error) is not Meaning.AWAY:
                    raise
                failure = error
            else:
                self._host = host
                return connection
        raise failure

    async def open_socket(self, host: str, port: int) -> socket.socket:
        """Connect a socket to the first address of a host that answers; raise `OSError`."""
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        found.sort(key=lambda info: info[4] != self._address)
        failure: OSError
        for family, kind, protocol, _, address in found:
            try:
                async with asyncio.timeout(ADDRESS_SECONDS if len(found) > 1 else None):
                    opened = await _connected(socket.socket(family, kind, protocol), address)
            except OSError as error:
                failure = error
            else:
                self._address = address
                return opened
        raise failure


async def _connected(opened: socket.socket, address: Any) -> socket.socket:  # noqa: ANN401  # its form is the family's
    try:
        opened.settimeout(0)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _OPTIONS:
            opened.setsockopt(socket.IPPROTO_TCP, option, value)
        await asyncio.get_running_loop().sock_connect(opened, address)
    except BaseException:
        opened.close()
        raise
    return opened


class _Loop:
    """The running loop, passed to asyncpg, which opens sockets by a `Connector`.

    asyncpg passes the host's name to the loop, which tries its addresses in turn without a timeout for each, and cannot
    set options of the socket.
    """

    def __init__(self, connector: Connector) -> None:
        self._connector = connector
        self._loop = asyncio.get_running_loop()
        self.call_later = self._loop.call_later  # used for every statement: faster than by __getattr__

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  # as the loop's attribute
        return getattr(self._loop, name)

    async def create_connection(self, factory: Any, host: str, port: int, **options: Any) -> Any:  # noqa: ANN401  # as the loop's
        """Connect like the loop, on a socket of the `Connector`."""
        opened = await self._connector.open_socket(host, port)
        server_hostname = host if "ssl" in options else None
        return await self._loop.create_connection(factory, sock=opened, server_hostname=server_hostname, **options)


def _each_host(dsn: str) -> list[str]:
    """Split a connection string into one for each host, in the order to try them."""
    parts = urlsplit(dsn)
    query = dict(parse_qsl(parts.query))
    credentials, at, netloc = parts.netloc.rpartition("@")
    hosts = netloc.split(",")
    if netloc:
        cut = [parts._replace(netloc=credentials + at + host) for host in hosts]
    else:
        hosts, ports = query.get("host", "").split(","), query.get("port", "").split(",")
        ports = ports if len(ports) == len(hosts) else ports * len(hosts)
        each = [{"host": host, "port": port} for host, port in zip(hosts, ports, strict=False)]
        cut = [parts._replace(query=urlencode({**query, **one})) for one in each]
    if len(cut) == 1:
        return [dsn]
    if query.get("target_session_attrs") == "prefer-standby":  # asyncpg can only apply this to all hosts at once
        found = [one.query.replace("=prefer-standby", "=standby") for one in cut]
        cut = [one._replace(query=standby) for one, standby in zip(cut, found, strict=True)] + cut
    return [urlunsplit(one) for one in cut]
