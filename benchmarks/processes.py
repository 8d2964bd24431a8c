"""The services compared, each in its own uvicorn process, and their processor time and memory."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.serving import free_port

APPLICATIONS = {
    "ours": "todo_api.main:app",
    "ceiling": "benchmarks.ceiling:app",
    "textbook": "benchmarks.textbook:app",
    "floor": "benchmarks.floor:app",
}


def cpu_seconds(pid: int) -> dict[int, float]:
    """Return the processor seconds of a process and of each of its children."""
    try:
        # The processor clock of another process in Linux's numbering: nanoseconds, while /proc has 10 ms ticks.
        found = {pid: time.clock_gettime(~pid << 3 | 2)}
        for child in _children(pid):
            found |= cpu_seconds(child)
    except OSError:  # the process has just ended
        return {}
    return found


def spent(before: dict[int, float], after: dict[int, float]) -> float:
    """Return the processor seconds that the processes which still run have used in between."""
    return sum(seconds - before.get(pid, 0) for pid, seconds in after.items())


def memory(pid: int, what: str) -> float:
    """Read the resident memory of a process and its children in MB: `VmRSS` for the current, `VmHWM` for the peak."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    kilobytes = int(next(line for line in lines if line.startswith(what + ":")).split()[1])
    return kilobytes / 1024 + sum(memory(child, what) for child in _children(pid))


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


class Service:
    """A running service."""

    def __init__(self, name: str, popen: subprocess.Popen[bytes], port: int) -> None:
        self.name = name
        self.pid = popen.pid
        self.url = f"http://127.0.0.1:{port}"

    def cpu_seconds(self) -> dict[int, float]:
        """Return the processor seconds of each of its processes."""
        return cpu_seconds(self.pid)

    def memory(self, what: str) -> float:
        """Read its memory in MB."""
        return memory(self.pid, what)


@contextmanager
def service(name: str, database_url: str, workers: int = 1, python: str = sys.executable) -> Iterator[Service]:
    """Serve one of the `APPLICATIONS` with the README's options for production; yield once it listens."""
    port = free_port()
    environment = {
        **os.environ,
        "DATABASE_URL": database_url,
        "DATABASE_URL_UNPOOLED": database_url,
        "AUTH_BACKEND": "benchmarks.identity:BearerIsIdentity",
    }
    command = [python, "-m", "uvicorn", APPLICATIONS[name], "--port", str(port), "--no-access-log"]
    if name == "ours" and python == sys.executable:  # another installation may be of a version before it
        command += ["--http", "todo_api.uvicorn_http:Protocol"]
    with tempfile.TemporaryFile() as log:
        popen = subprocess.Popen([*command, "--workers", str(workers)], env=environment, stdout=log, stderr=log)
        try:
            running = Service(name, popen, port)
            while not _listens(port):
                if popen.poll() is not None:
                    log.seek(0)
                    raise RuntimeError(log.read().decode())
                time.sleep(0.005)
            yield running
        finally:
            popen.terminate()
            popen.wait()


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return False
    return True
