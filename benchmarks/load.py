"""Load from a separate process: wrk if it is installed, otherwise Locust."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
GENERATOR = "wrk" if shutil.which("wrk") else "Locust"
OPERATIONS = ("list", "get", "create", "update", "complete", "delete")


class Work(NamedTuple):
    """The requests to send: `tasks` belong to u1, u2 … in turn; `to_delete` is the first id to delete."""

    operation: str
    users: int
    tasks: int
    to_delete: int = 0


class Load(NamedTuple):
    """The result of a load: requests per second, and percentiles in milliseconds."""

    requests: int
    rate: float
    p50: float
    p99: float


class LoadError(Exception):
    """The load generator failed, or a response was not the expected one."""


def apply_load(url: str, work: Work, *, clients: int, seconds: int) -> Load:
    """Send requests from `clients` for some seconds, each client its next one as soon as the last is answered."""
    arguments = [str(value) for value in work]
    if GENERATOR == "wrk":
        script = str(HERE / "workload.lua")
        command = [
            "wrk",
            "-t1",
            f"-c{clients}",
            f"-d{seconds}s",
            "--timeout",
            "30s",
            "-s",
            script,
            url,
            "--",
            *arguments,
        ]
    else:
        command = [sys.executable, str(HERE / "workload.py"), url, str(clients), str(seconds), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        raise LoadError(done.stdout + done.stderr)
    result = json.loads(lines[0].removeprefix("RESULT "))
    if result["failures"]:
        raise LoadError(f"{result['failures']} of {result['requests']} requests failed: {work} at {url}")
    return Load(
        result["requests"],
        result["requests"] / result["microseconds"] * 1e6,
        result["p50"] / 1000,
        result["p99"] / 1000,
    )
