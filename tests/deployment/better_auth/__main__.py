"""Run Better Auth and the service on one temporary PostgreSQL, until interrupted."""

import signal
import socket
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from tests.support.better_auth import better_auth, service
from tests.support.postgres import settings_for, temporary_server
from todo_api.migrations import migrate

PORTS = {"Better Auth": 3000, "the service": 8000}

for name, port in PORTS.items():
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        sys.exit(f"Port {port}, for {name}, is in use.")
signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
with (
    suppress(KeyboardInterrupt),
    temporary_server() as database_url,
    tempfile.TemporaryDirectory() as directory,
    better_auth(database_url, Path(directory) / "better-auth", "http://localhost:3000") as (origin, _),
):
    migrate(settings_for(database_url))
    with service(database_url, Path(directory) / "service", origin, 8000) as url:
        print(f"Better Auth listens on {origin}, the service on {url}. Ctrl-C stops both, and nothing is kept.")
        signal.pause()
