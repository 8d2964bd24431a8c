"""The service as a process of its own."""

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

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
# For a process whose every line is covered elsewhere: measuring would take longer than its work.
UNMEASURED = {"COVERAGE_PROCESS_CONFIG": ""}


def free_port() -> int:
    """Find a port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


class Process:
    """A command of the project, at work in a directory; what it prints goes to a file there."""

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
        """Read what it has printed so far."""
        return self._output.read_text()

    def has_ended(self) -> bool:
        """Tell whether it runs no more."""
        return self._popen.poll() is not None

    def wait(self) -> int:
        """Wait until it ends by itself and return its exit code."""
        return self._popen.wait(timeout=20)

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, if it has not ended."""
        self._popen.send_signal(number)

    def stop(self, by: signal.Signals = signal.SIGTERM) -> int:
        """Ask it to end, if it has not ended, and return its exit code."""
        self.send(by)
        return self.wait()


@contextmanager
def process(*command: str, environment: Mapping[str, str], cwd: Path) -> Iterator[Process]:
    """Run a command of the project, and end it by SIGTERM if it has not ended."""
    running = Process(*command, environment=environment, cwd=cwd)
    try:
        yield running
    finally:
        running.stop()


@contextmanager
def uvicorn(
    environment: Mapping[str, str], cwd: Path, *, application: str = "todo_api.main:app", port: int | None = None
) -> Iterator[str]:
    """Serve `todo_api.main:app` as production does, and yield the URL it answers at."""
    port = port or free_port()
    command = ("uvicorn", application, "--port", str(port))
    with process(*command, environment=environment, cwd=cwd) as server:
        url = f"http://127.0.0.1:{port}"
        wait_for(url, server)
        yield url


def wait_for(url: str, server: Process, seconds: float = 20) -> None:
    """Wait until the service answers."""
    deadline = time.monotonic() + seconds
    while True:
        assert not server.has_ended(), server.output()
        assert time.monotonic() < deadline, f"{url} does not answer"
        try:
            httpx2.get(f"{url}/health/live")
        except httpx2.TransportError:
            time.sleep(0.05)
        else:
            return
