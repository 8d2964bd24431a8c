"""The service and other commands as child processes."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx2

from tests.support.patience import deadline, patience

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
# Switches coverage off in a child process whose lines other tests cover, because it would slow it down.
UNMEASURED = {"COVERAGE_PROCESS_CONFIG": ""}


def free_port() -> int:
    """Find a port that no process listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


class Process:
    """A running command of the virtual environment; its output goes to a file in its working directory."""

    def __init__(self, *command: str, environment: Mapping[str, str], cwd: Path) -> None:
        self._output = cwd / "output"
        with self._output.open("w") as output:
            self._popen = subprocess.Popen(
                [str(BIN / command[0]), *command[1:]],
                env={**os.environ, **environment},
                cwd=cwd,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def output(self) -> str:
        """Read its output so far."""
        return self._output.read_text()

    def has_ended(self) -> bool:
        """Tell whether the process has ended."""
        return self._popen.poll() is not None

    def wait(self) -> int:
        """Wait until the process ends, and return its exit code."""
        return self._popen.wait(timeout=patience())

    def send(self, number: signal.Signals) -> None:
        """Send a signal, unless the process has ended."""
        self._popen.send_signal(number)

    def stop(self, by: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal unless the process has ended, and return its exit code."""
        self.send(by)
        return self.wait()


@contextmanager
def process(*command: str, environment: Mapping[str, str], cwd: Path) -> Iterator[Process]:
    """Run a command of the virtual environment, and send it SIGTERM at the end unless it has ended."""
    running = Process(*command, environment=environment, cwd=cwd)
    try:
        yield running
    finally:
        running.stop()


@contextmanager
def uvicorn(
    environment: Mapping[str, str], cwd: Path, *, application: str = "todo_api.main:app", port: int | None = None
) -> Iterator[str]:
    """Serve `todo_api.main:app` with uvicorn, as in production, and yield its URL."""
    port = port or free_port()
    command = ("uvicorn", application, "--http", "todo_api.uvicorn_http:Protocol", "--port", str(port))
    with process(*command, environment=environment, cwd=cwd) as server:
        url = f"http://127.0.0.1:{port}"
        wait_for(url, server)
        yield url


def wait_for(url: str, server: Process) -> None:
    """Wait until the server responds."""
    end = deadline()
    while True:
        assert not server.has_ended(), server.output()
        assert time.monotonic() < end, f"{url} does not answer"
        try:
            httpx2.get(f"{url}/health/live")
        except httpx2.TransportError:
            time.sleep(0.05)
        else:
            return


@contextmanager
def development(directory: Path) -> Iterator[str]:
    """Serve as `make run` does, with its data in a directory, and yield the URL."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    environment = {"PORT": str(port), "DATA_DIR": str(directory / "data"), **UNMEASURED}
    with process("todo-api", "dev", environment=environment, cwd=directory) as server:
        wait_for(url, server)
        yield url
