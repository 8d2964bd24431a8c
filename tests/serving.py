"""The service as a process of its own."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx2

BIN = Path(sys.executable).parent


def free_port() -> int:
    """Find a port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def process(*command: str, environment: Mapping[str, str], cwd: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a command of the project and end it by SIGTERM if it has not ended."""
    path = [str(BIN / command[0]), *command[1:]]
    with subprocess.Popen(
        path,
        env={**os.environ, **environment},
        cwd=cwd,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as running:
        try:
            yield running
        finally:
            running.terminate()
            running.communicate(timeout=20)


@contextmanager
def uvicorn(environment: Mapping[str, str], cwd: Path, *options: str) -> Iterator[str]:
    """Serve `todo_api.main:app` as production does, and yield the URL it answers at."""
    port = free_port()
    command = ("uvicorn", "todo_api.main:app", "--port", str(port), "--no-access-log", *options)
    with process(*command, environment=environment, cwd=cwd) as server:
        url = f"http://127.0.0.1:{port}"
        wait_for(url, server)
        yield url


def wait_for(url: str, server: subprocess.Popen[str], seconds: float = 20) -> None:
    """Wait until the service answers."""
    deadline = time.monotonic() + seconds
    while True:
        assert server.poll() is None, server.stdout and server.stdout.read()
        assert time.monotonic() < deadline, f"{url} does not answer"
        try:
            httpx2.get(f"{url}/health/live")
        except httpx2.TransportError:
            time.sleep(0.05)
        else:
            return
